package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// TestMergeEqualsOneServer checks that the merged answers of the nodes equal the answer of one server that saw everything.
func TestMergeEqualsOneServer(t *testing.T) {
	for seed := range uint64(3) {
		f := newFleet(t, seed, 1+2*int(seed))
		whole := func(target string, v any) { get(t, f.whole.server, target, 200, v) }

		var summary List[Summary]
		whole("/api/v1/summary?window=start", &summary)
		merged := gather[Summary](t, "/api/v1/summary?window=start", f.names, f.nodes)
		same(t, "summary", merged.Items, summary.Items)
		if summary.Items[0].Queries != 3000 || summary.Items[0].Miss.Count == 0 {
			t.Fatalf("got %+v", summary.Items[0])
		}
		if !slices.Equal(merged.Metadata.Nodes, f.names) || merged.Metadata.Window != "start" || merged.Metadata.GeneratedAt.IsZero() {
			t.Errorf("got metadata %+v", merged.Metadata)
		}

		for _, by := range upstreamOrders {
			var v List[Upstream]
			whole("/api/v1/upstreams?window=start&by="+by, &v)
			same(t, "upstreams by "+by, gather[Upstream](t, "/api/v1/upstreams?window=start&by="+by, f.names, f.nodes).Items, v.Items)
		}
		orders := podOrders
		if seed > 0 {
			orders = orders[:1]
		}
		for _, by := range orders {
			for _, limit := range []int{5, 2000} {
				target := fmt.Sprintf("/api/v1/pods?window=start&by=%s&limit=%d", by, limit)
				var v List[Pod]
				whole(target, &v)
				got := gather[Pod](t, target, f.names, f.nodes)
				same(t, target, got.Items, v.Items)
				if more := slices.ContainsFunc(got.Metadata.Notes, func(n string) bool { return strings.Contains(n, "there are more") }); more != (limit == 5) {
					t.Errorf("%s: notes %q", target, got.Metadata.Notes)
				}
			}
		}
		for _, limit := range []int{7, 2000} {
			for _, path := range []string{"/api/v1/queries", "/api/v1/events"} {
				target := fmt.Sprintf("%s?limit=%d", path, limit)
				if path == "/api/v1/queries" {
					var v List[Query]
					whole(target, &v)
					if len(v.Items) != min(limit, 30) {
						t.Fatalf("%d stories", len(v.Items))
					}
					same(t, target, gather[Query](t, target, f.names, f.nodes).Items, v.Items)
					continue
				}
				var v List[Event]
				whole(target, &v)
				if limit == 7 { // of all, the nodes remember more than one place does
					same(t, target, gather[Event](t, target, f.names, f.nodes).Items, v.Items)
				}
			}
		}
		status := gather[Status](t, "/statusz", f.names, f.nodes)
		if len(status.Items) != len(f.nodes) || status.Items[0].Node != "node-0" {
			t.Errorf("got %+v", status.Items)
		}
	}
}

// TestMergeNames checks that the bounds of names hold for the merged list, for listed and unlisted names, whatever
// the limit cuts off.
func TestMergeNames(t *testing.T) {
	floors := 0
	for seed := range uint64(4) {
		f := newFleet(t, 100+seed, 1+int(seed))
		for _, limit := range []int{3, 20, 2000} {
			v := gather[Name](t, fmt.Sprintf("/api/v1/top?window=start&limit=%d", limit), f.names, f.nodes)
			listed := map[string]bool{}
			for i, n := range v.Items {
				if true1 := f.asked[n.Name]; true1 > n.Count || true1+n.Error < n.Count {
					t.Errorf("%s: %d to %d, asked for %d times", n.Name, n.Count-n.Error, n.Count, true1)
				}
				if i > 0 && n.Count > v.Items[i-1].Count {
					t.Errorf("%s is behind %s", n.Name, v.Items[i-1].Name)
				}
				listed[n.Name] = true
			}
			for name, n := range f.asked {
				if !listed[name] && n > v.Metadata.Floor {
					t.Errorf("limit %d: %s was asked for %d times, and what is not listed at most %d times", limit, name, n, v.Metadata.Floor)
				}
			}
			if len(v.Items) > limit || len(v.Items) < min(limit, 20) {
				t.Errorf("%d names with limit %d", len(v.Items), limit)
			}
			if v.Metadata.Floor > 0 {
				floors++
			}
		}
		var whole List[Name]
		get(t, f.whole.server, "/api/v1/top?by=slowest&limit=5", 200, &whole)
		if got := gather[Name](t, "/api/v1/top?by=slowest&limit=5", f.names, f.nodes); got.Items[0].Seconds != whole.Items[0].Seconds || got.Metadata.Floor < 3_000_000 {
			t.Errorf("slowest: got %+v, floor %d, want %+v", got.Items, got.Metadata.Floor, whole.Items)
		}
	}
	if floors == 0 {
		t.Error("no list was ever full: nothing was tested")
	}
}

// TestMergeProcesses: two processes of one node, as during an upgrade, have parts of the same clients.
func TestMergeProcesses(t *testing.T) {
	d := directory()
	f := &fleet{whole: newStore(t, "n", d), nodes: []*store{newStore(t, "n", d), newStore(t, "n", d)}}
	start := time.Now().Add(-10 * time.Second)
	for i := range 400 {
		client := 1 + i%10
		q := observe.Query{Client: netip.AddrPortFrom(podAddr(client), uint16(1024+i)), ID: uint16(i), Name: wire(fmt.Sprintf("n%d.example.org.", i%4)), Type: 1, Source: observe.FromReplay, Received: start.UnixNano() + int64(i), Duration: time.Duration(client) * time.Millisecond}
		f.whole.queries.Record(&q)
		// The first items of one process are the last of the other.
		if process := f.nodes[i/10%2]; client <= 5 || process == f.nodes[0] || i%3 == 0 {
			process.queries.Record(&q)
		} else {
			f.nodes[0].queries.Record(&q)
		}
	}
	names := []string{"n", "n"}
	for _, target := range []string{"/api/v1/pods?window=start&limit=3", "/api/v1/pods?window=start&by=latency&limit=3"} {
		var v List[Pod]
		get(t, f.whole.server, target, 200, &v)
		got := gather[Pod](t, target, names, f.nodes)
		for i := range v.Items {
			for _, list := range [][]Name{v.Items[i].Names, got.Items[i].Names} {
				slices.SortFunc(list, func(a, b Name) int { return strings.Compare(a.Name, b.Name) })
			}
			for j, n := range got.Items[i].Names {
				if truth := v.Items[i].Names[j]; truth.Name != n.Name || truth.Count > n.Count || truth.Count+n.Error < n.Count {
					t.Errorf("%s: got %+v, want %+v", target, n, truth)
				}
			}
			v.Items[i].Names, got.Items[i].Names = nil, nil
		}
		same(t, target, got.Items, v.Items)
	}
	for _, who := range []string{"shop/web-1", "host", podAddr(7).String()} {
		var v List[PodDetail]
		get(t, f.whole.server, "/api/v1/pods/"+who, 200, &v)
		got := gather[PodDetail](t, "/api/v1/pods/"+who, names, f.nodes)
		if len(got.Items) != 1 || got.Items[0].Node != "n" {
			t.Fatalf("%s: got %+v", who, got.Items)
		}
		same(t, who, got.Items[0].Windows, v.Items[0].Windows)
	}
	if got := gather[Upstream](t, "/api/v1/upstreams", names, f.nodes); len(got.Metadata.Nodes) != 1 {
		t.Errorf("got the nodes %v, want one", got.Metadata.Nodes)
	}
}

// TestMergeKeepsApart checks that the node itself, ~other and addresses without a pod differ between nodes, and a pod
// does not.
func TestMergeKeepsApart(t *testing.T) {
	g, err := NewGather("/api/v1/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	items := `{"addresses":["10.0.0.1"],"queries":1},{"addresses":["10.0.0.9"],"host":true,"queries":1},{"addresses":[],"overflow":true,"queries":1},
		{"addresses":[],"pod":"redacted-1","queries":1},{"addresses":["10.0.0.2"],"namespace":"a","pod":"b","uid":"u","queries":1},{"addresses":["10.0.0.3"],"namespace":"a","pod":"c","queries":1}`
	v := mergeBodies[Pod](t, g, podList(items), podList(items))
	if len(v.Items) != 4*2+2 {
		t.Fatalf("got %d clients, want two of each that has no pod, and one of each pod: %+v", len(v.Items), v.Items)
	}
	for _, p := range v.Items {
		if isPod := p.Namespace != ""; isPod != (p.Queries == 2) || isPod && p.Node != "node-0, node-1" {
			t.Errorf("got %+v", p)
		}
	}
}

func podList(items string) string {
	return `{"apiVersion":"` + Version + `","kind":"PodList","metadata":{},"items":[` + items + `]}`
}

func mergeBodies[T any](t *testing.T, g *Gather, bodies ...string) *List[T] {
	t.Helper()
	var parts []*Part
	for i, b := range bodies {
		part, err := g.Read(fmt.Sprintf("node-%d", i), fmt.Sprintf("v%d", i), []byte(b))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	v, err := g.Merge(parts)
	if err != nil {
		t.Fatal(err)
	}
	return v.(*List[T])
}

// TestMergeVersions checks that additional or missing fields of another version do no harm, unless it uses other
// buckets.
func TestMergeVersions(t *testing.T) {
	g, err := NewGather("/api/v1/summary", nil)
	if err != nil {
		t.Fatal(err)
	}
	summary := func(version, metadata, item string) string {
		return `{"apiVersion":"diag.localcache.dev/` + version + `","kind":"Summary","more":1,"metadata":{` + metadata + `},"items":[` + item + `]}`
	}
	one := summary("v1alpha1", `"latencyBoundsSeconds":[1,2],"notes":["both","only one"]`, `{"queries":3,"hits":3,"sources":{"replay":3},"miss":{"count":1,"sumSeconds":0.5,"counts":[1]},"new":{"a":[1]}}`)
	v := mergeBodies[Summary](t, g, one, summary("v1beta7", `"latencyBoundsSeconds":[1,2],"notes":["both"],"later":true`, `{"queries":2}`))
	if s := v.Items[0]; s.Queries != 5 || s.Hits != 3 || s.HitRatio != 0.6 || s.Miss.P50Seconds != 0.5 {
		t.Errorf("got %+v", s)
	}
	if !slices.Equal(v.Metadata.Notes, []string{"both", "node-0: only one"}) {
		t.Errorf("got the notes %q", v.Metadata.Notes)
	}
	v = mergeBodies[Summary](t, g, one, summary("v1alpha1", `"latencyBoundsSeconds":[1,2]`, fmt.Sprintf(`{"queries":%d,"miss":{"sumSeconds":1e308,"counts":[%[1]d,1,7,9]}}`, uint64(math.MaxUint64))), summary("v1alpha1", `"latencyBoundsSeconds":[1,2]`, `{"miss":{"sumSeconds":1e308}}`))
	if _, err := json.Marshal(v); err != nil || v.Items[0].Queries != math.MaxUint64 {
		t.Errorf("got %+v, %v", v.Items[0], err)
	}

	var parts []*Part
	for i, body := range []string{one, summary("v1alpha1", `"latencyBoundsSeconds":[1,2,3]`, `{}`)} {
		part, err := g.Read(fmt.Sprintf("node-%d", i), fmt.Sprintf("v%d", i), []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, part)
	}
	if _, err := g.Merge(parts); err == nil || !strings.Contains(err.Error(), "node-0 (v0) and node-1 (v1)") {
		t.Errorf("got %v: different buckets were added up", err)
	}
}

// TestMergedQuantiles: they are those that a server estimates of the same counts, in each bucket.
func TestMergedQuantiles(t *testing.T) {
	for i := range observe.NumLatencyBuckets {
		var half, whole observe.Latency
		half.Counts[i], half.Sum = 3, time.Second
		half.Counts[i/2]++
		whole.Add(&half)
		whole.Add(&half)
		got, part := latency(&half), latency(&half)
		got.add(&part, latencyBounds)
		same(t, fmt.Sprint("bucket ", i), got, latency(&whole))
	}
	got := latency(new(observe.Latency))
	got.add(&got, latencyBounds)
	same(t, "nothing", got, latency(new(observe.Latency)))
}

func TestGatherRefuses(t *testing.T) {
	for target, want := range map[string]int{
		"/api/v1/nothing": 404, "/openapi.json": 400, "/api/v1/pods/a/b/c": 404, "/api/v1/pods/": 404, "/api/v1/top?by=cats": 400, "/api/v1/top?limit=0": 400,
		"/api/v1/top?continue=" + (cursor{1, "x"}).String(): 400,
	} {
		path, raw, _ := strings.Cut(target, "?")
		query, _ := url.ParseQuery(raw)
		_, err := NewGather(path, query)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Code != want || e.Message == "" {
			t.Errorf("%s: got %v, want %d", target, err, want)
		}
	}
	g, err := NewGather("/api/v1/pods/shop/web-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", "nginx", "null", "{}", "[]", `{"apiVersion":"v1","kind":"PodList"}`, podList(""), `{"apiVersion":"` + Version + `","kind":"PodDetail","items":5}`} {
		_, err := g.Read("n", "", []byte(body))
		if foreign := (*Foreign)(nil); !errors.As(err, &foreign) {
			t.Errorf("%s: got %v, want that it is none of ours", body, err)
		}
	}
	_, err = g.Read("n", "", []byte(`{"apiVersion":"`+Version+`","kind":"Error","error":{"code":404,"reason":"NotFound","message":"m","hint":"h"}}`))
	if e := (*Error)(nil); !errors.As(err, &e) || e.Code != 404 {
		t.Errorf("got %v, want the error of the answer", err)
	}
}

// TestPartialSums checks that an incomplete sum says so.
func TestPartialSums(t *testing.T) {
	g, err := NewGather("/api/v1/top", nil)
	if err != nil {
		t.Fatal(err)
	}
	v := mergeBodies[Name](t, g, `{"apiVersion":"`+Version+`","kind":"NameList","metadata":{"continue":"x"},"items":[{"name":"a.","count":1}]}`)
	if len(v.Metadata.Notes) != 2 || !strings.Contains(v.Metadata.Notes[1], "node-0") {
		t.Errorf("got the notes %q", v.Metadata.Notes)
	}
}

// FuzzGather checks that any answer of nodes is refused or becomes a document.
func FuzzGather(f *testing.F) {
	targets := []string{"/api/v1/summary", "/api/v1/upstreams", "/api/v1/pods", "/api/v1/pods/a/b", "/api/v1/top", "/api/v1/queries", "/api/v1/events", "/statusz", "/api/v1/pods/host"}
	h := world(f, directory()).Handler(nil)
	for i, path := range targets {
		b := body(h, path, nil)
		f.Add(uint8(i), b, b)
	}
	f.Add(uint8(4), []byte(`{"apiVersion":"diag.localcache.dev/x","kind":"NameList","metadata":{"floor":18446744073709551615},"items":[{"name":"a","count":18446744073709551615,"seconds":-1e300}]}`), []byte(`{"apiVersion":"diag.localcache.dev/x","kind":"NameList","items":[{"name":"b","count":1}]}`))
	f.Fuzz(func(t *testing.T, which uint8, a, b []byte) {
		for _, query := range []url.Values{nil, {"limit": {"1"}}} {
			g, err := NewGather(targets[int(which)%len(targets)], query)
			if err != nil {
				continue // it takes no limit
			}
			var parts []*Part
			for _, body := range [][]byte{a, b, a} {
				if p, err := g.Read("n", "v", body); err == nil {
					parts = append(parts, p)
				}
			}
			if len(parts) == 0 {
				return
			}
			v, err := g.Merge(parts)
			if err != nil {
				return
			}
			if _, err := json.Marshal(v); err != nil {
				t.Errorf("%s and %s become %+v: %v", a, b, v, err)
			}
		}
	})
}

package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// TestFormerPod checks that statistics stay with a pod when its address, and even its name, moves to another one.
func TestFormerPod(t *testing.T) {
	start := time.Now().Add(-time.Minute)
	queries := observe.NewQueries(observe.QueriesOptions{})
	directory := new(pods.Directory)
	forget := func(a netip.Addr, before time.Time) { queries.Forget(a, before) }
	s := New(Options{Queries: queries, Upstreams: observe.NewUpstreams(0), Pods: directory})
	defer s.Close()
	h := s.Handler(nil)

	addr := podAddr(1)
	web := func(uid string, started time.Time) []pods.Pod {
		return []pods.Pod{{Namespace: "shop", Name: "web-0", UID: uid, WorkloadKind: "StatefulSet", WorkloadName: "web", Started: started, IPs: []netip.Addr{addr}}}
	}
	fail := func(second int, name string) {
		queries.Record(&observe.Query{
			Client: netip.AddrPortFrom(addr, 4242), ID: uint16(second), Name: wire(name), Type: 1, Rcode: 2,
			Received: start.Add(time.Duration(second) * time.Second).UnixNano(),
		})
	}
	at := func(second int) time.Time { return start.Add(time.Duration(second) * time.Second) }

	fail(0, "nobody.example.") // before the pod was there
	directory.Turn(web("first", at(1)), nil, at(2), forget)
	fail(3, "first.example.")
	directory.Turn(nil, nil, at(10), forget)
	fail(12, "early.example.") // by the second one, which is not known yet
	directory.Turn(web("second", at(11)), nil, at(13), forget)
	fail(14, "second.example.")

	var list List[Pod]
	get(t, h, "/api/v1/pods?window=start", 200, &list)
	var seen []string
	for _, p := range list.Items {
		seen = append(seen, fmt.Sprint(p.Name(), " ", p.UID, " ", p.Queries))
	}
	slices.Sort(seen)
	if want := []string{"shop/web-0 second 2", "~other  2"}; !slices.Equal(seen, want) {
		t.Errorf("clients %q, want %q", seen, want)
	}

	var stories List[Query]
	get(t, h, "/api/v1/queries", 200, &stories)
	seen = nil
	for _, q := range stories.Items {
		seen = append(seen, q.Name+" "+q.Client.Name()+" "+q.Client.UID)
	}
	want := []string{"second.example. shop/web-0 second", "early.example. shop/web-0 second", "first.example. shop/web-0 first", "nobody.example. " + addr.String() + " "}
	if !slices.Equal(seen, want) {
		t.Errorf("stories %q, want %q", seen, want)
	}

	var detail List[PodDetail]
	get(t, h, "/api/v1/pods/shop/web-0", 200, &detail)
	seen = nil
	for _, q := range detail.Items[0].Recent {
		seen = append(seen, q.Name)
	}
	if want := []string{"second.example.", "early.example."}; detail.Items[0].UID != "second" || !slices.Equal(seen, want) {
		t.Errorf("of %s recent are %q, want %q", detail.Items[0].UID, seen, want)
	}
}

// changing is a pods.Source whose Table changes a number of times, at each call.
type changing struct {
	changes int
	turn    func()
	pods.Directory
}

func (c *changing) Table() *pods.Table {
	if c.changes > 0 {
		c.changes--
		c.turn()
	}
	return c.Directory.Table()
}

// TestTurnDuringSnapshot checks that a pod's name is never shown with statistics from the time of its predecessor.
func TestTurnDuringSnapshot(t *testing.T) {
	for changes := range 2 * maxTables {
		queries := observe.NewQueries(observe.QueriesOptions{})
		addr, uid := podAddr(1), 0
		source := &changing{}
		record := func() {
			queries.Record(&observe.Query{Client: netip.AddrPortFrom(addr, 1), Name: wire(fmt.Sprintf("of-%d.example.", uid)), Type: 1, Received: time.Now().UnixNano()})
		}
		source.turn = func() {
			uid++
			source.Turn([]pods.Pod{{Namespace: "shop", Name: "web", UID: fmt.Sprint(uid), IPs: []netip.Addr{addr}}}, nil, time.Now(),
				func(a netip.Addr, before time.Time) { queries.Forget(a, before) })
			record()
		}
		source.turn()
		source.changes = changes
		s := New(Options{Queries: queries, Upstreams: observe.NewUpstreams(0), Pods: source})
		v := s.snapshot()
		for _, a := range s.askers(v) {
			for _, n := range a.seen.Names.Names {
				if a.UID != "" && n.Name != "of-"+a.UID+".example." {
					t.Errorf("%d changes: pod %s is shown with %s", changes, a.UID, n.Name)
				}
			}
		}
		s.Close()
	}
}

// TestPodsRemark checks that known pods are shown with the remark about them.
func TestPodsRemark(t *testing.T) {
	d := directory()
	d.Store(d.Table().WithRemark("the API server is away"))
	h := world(t, d).Handler(nil)
	var v List[Pod]
	get(t, h, "/api/v1/pods", 200, &v)
	if len(v.Metadata.Notes) != 1 || !strings.Contains(v.Metadata.Notes[0], "the API server is away") || v.Items[0].Namespace == "" {
		t.Errorf("notes %q, first item %+v", v.Metadata.Notes, v.Items[0].Client)
	}
	var status List[Status]
	get(t, h, "/statusz", 200, &status)
	if p := status.Items[0].Pods; !p.Known || p.Count != 2 || p.Message != "the API server is away" {
		t.Errorf("status %+v", p)
	}
}

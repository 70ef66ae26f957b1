package api

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

type quiet struct{}

func (quiet) Infof(string, ...any)    {}
func (quiet) Warningf(string, ...any) {}

// wire is a name as observe has it.
func wire(name string) []byte {
	var b []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		if label != "" {
			b = append(append(b, byte(len(label))), label...)
		}
	}
	return append(b, 0)
}

func podAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}) }

// world is a server with some traffic of three clients and two upstreams.
func world(t testing.TB, directory pods.Source) *Server {
	t.Helper()
	q, u := observe.NewQueries(observe.QueriesOptions{Clients: 1024}), observe.NewUpstreams(0)
	good, bad := u.Sink("10.96.0.10:53", observe.TCP), u.Sink("192.0.2.53:53", observe.UDP)
	start := time.Now().Add(-2 * time.Second)
	for i := range 12 {
		good.Begin()
		good.End(&observe.Exchange{Start: start, Duration: time.Duration(1+i) * time.Millisecond, Attempt: 1})
	}
	for i := range 3 {
		bad.Begin()
		bad.End(&observe.Exchange{Start: start.Add(time.Duration(i) * time.Millisecond), Duration: 2 * time.Second, Outcome: observe.Timeout, Attempt: 1 + i, Err: "nothing came within 2s"})
	}
	for i := range 30 {
		query := &observe.Query{
			Client: netip.AddrPortFrom(podAddr(1+i%3), 40000), ID: uint16(i), Proto: observe.UDP, Name: wire(fmt.Sprintf("web-%d.shop.svc.cluster.local.", i%5)),
			Type: 1, Source: observe.FromReplay, Received: start.UnixNano(), Duration: 50 * time.Microsecond,
		}
		if i%6 == 0 {
			query.Source, query.Duration, query.Upstream = observe.FromUpstream, 300*time.Millisecond, 299*time.Millisecond
			query.Received += int64(i) * int64(time.Millisecond)
			trace := new(observe.Trace)
			trace.Add(observe.Step{Upstream: "192.0.2.53:53", Outcome: observe.Timeout, Duration: 200 * time.Millisecond, Err: "silent"})
			trace.Add(observe.Step{Upstream: "10.96.0.10:53", Proto: observe.TCP, Duration: 99 * time.Millisecond})
			q.End(q.Begin(query), query, trace)
			continue
		}
		if i%6 == 1 {
			query.Rcode = 3
		}
		q.Record(query)
	}
	s := New(Options{Node: "node-1", Version: "test", Queries: q, Upstreams: u, Pods: directory})
	t.Cleanup(s.Close)
	return s
}

func directory() *pods.Directory {
	d := new(pods.Directory)
	d.Store(pods.NewTable([]pods.Pod{
		{Namespace: "shop", Name: "web-1", UID: "u1", WorkloadKind: "Deployment", WorkloadName: "web", IPs: []netip.Addr{podAddr(1), podAddr(2)}},
		{Namespace: "kube-system", Name: "proxy", UID: "u2", HostNetwork: true, IPs: []netip.Addr{podAddr(3)}},
	}))
	return d
}

// get asks for target and decodes the answer, which has the status that is wanted.
func get(t testing.TB, h http.Handler, target string, want int, v any) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
	if w.Code != want {
		t.Fatalf("%s: status %d, want %d: %s", target, w.Code, want, w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), v); err != nil {
		t.Fatalf("%s: %v: %s", target, err, w.Body)
	}
}

func refused(t testing.TB, h http.Handler, target string, want int) Error {
	t.Helper()
	var e ErrorBody
	get(t, h, target, want, &e)
	if e.Kind != "Error" || e.APIVersion != Version || e.Error.Code != want || e.Error.Message == "" || e.Error.Hint == "" || e.Error.Reason == "" {
		t.Errorf("%s: got %+v, want a full error", target, e)
	}
	return e.Error
}

func TestSummary(t *testing.T) {
	h := world(t, nil).Handler(nil)
	var v List[Summary]
	get(t, h, "/api/v1/summary", 200, &v)
	if v.APIVersion != Version || v.Kind != "Summary" || v.Metadata.Node != "node-1" || v.Metadata.Window != "5m" || len(v.Items) != 1 {
		t.Fatalf("got %+v", v)
	}
	s := v.Items[0]
	if s.Queries != 30 || s.Hits != 25 || s.Sources["upstream"] != 5 || s.Rcodes["nxdomain"] != 5 || s.Clients != 3 {
		t.Errorf("got %d queries, %d hits, sources %v, rcodes %v, %d clients", s.Queries, s.Hits, s.Sources, s.Rcodes, s.Clients)
	}
	if s.UpstreamExchanges != 15 || s.UpstreamFailures != 3 || s.UpstreamOutcomes["timeout"] != 3 {
		t.Errorf("got %d exchanges, %d failures, %v", s.UpstreamExchanges, s.UpstreamFailures, s.UpstreamOutcomes)
	}
	if s.Miss.Count != 5 || s.Miss.P50Seconds < 0.2 || s.Miss.P50Seconds > 0.4 {
		t.Errorf("got %+v", s.Miss)
	}
	if len(v.Metadata.LatencyBoundsSeconds) != observe.NumLatencyBuckets-1 || len(s.Miss.Counts) > observe.NumLatencyBuckets {
		t.Error("counts and bounds do not belong together")
	}
	if len(v.Metadata.Notes) != 1 || !strings.Contains(v.Metadata.Notes[0], "by IP") {
		t.Errorf("got %q: that pods are not known is to be said", v.Metadata.Notes)
	}
}

func TestUpstreams(t *testing.T) {
	h := world(t, nil).Handler(nil)
	var v List[Upstream]
	get(t, h, "/api/v1/upstreams?by=failures&window=start", 200, &v)
	if len(v.Items) != 2 || v.Items[0].Upstream != "192.0.2.53:53" || v.Items[0].FailureRatio != 1 || v.Items[0].LastFailure == nil {
		t.Fatalf("got %+v", v.Items)
	}
	if f := v.Items[0].LastFailure; f.Message != "nothing came within 2s" || f.Outcome != "timeout" || f.Attempt != 3 || v.Items[0].Latency.Count != 0 {
		t.Errorf("got %+v, latency %+v", f, v.Items[0].Latency)
	}
	get(t, h, "/api/v1/upstreams?by=latency&limit=1", 200, &v)
	if len(v.Items) != 1 || v.Items[0].Proto != "tcp" || v.Items[0].Answers != 12 || v.Metadata.Continue == "" {
		t.Errorf("got %+v", v)
	}
}

func TestPods(t *testing.T) {
	h := world(t, directory()).Handler(nil)
	var v List[Pod]
	get(t, h, "/api/v1/pods?by=queries", 200, &v)
	if len(v.Items) != 2 || len(v.Metadata.Notes) != 0 {
		t.Fatalf("got %+v", v)
	}
	web, host := v.Items[0], v.Items[1]
	if web.Namespace != "shop" || web.PodName != "web-1" || web.Workload != "Deployment/web" || len(web.Addresses) != 2 || web.Queries != 20 {
		t.Errorf("got %+v, want both addresses of web-1 together", web)
	}
	if !host.Host || host.Queries != 10 || host.PodName != "" {
		t.Errorf("got %+v, want the node's own address as host", host)
	}
	get(t, h, "/api/v1/pods?namespace=shop", 200, &v)
	if len(v.Items) != 1 || v.Items[0].Namespace != "shop" {
		t.Errorf("got %+v", v.Items)
	}
	var d List[PodDetail]
	for _, path := range []string{"shop/web-1", podAddr(1).String(), "::ffff:" + podAddr(2).String()} {
		get(t, h, "/api/v1/pods/"+path, 200, &d)
		if len(d.Items) != 1 || d.Items[0].Windows["start"].Queries != 20 || d.Items[0].PodName != "web-1" || len(d.Items[0].Recent) == 0 {
			t.Errorf("%s: got %+v", path, d.Items)
		}
	}
	get(t, h, "/api/v1/pods/host", 200, &d)
	refused(t, h, "/api/v1/pods/shop/nobody", 404)

	h = world(t, nil).Handler(nil)
	d = List[PodDetail]{}
	get(t, h, "/api/v1/pods/"+podAddr(1).String(), 200, &d)
	if got := d.Items[0]; got.PodName != "" || got.Queries != 10 {
		t.Errorf("got %+v", got)
	}
	if e := refused(t, h, "/api/v1/pods/shop/web-1", 404); !strings.Contains(e.Hint, "IP") {
		t.Errorf("hint %q does not say that pods are not known", e.Hint)
	}
}

func TestTop(t *testing.T) {
	h := world(t, nil).Handler(nil)
	for by, want := range map[string]uint64{"queries": 6, "misses": 1, "nxdomain": 1} {
		var v List[Name]
		get(t, h, "/api/v1/top?window=start&by="+by, 200, &v)
		if len(v.Items) != 5 || v.Items[0].Count != want {
			t.Errorf("%s: got %+v", by, v.Items)
		}
	}
	var v List[Name]
	get(t, h, "/api/v1/top?by=slowest&limit=1", 200, &v)
	if len(v.Items) != 1 || v.Items[0].Seconds != 0.3 || v.Items[0].Count != 0 {
		t.Errorf("got %+v", v.Items)
	}
}

func TestQueries(t *testing.T) {
	h := world(t, directory()).Handler(nil)
	count := func(query string) int {
		t.Helper()
		var v List[Query]
		get(t, h, "/api/v1/queries?"+query, 200, &v)
		return len(v.Items)
	}
	for query, want := range map[string]int{
		"": 5, "outcome=timeout": 5, "outcome=reset": 0, "minDuration=100ms": 5, "minDuration=1s": 0,
		"pod=shop/web-1": 5, "pod=" + podAddr(1).String(): 5, "pod=host": 0, "namespace=shop": 5, "namespace=x": 0,
		"name=svc.cluster.local": 5, "name=vc.cluster.local": 0, "name=WEB-1.shop.svc.cluster.local.": 1, "rcode=noerror": 5, "rcode=0": 5, "rcode=NXDOMAIN": 0,
		"since=1m": 5, "since=" + time.Now().UTC().Format(time.RFC3339): 0, "limit=2": 2,
	} {
		if got := count(query); got != want {
			t.Errorf("%q: %d queries, want %d", query, got, want)
		}
	}
	var v List[Query]
	get(t, h, "/api/v1/queries?limit=1", 200, &v)
	q := v.Items[0]
	if len(q.Exchanges) != 2 || q.Exchanges[0].Outcome != "timeout" || q.Exchanges[0].Message != "silent" || q.Source != "upstream" || q.Type != "A" || q.Rcode != "NOERROR" || q.UpstreamSeconds != 0.299 {
		t.Errorf("got %+v", q)
	}
}

func TestEvents(t *testing.T) {
	h := world(t, nil).Handler(nil)
	var v List[Event]
	get(t, h, "/api/v1/events", 200, &v)
	if len(v.Items) != 3 || v.Items[0].Attempt != 3 || v.Items[0].Type != "UpstreamFailure" || v.Items[0].Upstream != "192.0.2.53:53" {
		t.Errorf("got %+v, want the newest first", v.Items)
	}
	get(t, h, "/api/v1/events?outcome=reset", 200, &v)
	if len(v.Items) != 0 || v.Items == nil {
		t.Errorf("got %+v, want an empty list and not null", v.Items)
	}
}

func TestStatus(t *testing.T) {
	s := world(t, nil)
	var v List[Status]
	get(t, s.Handler(nil), "/statusz", 200, &v)
	if len(v.Items) != 1 || v.Items[0].Queries != 30 || v.Items[0].Version != "test" || v.Items[0].MaxClients != 1024 || v.Items[0].Pods.Known {
		t.Errorf("got %+v", v.Items)
	}
}

// TestContinue checks that the pages together are the whole list in its order, for every order.
func TestContinue(t *testing.T) {
	h := world(t, nil).Handler(nil)
	for _, target := range []string{"/api/v1/queries?", "/api/v1/events?", "/api/v1/pods?by=queries", "/api/v1/pods?by=name", "/api/v1/top?by=slowest", "/api/v1/top?by=queries", "/api/v1/upstreams?by=failures"} {
		var whole List[json.RawMessage]
		get(t, h, target, 200, &whole)
		var parts []json.RawMessage
		next := ""
		for {
			var v List[json.RawMessage]
			get(t, h, target+"&limit=1&continue="+url.QueryEscape(next), pageStatus(next), &v)
			if next == "" {
				get(t, h, target+"&limit=1", 200, &v)
			}
			parts = append(parts, v.Items...)
			if next = v.Metadata.Continue; next == "" {
				break
			}
			if len(parts) > len(whole.Items) {
				t.Fatalf("%s: pages without end", target)
			}
		}
		if len(parts) != len(whole.Items) {
			t.Errorf("%s: %d items on pages, %d altogether", target, len(parts), len(whole.Items))
			continue
		}
		for i := range parts {
			if string(parts[i]) != string(whole.Items[i]) {
				t.Errorf("%s: item %d is %s on its page, and %s in the list", target, i, parts[i], whole.Items[i])
			}
		}
	}
}

// pageStatus: an empty continue never comes from an answer.
func pageStatus(next string) int {
	if next == "" {
		return 400
	}
	return 200
}

func TestRefused(t *testing.T) {
	h := world(t, nil).Handler(nil)
	for target, want := range map[string]int{
		"/none": 404, "/api/v1/nothing": 404, "/api/v1/pods/a/b/c": 404,
		"/api/v1/top?windows=1h": 400, "/api/v1/top?window=5m": 400, "/api/v1/top?limit=0": 400, "/api/v1/top?limit=2049": 400, "/api/v1/top?limit=1&limit=2": 400,
		"/api/v1/top?by=": 400, "/api/v1/queries?since=yesterday": 400, "/api/v1/queries?minDuration=-1s": 400, "/api/v1/queries?minDuration=100": 400,
		"/api/v1/queries?continue=x": 400, "/api/v1/queries?a=%zz": 400, "/api/v1/queries?rcode=NOPE": 400, "/api/v1/queries?rcode=99999": 400,
		"/api/v1/queries?name=" + strings.Repeat("a", 600): 400, "/api/v1/queries?name=" + strings.Repeat("a", 2100): 414, "/statusz?x=1": 400,
	} {
		refused(t, h, target, want)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "PATCH"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, "/api/v1/summary", strings.NewReader("x")))
		if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("%s: status %d", method, w.Code)
		}
		for name := range w.Header() {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("%s: answered with %s", method, name)
			}
		}
	}
}

// TestRedaction checks that redacted text is in no answer, that related entries still match, and that guesses cannot
// be tested.
func TestRedaction(t *testing.T) {
	s := world(t, directory())
	h := s.Handler(nil)
	body := func(target string) string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		all, _ := io.ReadAll(w.Body)
		return string(all)
	}
	targets := []string{"/api/v1/summary", "/api/v1/pods", "/api/v1/top", "/api/v1/queries", "/api/v1/events", "/statusz", "/api/v1/pods?limit=1", "/api/v1/queries?limit=1"}
	names, clients := []string{"cluster.local"}, []string{"shop", "web-1", podAddr(1).String() + `"`, podAddr(3).String() + `"`, "Deployment"}
	for redaction, secrets := range map[Redaction][]string{RedactNames: names, RedactClients: append(names, clients...)} {
		s.SetRedaction(redaction)
		for _, target := range targets {
			got := body(target)
			for _, secret := range secrets {
				if strings.Contains(got, secret) {
					t.Errorf("%v: %s tells %q: %s", redaction, target, secret, got)
				}
			}
		}
		refused(t, h, "/api/v1/queries?name=cluster.local", 403)
	}
	s.SetRedaction(RedactClients)
	refused(t, h, "/api/v1/pods?namespace=shop", 403)
	refused(t, h, "/api/v1/pods/shop/web-1", 404)
	refused(t, h, "/api/v1/pods/"+podAddr(1).String(), 404)
	var v List[Pod]
	get(t, h, "/api/v1/pods", 200, &v)
	if len(v.Items) != 2 || v.Items[0].Queries != 20 {
		t.Fatalf("got %+v, want the same clients as ever", v.Items)
	}
	var d List[PodDetail]
	get(t, h, "/api/v1/pods/"+v.Items[0].Name(), 200, &d)
	s.SetRedaction(RedactNone)
	if !strings.Contains(body("/api/v1/top"), "cluster.local") {
		t.Error("nothing is shown where nothing is redacted: the test would not find anything")
	}
}

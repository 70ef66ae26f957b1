package api

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// store holds the statistics behind a server.
type store struct {
	queries   *observe.Queries
	upstreams *observe.Upstreams
	server    http.Handler
}

func newStore(t testing.TB, name string, directory pods.Source) *store {
	t.Helper()
	s := &store{queries: observe.NewQueries(observe.QueriesOptions{Clients: 1024}), upstreams: observe.NewUpstreams(0)}
	server := New(Options{Node: name, Version: "test", Queries: s.queries, Upstreams: s.upstreams, Pods: directory})
	t.Cleanup(server.Close)
	s.server = server.Handler(nil)
	return s
}

// body returns the server's answer, whatever the status.
func body(h http.Handler, path string, query url.Values) []byte {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path+"?"+query.Encode(), nil))
	return w.Body.Bytes()
}

// gather asks nodes as a client does and decodes the merged answer. Nodes of the same name are processes of one.
func gather[T any](t testing.TB, target string, nodes []string, stores []*store) List[T] {
	t.Helper()
	path, raw, _ := strings.Cut(target, "?")
	query, _ := url.ParseQuery(raw)
	g, err := NewGather(path, query)
	if err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	var parts []*Part
	for i, s := range stores {
		alone := true
		for j, name := range nodes {
			alone = alone && (j == i || name != nodes[i])
		}
		part, err := g.Read(nodes[i], "v1", body(s.server, path, g.Query(alone)))
		if err != nil {
			t.Fatalf("%s: %v", target, err)
		}
		parts = append(parts, part)
	}
	merged, err := g.Merge(parts)
	if err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	document, err := json.Marshal(merged)
	if err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	var v List[T]
	if err := json.Unmarshal(document, &v); err != nil {
		t.Fatalf("%s: %v", target, err)
	}
	return v
}

// fleet is random traffic of several nodes, and all of it in one place. Each client is on one node.
type fleet struct {
	whole *store
	names []string
	nodes []*store
	asked map[string]uint64 // how often each name was asked for
}

func newFleet(t testing.TB, seed uint64, processes int) *fleet {
	random := rand.New(rand.NewPCG(seed, 2))
	f := &fleet{whole: newStore(t, "whole", nil), asked: map[string]uint64{}}
	for i := range processes {
		f.names = append(f.names, fmt.Sprintf("node-%d", i))
		f.nodes = append(f.nodes, newStore(t, f.names[i], nil))
	}
	start := time.Now().Add(-100 * time.Second)
	popular := rand.NewZipf(random, 1.2, 4, 400)
	for i := range 3000 {
		client := 1 + random.IntN(60)
		name := fmt.Sprintf("name-%d.example.org.", popular.Uint64())
		q := observe.Query{
			Client: netip.AddrPortFrom(podAddr(client), uint16(1024+i)), ID: uint16(i), Name: wire(name), Type: 1,
			Source: observe.Source(random.IntN(observe.NumSources)), Rcode: []int{0, 0, 0, 2, 3, 5}[random.IntN(6)],
			Received: start.UnixNano() + int64(i)*int64(time.Microsecond), Queued: time.Duration(random.IntN(100)) * time.Microsecond,
			Duration: time.Duration(math.Exp(random.Float64()*12)) * time.Microsecond,
		}
		if q.Source == observe.FromUpstream {
			q.Upstream = q.Duration / 2
		}
		f.asked[name]++
		// Stories are few, so that no ring is full.
		var trace *observe.Trace
		if i%100 == 0 {
			q.Duration, q.Rcode = 3*time.Second, 2
			trace = new(observe.Trace)
			trace.Add(observe.Step{Upstream: "192.0.2.53:53", Outcome: observe.Timeout, Duration: 2 * time.Second, Err: "silent"})
		} else if q.Rcode != 0 && q.Rcode != 3 || q.Duration > 90*time.Millisecond {
			q.Rcode, q.Duration = 3, 80*time.Millisecond
		}
		for _, s := range []*store{f.whole, f.nodes[client%processes]} {
			if trace == nil {
				s.queries.Record(&q)
			} else {
				s.queries.End(s.queries.Begin(&q), &q, trace)
			}
		}
	}
	for i := range 300 {
		to, proto := fmt.Sprintf("192.0.2.%d:53", random.IntN(5)), observe.Proto(random.IntN(2))
		e := observe.Exchange{Start: start.Add(time.Duration(i) * 10 * time.Millisecond), Duration: time.Duration(1+random.IntN(5000)) * time.Microsecond, Attempt: 1}
		if random.IntN(20) == 0 {
			e.Outcome, e.Err = observe.Timeout, "silent"
		}
		for _, s := range []*store{f.whole, f.nodes[random.IntN(processes)]} {
			sink := s.upstreams.Sink(to, proto)
			sink.Begin()
			sink.End(&e)
		}
	}
	return f
}

// apart lists what differs between processes: rates over its window, when it first saw a client (it started later
// than this traffic), its losses, the estimates of names, which depend on its seed, and since when an upstream fails:
// one may have an answer where another has none.
var apart = []string{"QueriesPerSecond", "ExchangesPerSecond", "FirstSeen", "LastSeen", "Lost", "Names", "Node", "PerNode", "FailingSince"}

// same compares everything else.
func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if path := difference(reflect.ValueOf(got), reflect.ValueOf(want)); path != "" {
		t.Errorf("%s: %s", what, path)
	}
}

// difference names the first field in which two values differ; sums of floats may a little.
func difference(a, b reflect.Value) string {
	switch a.Kind() {
	case reflect.Struct:
		if x, ok := a.Interface().(time.Time); ok {
			if y := b.Interface().(time.Time); !x.Equal(y) {
				return fmt.Sprintf(": %v, want %v", x, y)
			}
			return ""
		}
		for i := range a.NumField() {
			name := a.Type().Field(i).Name
			if slices.Contains(apart, name) {
				continue
			}
			if d := difference(a.Field(i), b.Field(i)); d != "" {
				return name + "." + d
			}
		}
	case reflect.Slice:
		if a.Len() != b.Len() {
			return fmt.Sprintf(": %d items, want %d", a.Len(), b.Len())
		}
		for i := range a.Len() {
			if d := difference(a.Index(i), b.Index(i)); d != "" {
				return fmt.Sprintf("[%d].%s", i, d)
			}
		}
	case reflect.Float64:
		if x, y := a.Float(), b.Float(); math.Abs(x-y) > 1e-9*max(1, math.Abs(y)) {
			return fmt.Sprintf(": %v, want %v", x, y)
		}
	case reflect.Pointer:
		if a.IsNil() != b.IsNil() {
			return ": one of them is nil"
		}
		if !a.IsNil() {
			return difference(a.Elem(), b.Elem())
		}
	case reflect.Map:
		if a.Len() != b.Len() {
			return fmt.Sprintf(": %d entries, want %d", a.Len(), b.Len())
		}
		for _, k := range a.MapKeys() {
			if !b.MapIndex(k).IsValid() {
				return fmt.Sprintf("%v is not in the whole", k)
			}
			if d := difference(a.MapIndex(k), b.MapIndex(k)); d != "" {
				return fmt.Sprintf("%v.%s", k, d)
			}
		}
	default:
		if !reflect.DeepEqual(a.Interface(), b.Interface()) {
			return fmt.Sprintf(": %v, want %v", a.Interface(), b.Interface())
		}
	}
	return ""
}

// BenchmarkGather reads and merges the answers of 100 nodes with 60 clients each.
func BenchmarkGather(b *testing.B) {
	f := newFleet(b, 1, 1)
	for _, target := range []string{"/api/v1/pods?limit=20", "/api/v1/upstreams", "/api/v1/top", "/api/v1/summary"} {
		b.Run(target, func(b *testing.B) {
			path, raw, _ := strings.Cut(target, "?")
			query, _ := url.ParseQuery(raw)
			answer := body(f.nodes[0].server, path, query)
			b.ReportAllocs()
			b.SetBytes(int64(100 * len(answer)))
			for b.Loop() {
				g, err := NewGather(path, query)
				if err != nil {
					b.Fatal(err)
				}
				var parts []*Part
				for i := range 100 {
					p, err := g.Read(fmt.Sprintf("node-%d", i), "", answer)
					if err != nil {
						b.Fatal(err)
					}
					parts = append(parts, p)
				}
				if _, err := g.Merge(parts); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

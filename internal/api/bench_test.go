package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime/metrics"
	"slices"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// full is a server with 1,024 clients, many names, and every ring full.
func full(tb testing.TB) *Server {
	tb.Helper()
	q, u := observe.NewQueries(observe.QueriesOptions{Clients: 1024}), observe.NewUpstreams(0)
	start := time.Now().Add(-time.Minute)
	for i := range 20 {
		sink := u.Sink(fmt.Sprintf("192.0.2.%d:53", i), observe.UDP)
		for j := range 100 {
			sink.Begin()
			sink.End(&observe.Exchange{Start: start, Duration: time.Duration(j) * time.Millisecond, Outcome: observe.Outcome(j % observe.NumOutcomes), Attempt: 1, Err: "nothing came"})
		}
	}
	for i := range 200_000 {
		query := &observe.Query{
			Client: netip.AddrPortFrom(podAddr(i%1024), uint16(i)), ID: uint16(i), Name: wire(fmt.Sprintf("service-%d.namespace.svc.cluster.local.", i*31%700)), Type: 1,
			Source: observe.Source(i % observe.NumSources), Rcode: i % 6, Received: start.UnixNano() + int64(i), Duration: time.Duration(i%300_000) * time.Microsecond,
		}
		q.Record(query)
	}
	s := New(Options{Node: "node-1", Queries: q, Upstreams: u})
	tb.Cleanup(s.Close)
	return s
}

// sink discards an answer: memory of a recorder would count as the server's.
type sink struct {
	header  http.Header
	code, n int
}

func (s *sink) Header() http.Header  { return s.header }
func (s *sink) WriteHeader(code int) { s.code = code }
func (s *sink) Write(b []byte) (int, error) {
	s.n += len(b)
	return len(b), nil
}

var targets = []string{"/api/v1/summary", "/api/v1/upstreams", "/api/v1/pods", "/api/v1/pods?limit=2048", "/api/v1/top", "/api/v1/queries?limit=2048", "/api/v1/events?limit=2048", "/statusz"}

// BenchmarkScrape is each answer of a full state, its snapshot included.
func BenchmarkScrape(b *testing.B) {
	s := full(b)
	h := s.Handler(nil)
	for _, target := range targets {
		b.Run(target, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.mu.Lock()
				s.latest = nil
				s.mu.Unlock()
				w := &sink{header: http.Header{}}
				h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
				if w.code != 200 {
					b.Fatal(w.code)
				}
				b.ReportMetric(float64(w.n), "bytes")
			}
		})
	}
}

// BenchmarkPause measures how long recording a query takes while the API is scraped without pause, and while it is
// not: the mean, the slowest of a thousand, of ten thousand and of all, and the time spent waiting for locks. On a
// machine with few processors the scheduler causes most of the slow ones.
func BenchmarkPause(b *testing.B) {
	for _, scraped := range []bool{false, true} {
		b.Run(fmt.Sprintf("scraped=%v", scraped), func(b *testing.B) {
			s := full(b)
			h := s.Handler(nil)
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for n := 0; scraped; n++ {
					select {
					case <-stop:
						return
					default:
						s.mu.Lock()
						s.latest = nil
						s.mu.Unlock()
						target := targets[n%len(targets)]
						h.ServeHTTP(&sink{header: http.Header{}}, httptest.NewRequest(http.MethodGet, target, nil))
					}
				}
			}()
			query := &observe.Query{Name: wire("service-1.namespace.svc.cluster.local."), Type: 1, Duration: 50 * time.Microsecond}
			took := make([]time.Duration, 0, 1<<20)
			i := 0
			waited := lockWait()
			for b.Loop() {
				i++
				query.Client, query.ID = netip.AddrPortFrom(podAddr(i%1024), uint16(i)), uint16(i)
				begin := time.Now()
				query.Received = begin.UnixNano()
				s.options.Queries.Record(query)
				if len(took) < cap(took) {
					took = append(took, time.Since(begin))
				}
			}
			b.ReportMetric((lockWait()-waited)*1e9/float64(i), "lock-wait-ns/op")
			close(stop)
			<-done
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*999/1000]), "p99.9-ns")
			b.ReportMetric(float64(took[len(took)*9999/10000]), "p99.99-ns")
			b.ReportMetric(float64(took[len(took)-1]), "max-ns")
		})
	}
}

// lockWait returns how long goroutines have waited for locks since the start, in seconds.
func lockWait() float64 {
	sample := []metrics.Sample{{Name: "/sync/mutex/wait/total:seconds"}}
	metrics.Read(sample)
	return sample[0].Value.Float64()
}

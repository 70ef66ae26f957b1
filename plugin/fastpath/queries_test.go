package fastpath

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// recorder hands queries on to a real one and keeps them.
type recorder struct {
	*observe.Queries
	mu      sync.Mutex
	queries []recorded
	hold    func() // called for each batch, by the reader of the socket
}

type recorded struct {
	observe.Query
	name string
}

func (r *recorder) RecordAll(list []observe.Query) {
	r.Queries.RecordAll(list)
	r.mu.Lock()
	for i := range list {
		r.queries = append(r.queries, recorded{list[i], string(list[i].Name)})
	}
	r.mu.Unlock()
	if r.hold != nil {
		r.hold()
	}
}

// of waits until n queries of a client were recorded, and until one more would have been, and returns all of them.
func (r *recorder) of(t *testing.T, c *client, n int) (all []recorded) {
	t.Helper()
	from := netip.MustParseAddrPort(c.LocalAddr().String())
	count := func(from netip.AddrPort) []recorded {
		r.mu.Lock()
		defer r.mu.Unlock()
		var all []recorded
		for _, q := range r.queries {
			if q.Client == from {
				all = append(all, q)
			}
		}
		return all
	}
	eventually(t, "all are recorded", func() bool { return len(count(from)) >= n })
	last := dial(t, c.RemoteAddr().String())
	last.ask("a.example.", dns.TypeA)
	eventually(t, "the next one is recorded", func() bool {
		return len(count(netip.MustParseAddrPort(last.LocalAddr().String()))) == 1
	})
	return count(from)
}

// record has the queries of the sockets that are adopted from now on recorded.
func record(t *testing.T, hold func()) *recorder {
	t.Helper()
	r := &recorder{Queries: observe.NewQueries(observe.QueriesOptions{}), hold: hold}
	tested.options.Queries = r
	t.Cleanup(func() { tested.options.Queries = nil })
	return r
}

// Each hit is recorded once, as it was.
func TestHitsAreRecorded(t *testing.T) {
	rec := record(t, nil)
	u := newUpstream(t)
	r := run(t, plain, u)
	dial(t, r.addr(0)).untilHit("a.example.", dns.TypeA)
	for _, test := range []struct {
		name, wire string
		qtype      uint16
		rcode      int
	}{
		{"A.example.", "\x01a\x07example\x00", dns.TypeA, dns.RcodeSuccess},
		{"x.nx.", "\x01x\x02nx\x00", dns.TypeAAAA, dns.RcodeNameError},
		{"b.example.", "\x01b\x07example\x00", dns.TypeTXT, dns.RcodeSuccess},
	} {
		dial(t, r.addr(0)).untilHit(test.name, test.qtype)
		c := dialFrom(t, "127.0.0.9", r.addr(0))
		from := netip.MustParseAddrPort(c.LocalAddr().String())
		const n = 20
		began := time.Now()
		var ids []uint16
		for range n {
			q := question(test.name, test.qtype)
			ids = append(ids, q.Id)
			c.exchange(q)
		}
		queries := rec.of(t, c, n)
		ended := time.Now()
		if len(queries) != n {
			t.Fatalf("%s: %d queries were recorded of %d", test.name, len(queries), n)
		}
		for i, q := range queries {
			if q.Client != from || q.ID != ids[i] || q.name != test.wire || q.Type != test.qtype || q.Rcode != test.rcode ||
				q.Proto != observe.UDP || q.Source != observe.FromReplay || q.Upstream != 0 {
				t.Fatalf("%s: recorded %+v of %q", test.name, q.Query, q.name)
			}
			// The kernel's clock is the wall's, and nobody sets it in a test; it may be read more coarsely.
			if q.Received < began.Add(-time.Second).UnixNano() || q.Received > ended.UnixNano() {
				t.Errorf("received at %v, between %v and %v", time.Unix(0, q.Received), began, ended)
			}
			if q.Queued < 0 || q.Duration < q.Queued || q.Duration > ended.Sub(began)+time.Second {
				t.Errorf("queued %v and answered after %v, all within %v", q.Queued, q.Duration, ended.Sub(began))
			}
		}
	}
	// What the real one has of it.
	for _, s := range rec.Queries.Snapshot(time.Now()).Clients {
		if s.Client == "127.0.0.9" {
			if n := s.Windows[observe.SinceStart].Queries(); n != 60 {
				t.Errorf("%d queries of the client are counted", n)
			}
			return
		}
	}
	t.Error("the client is not among those that were seen")
}

// arrivals are what contexts carried, by name.
var arrivals sync.Map

// arrivalsOf keeps them. It stands where a recorder of misses would.
type arrivalsOf struct{ next plugin.Handler }

// Name is one that may stand before cache.
func (arrivalsOf) Name() string { return "metadata" }

func (h arrivalsOf) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if a := observe.ArrivalFrom(ctx); a != nil {
		arrivals.Store(r.Question[0].Name, *a)
	}
	return h.next.ServeDNS(ctx, w, r)
}

func setupArrivals(c *caddy.Controller) error {
	for c.Next() {
		dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler { return arrivalsOf{next} })
	}
	return nil
}

// The time in the socket's queue is seen, of hits and of misses: the reader is held while they wait there.
func TestQueueIsSeen(t *testing.T) {
	var held sync.Once
	holding, release := make(chan struct{}), make(chan struct{})
	var armed sync.Mutex
	hold := false
	rec := record(t, func() {
		armed.Lock()
		on := hold
		armed.Unlock()
		if on {
			held.Do(func() {
				close(holding)
				<-release
			})
		}
	})
	u := newUpstream(t)
	r := run(t, strings.Replace(plain, "errors", "arrivals", 1), u)
	c := dial(t, r.addr(0))
	dial(t, r.addr(0)).untilHit("a.example.", dns.TypeA)
	armed.Lock()
	hold = true
	armed.Unlock()
	c.send(pack(t, question("a.example.", dns.TypeA)))
	<-holding
	// These two wait at least this long, by the kernel's clock too.
	const wait = 50 * time.Millisecond
	late := []*dns.Msg{question("a.example.", dns.TypeA), question("late.miss.", dns.TypeA)}
	for _, q := range late {
		c.send(pack(t, q))
	}
	sent := time.Now()
	time.Sleep(wait)
	read := time.Now()
	close(release)
	for range 3 {
		c.receive()
	}
	queries := rec.of(t, c, 2)
	if len(queries) != 2 {
		t.Fatalf("%d hits were recorded of 2", len(queries))
	}
	q := queries[1].Query
	if q.ID != late[0].Id || q.Queued < wait || q.Duration < q.Queued || q.Received > sent.UnixNano() {
		t.Errorf("a hit that waited %v was recorded as %+v", wait, q)
	}
	v, ok := arrivals.Load("late.miss.")
	if !ok {
		t.Fatal("a miss that carries no arrival")
	}
	a := v.(observe.Arrival)
	if a.Queued < wait || a.Received > sent.UnixNano() || a.Read.Before(read) || a.Read.UnixNano()-a.Received != int64(a.Queued) {
		t.Errorf("a miss that waited %v arrived as %+v", wait, a)
	}
}

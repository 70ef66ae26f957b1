package fastpath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// Each query of a steady stream is answered, through reloads and with queries of all kinds.
func TestReloadLosesNothing(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	addr := r.addr(0)
	var stop atomic.Bool
	var wg sync.WaitGroup
	var asked, lost atomic.Int64
	for i := range 3 {
		c := dial(t, addr)
		wg.Go(func() {
			for n := 0; !stop.Load(); n++ {
				q := question("a.example.", dns.TypeA)
				switch n % 4 {
				case 1:
					q = question(fmt.Sprintf("n%d.m%d.example.", n, i), dns.TypeA)
				case 2:
					q = nsid("b.example.")
				case 3:
					q = odd("b.example.")
				}
				b, err := q.Pack()
				if err != nil {
					t.Error(err)
					return
				}
				asked.Add(1)
				c.Write(b)
				c.SetReadDeadline(time.Now().Add(patience))
				m := make([]byte, 4096)
				if _, err := c.Read(m); err != nil {
					lost.Add(1)
					t.Errorf("query %d of client %d: %v", n, i, err)
				}
			}
		})
	}
	for range 5 {
		at := asked.Load()
		eventually(t, "queries come", func() bool { return asked.Load() > at+50 })
		r.reload(plain, u)
	}
	at := asked.Load()
	eventually(t, "queries come", func() bool { return asked.Load() > at+50 })
	stop.Store(true)
	wg.Wait()
	if lost.Load() > 0 {
		t.Errorf("%d of %d lost", lost.Load(), asked.Load())
	}
	tested.mu.Lock()
	defer tested.mu.Unlock()
	if len(tested.sockets) != 1 || len(tested.drops) != 1 {
		t.Errorf("%d sockets and %d counts of drops are left of one", len(tested.sockets), len(tested.drops))
	}
}

// A reload forgets everything: the next answer is the upstream's.
func TestReloadForgets(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	c.untilHit("a.example.", dns.TypeA)
	u.set(func(w dns.ResponseWriter, q *dns.Msg) {
		m := zoneReply(q, zoneTTL)
		m.Answer[0].(*dns.A).A = net.IPv4(10, 9, 9, 9)
		w.WriteMsg(m)
	})
	r.reload(plain, u)
	if m := c.ask("a.example.", dns.TypeA); !m.Answer[0].(*dns.A).A.Equal(net.IPv4(10, 9, 9, 9)) {
		t.Errorf("after the reload: %v", m)
	}
	if n := tested.instances(); n != 1 {
		t.Errorf("%d instances are alive", n)
	}
}

// instances is how many instances' sockets are being served.
func (p *Plugin) instances() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	in := map[*instance]bool{}
	for k := range p.sockets {
		in[k.instance] = true
	}
	return len(in)
}

// A stop waits for what is in flight, and answers what was read and what lies in the queue.
func TestStopAnswersWhatWasRead(t *testing.T) {
	u := newUpstream(t)
	release := make(chan struct{})
	u.set(func(w dns.ResponseWriter, q *dns.Msg) {
		<-release
		zone(w, q)
	})
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	const each = 10
	for i := range each {
		c.send(pack(t, question(fmt.Sprintf("n%d.example.", i), dns.TypeA)))
		c.send(pack(t, nsid(fmt.Sprintf("e%d.example.", i))))
		c.send(pack(t, odd(fmt.Sprintf("o%d.example.", i))))
	}
	eventually(t, "all have come to the upstream", func() bool { return u.asked.Load() >= 3*each })
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.Stop()
	}()
	select {
	case <-stopped:
		t.Error("the stop did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	for range 3 * each {
		c.receive()
	}
	<-stopped
}

// What is unusual is answered as always when the server takes no more.
func TestLeftovers(t *testing.T) {
	u := newUpstream(t)
	corefile := strings.Replace(plain, "errors", "updates", 1)
	r := run(t, corefile, u)
	c := dial(t, r.addr(0))
	serving := func() { c.ask("serving.example.", dns.TypeA) } // a server that does not serve yet cannot be stopped
	serving()
	for round := range 10 {
		const n = 20
		for i := range n {
			name := fmt.Sprintf("o%d.r%d.example.", i, round)
			if i%2 == 0 {
				c.send(pack(t, odd(name)))
			} else {
				c.send(pack(t, new(dns.Msg).SetUpdate(name)))
			}
		}
		// The instance stops with some of them read and others in the queue, and the next one has the queue.
		r.reload(corefile, u)
		for range n {
			m := new(dns.Msg)
			if err := m.Unpack(c.receive()); err != nil || m.Rcode != dns.RcodeSuccess {
				t.Fatalf("%v %v", err, m)
			}
		}
		serving()
	}
}

func TestNeverPastTTL(t *testing.T) {
	u := newUpstream(t)
	var serial atomic.Int32
	u.set(func(w dns.ResponseWriter, q *dns.Msg) {
		m := zoneReply(q, 3)
		m.Answer[0].(*dns.A).A = net.IPv4(10, 0, 0, byte(serial.Add(1)))
		w.WriteMsg(m)
	})
	r := run(t, ".:0 {\n bind 127.0.0.1\n cache {\n success 1000 3600 1\n }\n fastpath\n forward . UPSTREAM\n}", u)
	c := dial(t, r.addr(0))
	before := hits(t)
	var first time.Time
	current, last := byte(0), uint32(0)
	for serial.Load() < 3 {
		m := c.ask("a.example.", dns.TypeA)
		a := m.Answer[0].(*dns.A)
		id := a.A.To4()[3]
		if a.Hdr.Ttl == 0 || a.Hdr.Ttl > 3 {
			t.Fatalf("TTL %d", a.Hdr.Ttl)
		}
		if id != current {
			current, last, first = id, 3, time.Now()
		}
		// TTLs only fall, but for the second that is not known.
		if a.Hdr.Ttl > last+1 {
			t.Errorf("answer %d: TTL %d after %d", id, a.Hdr.Ttl, last)
		}
		last = a.Hdr.Ttl
		if id < byte(serial.Load()) {
			t.Errorf("answer %d %v after it came, when there is %d", id, time.Since(first), serial.Load())
		}
		time.Sleep(2 * time.Millisecond)
	}
	if hits(t) < before+10 {
		t.Error("there were no hits")
	}
}

// cache prefetches what is asked for often, though most of the queries never come to it.
func TestPrefetchSeesDemand(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(zoneReply(q, 6)) })
	r := run(t, ".:0 {\n bind 127.0.0.1\n cache {\n success 1000 3600 1\n prefetch 3 1m 30%\n }\n fastpath\n forward . UPSTREAM\n}", u)
	c := dial(t, r.addr(0))
	before := hits(t)
	label := map[string]string{}
	start := sum(t, "coredns_cache_prefetch_total", label)
	misses := sum(t, "coredns_cache_misses_total", label)
	c.ask("a.example.", dns.TypeA)
	eventually(t, "two prefetches", func() bool {
		for range 50 {
			c.ask("a.example.", dns.TypeA)
			time.Sleep(time.Millisecond)
		}
		return sum(t, "coredns_cache_prefetch_total", label) >= start+2
	})
	if n := sum(t, "coredns_cache_misses_total", label) - misses; n != 1 {
		t.Errorf("%v misses: the prefetches came too late", n)
	}
	if hits(t) < before+10 {
		t.Errorf("%v hits", hits(t)-before)
	}
}

// Stale answers are cache's to give, since each asks for a refresh.
func TestStaleIsNotLearnt(t *testing.T) {
	u := newUpstream(t)
	u.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(zoneReply(q, 1)) })
	r := run(t, ".:0 {\n bind 127.0.0.1\n cache {\n success 1000 3600 1\n serve_stale 1h immediate 30s\n servfail 0\n }\n fastpath\n forward . UPSTREAM\n}", u)
	c := dial(t, r.addr(0))
	c.ask("a.example.", dns.TypeA)
	u.set(func(w dns.ResponseWriter, q *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)) })
	var m *dns.Msg
	eventually(t, "a stale answer", func() bool {
		m = c.ask("a.example.", dns.TypeA)
		return len(m.Answer) == 1 && m.Answer[0].Header().Ttl == 30
	})
	before := hits(t)
	for range 20 {
		c.ask("a.example.", dns.TypeA)
	}
	if settled(t, before) {
		t.Error("a stale answer was learnt")
	}
}

// With all that may be in flight in flight, hits are answered, and another client's miss too. The client that
// floods has its share and no more.
func TestFloodOfMisses(t *testing.T) {
	rec := record(t, nil)
	u := newUpstream(t)
	// The upstream is not to be taken for dead.
	r := run(t, ".:0 {\n bind 127.0.0.1\n errors\n cache\n fastpath\n forward . UPSTREAM {\n max_fails 0\n }\n}", u)
	hit, flood, other := dial(t, r.addr(0)), dialFrom(t, "127.0.0.5", r.addr(0)), dialFrom(t, "127.0.0.6", r.addr(0))
	hit.untilHit("a.example.", dns.TypeA)
	release := make(chan struct{})
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free) // before the upstream's own, which waits for its handlers
	u.set(func(w dns.ResponseWriter, q *dns.Msg) {
		if dns.IsSubDomain("flood.", q.Question[0].Name) {
			<-release
		}
		zone(w, q)
	})
	refused := func() float64 {
		return sum(t, "coredns_fastpath_refused_total", map[string]string{"reason": "client_share"})
	}
	before, n := refused(), 0
	eventually(t, "refusals", func() bool {
		for range 40 {
			q := question(fmt.Sprintf("n%d.Flood.", n), dns.TypeA)
			if n%2 == 0 { // options make no difference
				q = nsid(fmt.Sprintf("n%d.Flood.", n))
			}
			flood.send(pack(t, q))
			n++
		}
		return refused() > before+20
	})
	if got := sum(t, "coredns_fastpath_in_flight", nil); got > testInFlight {
		t.Errorf("%v are in flight, and %d may be", got, testInFlight)
	}
	// What was dropped is not lost from the statistics, and who was hit is said.
	for _, q := range rec.of(t, flood, 20) {
		if q.Rcode != observe.NoReply || q.Type != dns.TypeA || !strings.HasSuffix(q.name, "\x05flood\x00") || q.Received == 0 {
			t.Fatalf("a dropped query is recorded as %+v of %q", q.Query, q.name)
		}
	}
	eventually(t, "the log names the client", func() bool { return strings.Contains(logged.String(), "of them from 127.0.0.5") })
	at := hits(t)
	for range 100 {
		hit.ask("a.example.", dns.TypeA)
	}
	if got := hits(t) - at; got < 99 {
		t.Errorf("%v hits of 100", got)
	}
	for i := range 10 {
		if m := other.ask(fmt.Sprintf("n%d.other.", i), dns.TypeA); len(m.Answer) != 1 {
			t.Errorf("another's miss: %v", m)
		}
	}
	free()
	eventually(t, "nothing is in flight", func() bool { return sum(t, "coredns_fastpath_in_flight", nil) == 0 })
}

// A client that floods with queries of whatever form has its share in flight and no more, and what is dropped is counted.
func TestFloodOfEachForm(t *testing.T) {
	for name, query := range map[string]func(name string) *dns.Msg{
		"plain":   func(name string) *dns.Msg { return question(name, dns.TypeA) },
		"options": nsid,
		"unusual": odd,
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t)
			release := make(chan struct{})
			free := sync.OnceFunc(func() { close(release) })
			t.Cleanup(free) // before the upstream's own, which waits for its handlers
			var mu sync.Mutex
			names := map[string]bool{} // forward may ask again
			u.set(func(w dns.ResponseWriter, q *dns.Msg) {
				mu.Lock()
				names[q.Question[0].Name] = true
				mu.Unlock()
				<-release
				zone(w, q)
			})
			r := run(t, ".:0 {\n bind 127.0.0.1\n errors\n cache\n fastpath\n forward . UPSTREAM {\n max_fails 0\n }\n}", u)
			c := dial(t, r.addr(0))
			refused := func() float64 {
				return sum(t, "coredns_fastpath_refused_total", map[string]string{"reason": "client_share"})
			}
			before := refused()
			const n = 2 * testInFlight
			for i := range n {
				c.send(pack(t, query(fmt.Sprintf("n%d.example.", i))))
			}
			admitted := func() int {
				mu.Lock()
				defer mu.Unlock()
				return len(names)
			}
			eventually(t, "each is in flight or refused", func() bool { return admitted()+int(refused()-before) >= n })
			if got := admitted(); got != testInFlight/2 {
				t.Errorf("%d are in flight, want %d", got, testInFlight/2)
			}
			if got := sum(t, "coredns_fastpath_in_flight", nil); got != testInFlight/2 {
				t.Errorf("%v are counted in flight, want %d", got, testInFlight/2)
			}
			free()
			for range testInFlight / 2 {
				c.receive()
			}
			eventually(t, "nothing is in flight", func() bool { return sum(t, "coredns_fastpath_in_flight", nil) == 0 })
		})
	}
}

func TestSharesOfClients(t *testing.T) {
	var total atomic.Int64
	p := newPool(60, &total)
	p.users = 1
	admit := func(client string, n int) (got int) {
		for range n {
			p.mu.Lock()
			p.idle = append(p.idle, &worker{work: make(chan *exchange, 1)})
			p.mu.Unlock()
			if _, r := p.take(netip.MustParseAddr(client)); r == admitted {
				got++
			}
		}
		return got
	}
	if n := admit("10.0.0.1", 100); n != 30 {
		t.Errorf("one client alone has %d of 60", n)
	}
	if n := admit("10.0.0.2", 100); n != 15 {
		t.Errorf("the second has %d", n)
	}
	if n := admit("10.0.0.3", 1); n != 1 {
		t.Error("the first query of a third was refused")
	}
	p.limit = p.busy
	if _, r := p.take(netip.MustParseAddr("10.0.0.4")); r != overloaded {
		t.Errorf("above the limit: %v", r)
	}

	// The next instance starts while those of this one still wait for a silent upstream.
	next := newPool(p.busy, &total)
	next.users = 1
	if _, r := next.take(netip.MustParseAddr("10.0.0.4")); r != overloaded {
		t.Errorf("above the limit of the process: %v", r)
	}
}

// served is the socket of r's first server, which serves.
func served(t *testing.T, r *running) *socket {
	t.Helper()
	tested.mu.Lock()
	defer tested.mu.Unlock()
	for k := range tested.sockets {
		if k.LocalAddr().String() == r.addr(0) {
			return k
		}
	}
	t.Fatal("it is not adopted")
	return nil
}

// A process that is stopped, and goes on, between two lines of miekg/dns reads with a deadline that is over, and is to go
// on reading.
func TestLateDeadline(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	c.untilHit("a.example.", dns.TypeA)
	k := served(t, r)
	for _, deadline := range []time.Time{time.Now(), time.Now().Add(-time.Millisecond), epoch, {}} {
		if err := k.SetReadDeadline(deadline); err != nil {
			t.Error(err)
		}
		if k.stopping.Load() {
			t.Fatalf("a deadline of %v is taken for the server's stop", deadline)
		}
		c.ask("a.example.", dns.TypeA)
	}
	if err := r.Stop(); err != nil {
		t.Error(err)
	}
	if !k.stopping.Load() {
		t.Error("the server's stop is not seen")
	}
}

func TestReadErrorsEnd(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	c.untilHit("a.example.", dns.TypeA)
	k := served(t, r)
	if err := k.Close(); err != nil { // without a stop of the server
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Errorf("the second time: %v", err)
	}
	if _, _, err := k.ReadFrom(nil); !errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a closed socket reads %v", err)
	}
}

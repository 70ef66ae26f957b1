package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	stockcache "github.com/coredns/coredns/plugin/cache"
	"github.com/coredns/coredns/plugin/metadata"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/stock"
)

func TestMain(m *testing.M) {
	clog.Discard()
	os.Exit(m.Run())
}

// newCache has a cache of ours in front of next.
func newCache(t testing.TB, text string, next plugin.Handler) *Cache {
	t.Helper()
	return newCacheOf(t, New(Options{}), text, next)
}

func newCacheOf(t testing.TB, p *Plugin, text string, next plugin.Handler) *Cache {
	t.Helper()
	c := caddy.NewTestController("dns", text)
	c.ServerBlockKeys = []string{"."}
	cfg, err := parse(c)
	if err != nil {
		t.Fatal(err)
	}
	cache := p.newCache(cfg)
	cache.Next = next
	p.enter(cache)
	return cache
}

// exchange is the last reply to a query.
func exchange(t testing.TB, c *Cache, q *dns.Msg) *dns.Msg {
	t.Helper()
	w := &collector{}
	if _, err := c.ServeDNS(context.Background(), w, q); err != nil || w.last == nil {
		t.Fatalf("%s: reply %v, error %v", q.Question[0].String(), w.last, err)
	}
	return w.last
}

type collector struct {
	client
	last *dns.Msg
}

func (c *collector) WriteMsg(m *dns.Msg) error {
	c.last = m
	return c.client.WriteMsg(m)
}

func address(name string, last byte, ttl uint32) *dns.A {
	return &dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(10, 0, 0, last)}
}

// TestMetricsAreCoreDNSs compares names and help with CoreDNS's source.
func TestMetricsAreCoreDNSs(t *testing.T) {
	dir, err := stock.Dir()
	if err != nil {
		t.Fatal(err)
	}
	want, err := stock.Metrics(dir, "plugin/cache/metrics.go")
	if err != nil || len(want) != 8 {
		t.Fatalf("%v, %v", want, err)
	}
	p := New(Options{})
	ch := make(chan *prometheus.Desc, 20)
	for _, v := range p.metrics.vecs() {
		v.Describe(ch)
	}
	gauge{p.metrics}.Describe(ch)
	close(ch)
	n := 0
	for d := range ch {
		n++
		found := false
		for name, help := range want {
			found = found || strings.Contains(d.String(), fmt.Sprintf("fqName: %q, help: %q", name, help))
		}
		if !found {
			t.Errorf("%v is none of CoreDNS's", d)
		}
	}
	if n != len(want) {
		t.Errorf("%d metrics, want %d", n, len(want))
	}
}

// Handlers around a cache may do with a message what they like: what is kept does not change with it.
func TestKeptIsNobodyElses(t *testing.T) {
	shared := address("a.example.", 1, 30)
	c := newCache(t, "cache", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{shared}
		err := w.WriteMsg(m)
		m.Answer[0] = address("evil.", 66, 30)
		return 0, err
	}))
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	for range 3 {
		m := exchange(t, c, q)
		if got := m.Answer[0].(*dns.A).A; !got.Equal(net.IPv4(10, 0, 0, 1)) {
			t.Fatalf("the answer is %v", got)
		}
		copy(m.Answer[0].(*dns.A).A, net.IPv6loopback)
		m.Answer[0].Header().Name = "evil."
		m.Question[0].Name = "evil."
		if q.Question[0].Name != "a.example." {
			t.Fatal("the query was changed")
		}
		if shared.Hdr.Ttl != 30 || shared.A[15] != 1 {
			t.Fatal("the other handler's record was changed")
		}
	}
}

// A kind that is disabled is not kept by a refresh either, which CoreDNS's does.
func TestDisabledIsNotRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := atomic.Bool{}
		c := newCache(t, "cache {\n disable denial\n prefetch 1 1m 90%\n}", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			m := new(dns.Msg).SetReply(r)
			if gone.Load() {
				m.Rcode = dns.RcodeNameError
				m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 30}, Ns: ".", Mbox: "."}}
			} else {
				m.Answer = []dns.RR{address("a.example.", 1, 30)}
			}
			return 0, w.WriteMsg(m)
		}))
		q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		exchange(t, c, q)
		gone.Store(true)
		time.Sleep(20 * time.Second)
		exchange(t, c, q)
		synctest.Wait()
		if c.Find(answers.Question{Name: "a.example.", Type: dns.TypeA, Class: dns.ClassINET}, true) != nil {
			t.Error("a negative answer was kept")
		}
	})
}

// A refresh keeps the wildcard that the answer was made of, which CoreDNS's forgets.
func TestRefreshKeepsTheWildcard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := atomic.Int32{}
		c := newCache(t, "cache {\n prefetch 1 1m 90%\n}", plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			asked.Add(1)
			metadata.SetValueFunc(ctx, wildcardLabel, func() string { return "*.example." })
			m := new(dns.Msg).SetReply(r)
			m.Answer = []dns.RR{address("a.example.", 1, 30)}
			return 0, w.WriteMsg(m)
		}))
		q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		for range 4 {
			ctx := metadata.ContextWithMetadata(context.Background())
			if _, err := c.ServeDNS(ctx, &client{}, q.Copy()); err != nil {
				t.Fatal(err)
			}
			if f := metadata.ValueFunc(ctx, wildcardLabel); f == nil || f() != "*.example." {
				t.Errorf("the wildcard is lost after %d questions", asked.Load())
			}
			time.Sleep(20 * time.Second)
		}
		if asked.Load() < 3 {
			t.Errorf("%d questions: nothing was refreshed", asked.Load())
		}
	})
}

// A handler that panics in a refresh does not end the process.
func TestRefreshPanics(t *testing.T) {
	for _, stale := range []string{"immediate", "verify 100ms", "verify 0 30s 30s"} {
		synctest.Test(t, func(t *testing.T) {
			asked := atomic.Int32{}
			c := newCache(t, "cache {\n serve_stale 1h "+stale+"\n}", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
				if asked.Add(1) > 1 {
					panic("a bug")
				}
				m := new(dns.Msg).SetReply(r)
				m.Answer = []dns.RR{address("a.example.", 1, 30)}
				return 0, w.WriteMsg(m)
			}))
			q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
			for range 3 {
				w := &collector{}
				func() {
					defer func() { _ = recover() }() // as the server does for what runs in its own goroutine
					_, _ = c.ServeDNS(context.Background(), w, q)
				}()
				if w.last == nil && !strings.Contains(stale, "verify 0") || w.last != nil && len(w.last.Answer) != 1 {
					t.Errorf("%v", w.last)
				}
				time.Sleep(time.Minute)
			}
			if asked.Load() != 3 {
				t.Errorf("asked %d times, want 3: a refresh that failed does not end", asked.Load())
			}
		})
	}
}

// The time for which an answer was stale is one without uses: as in CoreDNS, the one that replaces it counts on from there
// only if the next use comes soon enough after the old one's TTL had ended.
func TestStaleTimeIsAGap(t *testing.T) {
	for stale, want := range map[time.Duration]int{2 * time.Second: 3, 20 * time.Minute: 2} {
		for name, p := range map[string]*Plugin{"CoreDNS": nil, "ours": New(Options{})} {
			t.Run(fmt.Sprint(name, " after ", stale), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					asked := atomic.Int32{}
					h := stanza(t, p, "cache {\n serve_stale 1h immediate\n prefetch 5 1m 10%\n}", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
						asked.Add(1)
						m := new(dns.Msg).SetReply(r)
						m.Answer = []dns.RR{address("a.example.", 1, 60)}
						return 0, w.WriteMsg(m)
					}))
					use := func() {
						_, _ = h.ServeDNS(context.Background(), &client{}, new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
						synctest.Wait() // for a refresh
					}
					use()
					for range 6 {
						time.Sleep(5 * time.Second)
						use()
					}
					time.Sleep(30*time.Second + stale)
					use() // refreshes it
					if n := asked.Load(); n != 2 {
						t.Fatalf("asked %d times, want 2: the answer is not stale", n)
					}
					time.Sleep(55 * time.Second)
					use() // in the last tenth of the new one's TTL
					if n := int(asked.Load()); n != want {
						t.Errorf("asked %d times, want %d", n, want)
					}
				})
			})
		}
	}
}

// A failure without an answer is kept under what was asked, whatever a handler made of the question.
func TestFailureOfARewrittenQuestion(t *testing.T) {
	asked := 0
	c := newCache(t, "cache", plugin.HandlerFunc(func(_ context.Context, _ dns.ResponseWriter, r *dns.Msg) (int, error) {
		asked++
		r.Question[0].Name = "other.example."
		return dns.RcodeServerFailure, errors.New("nobody answers")
	}))
	for range 3 {
		_, _ = c.ServeDNS(context.Background(), &client{}, new(dns.Msg).SetQuestion("a.example.", dns.TypeA))
	}
	if asked != 1 {
		t.Errorf("asked %d times, want once", asked)
	}
}

// Who asks the cache is told of the answer that it gives, which need not be the newest.
func TestFindIsWhatIsGiven(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		referral := atomic.Bool{}
		c := newCache(t, "cache {\n serve_stale 1h immediate 30s\n serve_stale_policy prefer_positive\n}", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
			m := new(dns.Msg).SetReply(r)
			if referral.Load() {
				m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "example.", Rrtype: dns.TypeNS, Class: dns.ClassINET, Ttl: 300}, Ns: "ns.example."}}
			} else {
				m.Answer = []dns.RR{address("a.example.", 1, 60)}
			}
			return 0, w.WriteMsg(m)
		}))
		q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
		asked := answers.Question{Name: "a.example.", Type: dns.TypeA, Class: dns.ClassINET}
		exchange(t, c, q)
		first := c.Find(asked, false)
		referral.Store(true)
		time.Sleep(90 * time.Second)
		exchange(t, c, q)
		synctest.Wait() // the referral is kept
		if m := exchange(t, c, q); len(m.Answer) != 1 {
			t.Fatalf("the last answer is not given any more: %v", m)
		}
		if got := c.Find(asked, false); got != first {
			t.Errorf("%+v is found, and %+v given", got, first)
		}
	})
}

// A store has the shards that it has for all questions, and not one for all types of a name: who asks for many types would
// drive out that name's addresses.
func TestKeysSpread(t *testing.T) {
	c := newCache(t, "cache", nil)
	for _, variant := range []func(i int) answers.Question{
		func(i int) answers.Question { return answers.Question{Name: "a.example.", Type: uint16(i), Class: 1} },
		func(i int) answers.Question { return answers.Question{Name: "a.example.", Type: 1, Class: uint16(i)} },
		func(i int) answers.Question {
			return answers.Question{Name: fmt.Sprint(i, ".example."), Type: 1, Class: 1}
		},
		func(i int) answers.Question {
			return answers.Question{Name: "a.example.", Type: uint16(i / 4), Class: 1, DO: i&1 != 0, CD: i&2 != 0}
		},
	} {
		shards, keys := map[uint64]int{}, map[uint64]bool{}
		for i := range 256 {
			q := variant(i)
			shards[c.key(&q)&255]++
			keys[c.key(&q)] = true
		}
		// By chance 256 keys would meet in 162 shards, and no shard have more than 6 or so.
		if len(shards) < 120 || len(keys) != 256 {
			t.Errorf("256 questions have %d keys in %d shards", len(keys), len(shards))
		}
		for _, n := range shards {
			if n > 12 {
				t.Errorf("%d of 256 questions are in one shard", n)
			}
		}
	}
}

// What cannot be sent is not kept.
func TestNotSendable(t *testing.T) {
	c := newCache(t, "cache", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{address("a.example.", 1, 30), &dns.TXT{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 300)}}}
		return 0, w.WriteMsg(m)
	}))
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	exchange(t, c, q)
	if c.Find(answers.Question{Name: "a.example.", Type: dns.TypeA, Class: dns.ClassINET}, false) != nil {
		t.Error("it was kept")
	}
}

// Questions that differ in anything do not get each other's answers, with the two bits that are part of the key, and many
// more names than there is room for; and the room is not exceeded.
func TestManyNames(t *testing.T) {
	const capacity = 1024
	c := newCache(t, fmt.Sprintf("cache {\n success %d\n denial %d\n}", capacity, capacity), plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		do := r.IsEdns0() != nil && r.IsEdns0().Do()
		m.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 60}, Txt: []string{fmt.Sprint(r.Question[0].Name, do, r.CheckingDisabled)}}}
		return 0, w.WriteMsg(m)
	}))
	for round := range 3 {
		for i := range 4 * capacity {
			if round == 0 && i%2 == 0 {
				continue
			}
			q := new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i/4), dns.TypeTXT)
			q.CheckingDisabled = i%4 >= 2
			if i%2 == 1 {
				q.SetEdns0(1232, true)
			}
			m := exchange(t, c, q)
			if got, want := m.Answer[0].(*dns.TXT).Txt[0], fmt.Sprint(q.Question[0].Name, i%2 == 1, i%4 >= 2); got != want {
				t.Fatalf("%q, want %q", got, want)
			}
		}
	}
	if n := c.stores[positives].Len(); n > capacity || n < capacity*9/10 {
		t.Errorf("%d answers are kept, want at most %d", n, capacity)
	}
}

// Many at once, with names that come and go: every reply is to its query, under the race detector.
func TestConcurrentQueries(t *testing.T) {
	c := newCache(t, "cache {\n success 1024 1 0\n denial 1024 1 0\n servfail 100ms\n prefetch 1 1m 90%\n serve_stale 1s verify 1ms 1s 1s\n}", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		switch last := r.Question[0].Name[0]; {
		case last%5 == 0:
			m.Rcode = dns.RcodeServerFailure
		case last%3 == 0:
			m.Ns = []dns.RR{&dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: 1}, Ns: ".", Mbox: "."}}
		default:
			m.Answer = []dns.RR{address(r.Question[0].Name, r.Question[0].Name[0], 1)}
		}
		return 0, w.WriteMsg(m)
	}))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 4000 {
				name := string(rune('a'+i%26)) + ".example."
				q := new(dns.Msg).SetQuestion(name, dns.TypeA)
				q.Id = uint16(g<<13 + i)
				m := exchange(t, c, q)
				if m.Id != q.Id || m.Question[0].Name != name || len(m.Answer) == 1 && m.Answer[0].(*dns.A).A.To4()[3] != name[0] {
					t.Errorf("%s, ID %d, got %v", name, q.Id, m)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Refreshes that go on when their client has its answer, and handlers that change what they are given on both sides,
// under the race detector.
func TestConcurrentRefreshes(t *testing.T) {
	next := plugin.HandlerFunc(func(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		asked := r.Question[0].Name
		r.Question[0].Name = "rewritten.example."
		time.Sleep(3 * time.Millisecond)
		_, _ = w.RemoteAddr(), w.LocalAddr()
		metadata.SetValueFunc(ctx, "handler/behind", func() string { return "" })
		if opt := r.IsEdns0(); opt != nil {
			opt.SetUDPSize(4096)
		}
		r.Question[0].Name = asked
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{address(asked, 1, 1)}
		return 0, w.WriteMsg(m)
	})
	for _, mode := range []string{
		"serve_stale 1h immediate", "serve_stale 1h verify", "serve_stale 1h verify 1ms", "serve_stale 1h verify 1ms 30s 1s",
		"serve_stale 1h verify 4ms\n serve_stale_policy prefer_positive", "prefetch 1 1m 90%",
	} {
		c := newCache(t, "cache {\n success 1024 1 0\n "+mode+"\n}", next)
		start := time.Now()
		c.now = func() time.Time { return start.Add(100 * time.Since(start)) }
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for i := range 100 {
					q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
					q.Id = uint16(i)
					if i%2 == 0 {
						q.SetEdns0(1232, false)
					}
					ctx := metadata.ContextWithMetadata(context.Background())
					metadata.SetValueFunc(ctx, "handler/before", func() string { return "" })
					w := &collector{}
					if _, err := c.ServeDNS(ctx, w, q); err != nil || w.last == nil || w.last.Id != q.Id || len(w.last.Answer) != 1 {
						t.Errorf("%s: %v, %v", mode, w.last, err)
						return
					}
					metadata.SetValueFunc(ctx, "handler/later", func() string { return "" })
					w.last.Answer[0].Header().Name = "changed."
					q.Question[0].Name = "changed."
				}
			})
		}
		wg.Wait()
	}
}

// The gauge follows a reload, and forgets caches of a server that never ran.
func TestGaugeAfterReload(t *testing.T) {
	p := New(Options{})
	reg := prometheus.NewRegistry()
	if err := p.RegisterMetrics(reg); err != nil {
		t.Fatal(err)
	}
	next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{address(r.Question[0].Name, 1, 60)}
		return 0, w.WriteMsg(m)
	})
	start := func() *Cache { return newCacheOf(t, p, "cache", next) }
	entries := func() float64 {
		n := -1.0
		for name, v := range counts(t, reg) {
			if strings.Contains(name, "entries") && strings.Contains(name, "success") {
				n = v
			}
		}
		return n
	}
	first := start()
	for i := range 5 {
		exchange(t, first, new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA))
	}
	if n := entries(); n != 5 {
		t.Errorf("%v entries, want 5", n)
	}
	second := start()
	if n := entries(); n != 5 {
		t.Errorf("%v entries while the new server has no query, want 5", n)
	}
	p.leave(first)
	if n := entries(); n != 0 {
		t.Errorf("%v entries after the reload, want 0", n)
	}
	exchange(t, second, new(dns.Msg).SetQuestion("n.example.", dns.TypeA))
	if n := entries(); n != 1 {
		t.Errorf("%v entries after the reload, want 1", n)
	}
	failed := start()
	exchange(t, failed, new(dns.Msg).SetQuestion("n.example.", dns.TypeA))
	runtime.KeepAlive(failed)
	for range 10 {
		runtime.GC()
	}
	if n := len(p.live()); n != 1 {
		t.Errorf("%d caches are counted, want 1", n)
	}
	runtime.KeepAlive(second)
}

// Allocations of a hit and of a miss are part of what a node pays.
func TestAllocations(t *testing.T) {
	answer := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	answer.Response = true
	answer.Answer = []dns.RR{address("a.example.", 1, 60)}
	keep := newCache(t, "cache", plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		return 0, w.WriteMsg(answer)
	}))
	q, w := new(dns.Msg).SetQuestion("a.example.", dns.TypeA), &null{}
	ctx := context.Background()
	serve := func() { _, _ = keep.ServeDNS(ctx, w, q) }
	serve()
	// Message, question, name twice, records, A, its address.
	if n := testing.AllocsPerRun(200, serve); n > 8 {
		t.Errorf("a hit allocates %v times", n)
	}
	store := func() {
		keep.stores[positives].Remove(keep.key(&answers.Question{Name: "a.example.", Type: dns.TypeA, Class: dns.ClassINET}))
		_, _ = keep.ServeDNS(ctx, w, q)
	}
	store()
	// The keeper; the reply, its records, A, its address; the entry, its octets; the table of names for compression.
	if n := testing.AllocsPerRun(200, store); n > 12 {
		t.Errorf("a miss allocates %v times", n)
	}
}

type null struct{ client }

func (*null) WriteMsg(*dns.Msg) error { return nil }

func BenchmarkMiss(b *testing.B) {
	compareSpeed(b, func(i int) *dns.Msg { return new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.", i), dns.TypeA) })
}

func BenchmarkHit(b *testing.B) {
	q := new(dns.Msg).SetQuestion("a.example.", dns.TypeA)
	compareSpeed(b, func(int) *dns.Msg { return q })
}

// compareSpeed measures our cache and CoreDNS's.
func compareSpeed(b *testing.B, query func(i int) *dns.Msg) {
	next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{address(r.Question[0].Name, 1, 3600)}
		return 0, w.WriteMsg(m)
	})
	theirs, err := coreDNS("cache .")
	if err != nil {
		b.Fatal(err)
	}
	theirs.(*stockcache.Cache).Next = next
	for name, h := range map[string]plugin.Handler{"ours": newCache(b, "cache", next), "coredns": theirs} {
		b.Run(name, func(b *testing.B) {
			ctx, w := context.Background(), &null{}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i++
				_, _ = h.ServeDNS(ctx, w, query(i))
			}
		})
	}
}

// BenchmarkEntries measures what 100,000 answers take, and a garbage collection with them.
func BenchmarkEntries(b *testing.B) {
	const n = 100_000
	next := plugin.HandlerFunc(func(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{address(r.Question[0].Name, 1, 3600)}
		packed, err := m.Pack()
		if err != nil {
			return dns.RcodeServerFailure, err
		}
		m = new(dns.Msg)
		if err := m.Unpack(packed); err != nil {
			return dns.RcodeServerFailure, err
		}
		return 0, w.WriteMsg(m)
	})
	theirs, err := coreDNS("cache . {\n success 300000\n}")
	if err != nil {
		b.Fatal(err)
	}
	theirs.(*stockcache.Cache).Next = next
	for name, h := range map[string]plugin.Handler{"ours": newCache(b, "cache {\n success 300000\n}", next), "coredns": theirs} {
		b.Run(name, func(b *testing.B) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			for i := range n {
				_, _ = h.ServeDNS(context.Background(), &null{}, new(dns.Msg).SetQuestion(fmt.Sprintf("name-%06d.default.svc.cluster.local.", i), dns.TypeA))
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			for b.Loop() {
				runtime.GC()
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/n, "B/entry")
			b.ReportMetric(float64(after.HeapObjects-before.HeapObjects)/n, "objects/entry")
			runtime.KeepAlive(h)
		})
	}
}

package fastpath

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/replay"
)

// twins are two instances of one Corefile, of which the fast path has adopted the first one's socket only, by a clock
// of their own. Both get the same queries at the same times.
type twins struct {
	*testing.T
	clock     atomic.Int64 // nanoseconds since base
	base      time.Time
	upstreams [2]*upstream
	clients   [2]*client
	caches    [2]cached
	mu        sync.Mutex
	asked     [2]map[string]int // by name and type
}

// newTwins starts them. The records of their upstreams have this TTL.
func newTwins(t *testing.T, corefile string, ttl uint32) *twins {
	t.Helper()
	w := &twins{T: t, base: time.Now()}
	find, now := tested.find, tested.now
	clock := w.now
	cacheClock.Store(&clock)
	w.Cleanup(func() { // after the instances' own
		tested.find, tested.now = find, now
		cacheClock.Store(nil)
		tested.warned.Store(false)
	})
	tested.now = w.now
	for i := range w.upstreams {
		w.asked[i] = map[string]int{}
		w.upstreams[i] = newUpstream(t)
		w.upstreams[i].set(func(rw dns.ResponseWriter, r *dns.Msg) {
			w.mu.Lock()
			w.asked[i][key(r.Question[0].Name, r.Question[0].Qtype)]++
			w.mu.Unlock()
			rw.WriteMsg(zoneReply(r, ttl))
		})
		ready := make(chan struct{})
		tested.find = func(in *caddy.Instance, s *dnsserver.Server) (*net.UDPConn, error) {
			sites, err := sitesOf(s)
			if err != nil {
				return nil, err
			}
			o, ok := sites[0].Handler("cache").(*observed)
			if !ok || !o.block.on || w.caches[i] != nil {
				return nil, errors.New("another server's")
			}
			defer close(ready)
			w.caches[i] = o.cached
			if i == 1 {
				return nil, errors.New("left to the chain for the test")
			}
			return find(in, s)
		}
		r := run(t, corefile, w.upstreams[i])
		<-ready
		w.clients[i] = dial(t, r.addr(0))
		w.clients[i].ask("serving.example.", dns.TypeNS) // a server that does not serve yet cannot be stopped
	}
	return w
}

func key(name string, qtype uint16) string { return name + " " + dns.TypeToString[qtype] }

func (w *twins) now() time.Time { return w.base.Add(time.Duration(w.clock.Load())) }

// at moves the clock to some time since the beginning.
func (w *twins) at(d time.Duration) {
	if int64(d) < w.clock.Load() {
		w.Fatalf("the clock goes back to %v", d)
	}
	w.clock.Store(int64(d))
}

// ask asks both, waits until what they began by themselves is over, and returns how many questions about this name
// the upstreams have had by now.
func (w *twins) ask(q *dns.Msg) [2]int {
	w.Helper()
	var replies [2]*dns.Msg
	for i, c := range w.clients {
		replies[i] = c.exchange(q.Copy())
		eventually(w, "the end of a prefetch", func() bool { return caches.Refreshing() == 0 })
	}
	// An answer is learnt a moment after it was sent.
	eventually(w, "nothing is in flight", func() bool { return tested.inFlight() == 0 })
	a, b := replies[0], replies[1]
	if a.Rcode != b.Rcode || len(a.Answer) != len(b.Answer) || len(a.Ns) != len(b.Ns) {
		w.Errorf("the fast path says\n%v\nand the chain\n%v", a, b)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	k := key(q.Question[0].Name, q.Question[0].Qtype)
	return [2]int{w.asked[0][k], w.asked[1][k]}
}

// inFlight are the queries that workers of all instances are busy with.
func (p *Plugin) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for k := range p.sockets {
		n += k.instance.pool.inFlight()
	}
	return n
}

// prefetching has answers of all kinds live as long as the upstream says.
const prefetching = `.:0 {
	bind 127.0.0.1
	errors
	cache {
		success 9984 3600 1
		denial 9984 3600 1
		prefetch %s
	}
	fastpath
	forward . UPSTREAM
}`

// What is asked for often enough is fetched anew before it expires, and what is not is not, as without us; and all
// hits before that time but the first are replayed.
func TestPrefetchAsWithoutUs(t *testing.T) {
	every := func(from, to, step time.Duration) (at []time.Duration) {
		for d := from; d < to; d += step {
			at = append(at, d)
		}
		return at
	}
	const s = time.Second
	for name, c := range map[string]struct {
		prefetch string
		ttl      uint32
		at       []time.Duration // the first is a miss
		asked    int
		replayed int
	}{
		"often enough":      {"10 1m 10%", 30, append(every(0, 22*s, 2*s), 27500*time.Millisecond), 2, 9},
		"one less":          {"10 1m 10%", 30, append(every(0, 18*s, 2*s), 27500*time.Millisecond), 1, 7},
		"and again":         {"10 1m 10%", 30, every(0, 60*s, s), 3, 53},
		"a short TTL":       {"10 1m 10%", 5, every(0, 20*s, s/4), 5, 70},
		"a long one":        {"10 1m 10%", 600, every(0, 600*s, 30*s), 2, 16},
		"a gap":             {"10 1m 10%", 600, append(every(0, 400*s, 10*s), 545*s), 1, 38},
		"a gap, then more":  {"4 1m 10%", 600, append(every(0, 200*s, 10*s), 400*s, 420*s, 440*s, 490*s, 545*s), 2, 22},
		"at the end only":   {"4 1m 10%", 600, []time.Duration{0, 541 * s, 542 * s, 543 * s, 544 * s, 545 * s}, 2, 0},
		"once":              {"1 1m 10%", 30, []time.Duration{0, 28 * s}, 2, 0},
		"too late":          {"4 1m 10%", 30, append(every(0, 20*s, s), 31*s), 2, 18},
		"a long last part":  {"4 3s 90%", 600, append(every(0, 60*s, s), 64*s, 65*s, 66*s, 67*s), 2, 57},
		"still, but slower": {"10 1m 10%", 300, append(every(0, 280*s, 10*s), every(300*s, 900*s, 45*s)...), 4, 34},
	} {
		for _, question := range []*dns.Msg{question("a.example.", dns.TypeA), question("a.nx.", dns.TypeA), question("a.example.", dns.TypeTXT)} {
			t.Run(name+"/"+question.Question[0].Name+dns.TypeToString[question.Question[0].Qtype], func(t *testing.T) {
				w := newTwins(t, fmt.Sprintf(prefetching, c.prefetch), c.ttl)
				before := hits(t)
				for _, at := range c.at {
					w.at(at)
					if asked := w.ask(question); asked[0] != asked[1] {
						t.Fatalf("after %v the upstream was asked %d times, and %d times by the chain alone", at, asked[0], asked[1])
					}
				}
				if n := w.asked[1][key(question.Question[0].Name, question.Question[0].Qtype)]; n != c.asked {
					t.Errorf("the upstream was asked %d times, want %d: the test tests something else", n, c.asked)
				}
				eventually(t, "all are counted", func() bool { return hits(t) >= before+float64(c.replayed) })
				t.Logf("%.0f of %d replayed", hits(t)-before, len(c.at))
			})
		}
	}
}

// model is cache's count of hits and of an answer's age.
type model struct {
	born, last time.Duration
	hits       int
	there      bool
}

// A long random stream: cache never fetches anew what it would not have without us, the upstream is asked as often
// as without us, and no answer is older than it may be. Flags and EDNS make several copies of one answer.
func TestPrefetchByChance(t *testing.T) {
	const ttl, gap, need, threshold = 40, 20 * time.Second, 4, 8 // of 20%
	for _, copies := range []int{1, 3} {
		t.Run(fmt.Sprint(copies, " copies"), func(t *testing.T) {
			w := newTwins(t, fmt.Sprintf(prefetching, "4 20s 20%"), ttl)
			rng := rand.New(rand.NewPCG(uint64(copies), 7))
			names := []string{"a.example.", "b.example.", "c.nx.", "d.nx.", "e.alias.", "f.three."}
			models := map[string]*model{}
			before := hits(t)
			now := time.Duration(0)
			var total [2]int
			prefetches := 0
			next := make([]time.Duration, len(names))
			for step := range 6000 {
				// The one that is next, and when it will be asked for then. A gap that is nearly one may count as
				// one, so there is none.
				i := 0
				for j := range next {
					if next[j] < next[i] {
						i = j
					}
				}
				now = max(now, next[i])
				pause := time.Duration(rng.Int64N(int64(gap)*7/10)) + time.Millisecond
				if rng.IntN(12) == 0 {
					pause += gap
				}
				if i%2 == 0 {
					pause /= 3
				}
				next[i] = now + pause
				w.at(now)
				q := question(names[i], dns.TypeA)
				switch rng.IntN(copies) {
				case 1:
					q.SetEdns0(1232, false)
				case 2:
					q.AuthenticatedData = true
				}
				m := models[names[i]]
				if m == nil {
					m = &model{}
					models[names[i]] = m
				}
				was := w.count(names[i])
				is := w.ask(q)
				m.hit(now, ttl*time.Second, gap)
				switch n := is[0] - was[0]; {
				case n == 0 && !m.there:
					t.Fatalf("step %d: an answer for %s that is past its TTL", step, names[i])
				case n == 1 && m.there:
					prefetches++
					if left := ttl - int((now-m.born)/time.Second); m.hits < need || left > threshold {
						t.Fatalf("step %d: a prefetch of %s after %d hits with TTL %d", step, names[i], m.hits, left)
					}
					m.born = now
				case n == 1:
					*m = model{born: now, there: true}
				case n != 0:
					t.Fatalf("step %d: %d questions", step, n)
				}
				if copies == 1 && is != was && is[0]-was[0] != is[1]-was[1] {
					t.Fatalf("step %d: %d questions for %s, and %d by the chain alone", step, is[0]-was[0], names[i], is[1]-was[1])
				}
				total[0] += is[0] - was[0]
				total[1] += is[1] - was[1]
			}
			t.Logf("%d questions, %d by the chain alone, %d prefetches, %.0f of 6000 replayed", total[0], total[1], prefetches, hits(t)-before)
			if prefetches < 50 || hits(t)-before < 3000 {
				t.Error("there was too little of it")
			}
			if d := total[0] - total[1]; d > total[1]/5 || -d > total[1]/5 {
				t.Errorf("%d questions, and %d by the chain alone", total[0], total[1])
			}
		})
	}
}

func (w *twins) count(name string) [2]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := key(name, dns.TypeA)
	return [2]int{w.asked[0][k], w.asked[1][k]}
}

// hit counts a hit as cache does, if it is one.
func (m *model) hit(now, ttl, gap time.Duration) {
	if m.there = m.there && now-m.born < ttl; !m.there {
		return
	}
	if m.hits == 0 || now-m.last > gap {
		m.hits = 0
	}
	m.hits++
	m.last = now
}

// freshLikeStale gives fresh answers the TTL of stale ones. It takes a directive before cache and an option of cache.
const freshLikeStale = `.:0 {
	bind 127.0.0.1
	%s
	cache {
		success 9984 30 1
		serve_stale 1h immediate 30s
		%s
	}
	fastpath
	forward . UPSTREAM
}`

// An answer whose TTL is that of stale answers is learnt where it is none.
func TestFreshWithTheTTLOfStale(t *testing.T) {
	for _, prefetch := range []string{"", "prefetch 10 1m 10%"} {
		t.Run(prefetch, func(t *testing.T) {
			w := newTwins(t, fmt.Sprintf(freshLikeStale, "", prefetch), 60)
			q := question("a.example.", dns.TypeA)
			before := hits(t)
			for range 2 {
				w.ask(q)
			}
			if m := w.clients[0].exchange(q); m.Answer[0].Header().Ttl != 30 {
				t.Errorf("TTL %d", m.Answer[0].Header().Ttl)
			}
			eventually(t, "a hit in the first second", func() bool { return hits(t) == before+1 })
			w.upstreams[0].set(func(rw dns.ResponseWriter, r *dns.Msg) { rw.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)) })
			w.at(40 * time.Second)
			for range 10 {
				if m := w.clients[0].exchange(q); len(m.Answer) != 1 || m.Answer[0].Header().Ttl != 30 {
					t.Errorf("a stale answer: %v", m)
				}
				eventually(t, "nothing is in flight", func() bool { return tested.inFlight() == 0 })
			}
			if hits(t) != before+1 {
				t.Error("a stale answer was learnt")
			}
		})
	}
}

// replying is called before each reply of a block with the directive hold, when cache has chosen the answer and nobody
// has learnt it; nil: nothing is. staleTold counts what cache tells it of stale ones.
var (
	replying  atomic.Pointer[func()]
	staleTold atomic.Int64
)

type holder struct{ next plugin.Handler }

// Name is one that may stand before cache.
func (holder) Name() string { return "metadata" }

func (h holder) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	return h.next.ServeDNS(ctx, holderWriter{w}, r)
}

// holderWriter implements answers.Told, as diag's does.
type holderWriter struct{ dns.ResponseWriter }

func (holderWriter) FromMemory(stale bool) {
	if stale {
		staleTold.Add(1)
	}
}

func (w holderWriter) WriteMsg(m *dns.Msg) error {
	if f := replying.Load(); f != nil {
		(*f)()
	}
	return w.ResponseWriter.WriteMsg(m)
}

func setupHold(c *caddy.Controller) error {
	for c.Next() {
		dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler { return holder{next} })
	}
	return nil
}

// A stale answer is not learnt where it was refreshed while it was on its way, and has the TTL that the new one has.
func TestStaleThatWasRefreshed(t *testing.T) {
	for _, prefetch := range []string{"", "prefetch 10 1m 10%"} {
		t.Run(prefetch, func(t *testing.T) {
			w := newTwins(t, fmt.Sprintf(freshLikeStale, "hold", prefetch), 60)
			before := staleTold.Load()
			c, q := w.clients[0], question("a.example.", dns.TypeA)
			address := func() string { return c.exchange(q).Answer[0].(*dns.A).A.String() }
			first := address()
			answer := make(chan struct{})
			refresh := sync.OnceFunc(func() { close(answer) })
			t.Cleanup(refresh) // before the upstream's own, which waits for its handlers
			w.upstreams[0].set(func(rw dns.ResponseWriter, r *dns.Msg) {
				<-answer
				m := zoneReply(r, 60)
				m.Answer[0].(*dns.A).A = net.IPv4(10, 9, 9, 9)
				rw.WriteMsg(m)
			})
			w.at(35 * time.Second)
			if got := address(); got != first {
				t.Fatalf("%s, which is not stale", got)
			}
			refreshed := sync.OnceFunc(func() {
				refresh()
				eventually(t, "the end of the refresh", func() bool { return caches.Refreshing() == 0 })
			})
			replying.Store(&refreshed)
			t.Cleanup(func() { replying.Store(nil) })
			if got := address(); got != first {
				t.Fatalf("%s, which is not stale", got)
			}
			eventually(t, "nothing is in flight", func() bool { return tested.inFlight() == 0 })
			if got := address(); got != "10.9.9.9" {
				t.Errorf("%s after the refresh", got)
			}
			if n := staleTold.Load() - before; n != 2 {
				t.Errorf("who stands before us was told of %d stale answers, want 2", n)
			}
		})
	}
}

// A hit through the chain moves the very count that is found for it, by one, in either store.
func TestItemIsTheChains(t *testing.T) {
	w := newTwins(t, fmt.Sprintf(prefetching, "100 1m 10%"), 60)
	for _, q := range []*dns.Msg{
		question("a.example.", dns.TypeA), question("a.nx.", dns.TypeAAAA), question("a.alias.", dns.TypeAAAA),
		question("a.example.", dns.TypeA).SetEdns0(1232, true), {MsgHdr: dns.MsgHdr{Id: 1, CheckingDisabled: true}, Question: question("a.example.", dns.TypeTXT).Question},
	} {
		w.clients[1].exchange(q)
		do := q.IsEdns0() != nil
		denial := q.Question[0].Qtype != dns.TypeA
		asked := answers.Question{Name: q.Question[0].Name, Type: q.Question[0].Qtype, Class: dns.ClassINET, DO: do, CD: q.CheckingDisabled}
		found := w.caches[1].Find(asked, denial)
		if found == nil || found.TTL != 60 || !found.Stored.Equal(w.now()) || found.Uses() != 0 {
			t.Fatalf("%s: %+v", q.Question[0].String(), found)
		}
		if w.caches[1].Find(asked, !denial) != nil {
			t.Errorf("%s is in both stores", q.Question[0].String())
		}
		for n := range 3 {
			w.clients[1].exchange(q)
			if got := found.Uses(); got != n+1 {
				t.Errorf("%s: %d hits are counted after %d", q.Question[0].String(), got, n+1)
			}
		}
	}
}

// More hits than the store counts cost speed, and no prefetch.
func TestPrefetchAfterMany(t *testing.T) {
	tested.maxUses = 9
	defer func() { tested.maxUses = replay.MaxUses }()
	w := newTwins(t, fmt.Sprintf(prefetching, "10 1m 10%"), 30)
	before := hits(t)
	q := question("a.example.", dns.TypeA)
	for at := time.Duration(0); at < 100*time.Second; at += time.Second / 2 {
		w.at(at)
		if asked := w.ask(q); asked[0] != asked[1] {
			t.Fatalf("after %v the upstream was asked %d times, and %d times by the chain alone", at, asked[0], asked[1])
		}
	}
	if n := hits(t) - before; n < 100 {
		t.Errorf("%v of 200 replayed", n)
	}
}

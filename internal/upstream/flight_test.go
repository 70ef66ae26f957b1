package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestThousandClientsOneExchange checks that identical misses are one exchange, and that each client's answer is its
// own.
func TestThousandClientsOneExchange(t *testing.T) {
	joined := make(chan struct{})
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault {
		<-joined
		return fault{}
	})
	g := openGroup(t, GroupConfig{MaxAttempts: 1}, f)
	var wg sync.WaitGroup
	answers := make([]*dns.Msg, 1000)
	for i := range answers {
		wg.Go(func() {
			m := ask("Cold.Example.")
			if i%2 == 0 {
				m.Question[0].Name = "cOLD.eXAMPLE."
			}
			if i%3 == 0 {
				m.SetEdns0(4096, false)
			}
			proto := observe.Proto(i % 2) // UDP and TCP
			a, err := g.Exchange(context.Background(), Query{Msg: m, Proto: proto})
			if err != nil {
				t.Error(err)
				return
			}
			if err := checkAnswer(m, a.Msg); err != nil {
				t.Error(err)
			}
			answers[i] = a.Msg
			a.Msg.Answer[0].Header().Ttl = uint32(i) // a client may do with its copy what it likes
		})
	}
	eventually(t, "all have joined", func() bool { return g.followers() == 999 })
	close(joined)
	wg.Wait()
	s := g.stat(f, observe.UDP)
	if n := s.Outcomes[observe.NoError] + g.stat(f, observe.TCP).Outcomes[observe.NoError]; n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
	for i, a := range answers {
		if a != nil && a.Answer[0].Header().Ttl != uint32(i) {
			t.Fatalf("client %d has another client's copy", i)
		}
	}
}

// followers returns how many clients have joined flights of others.
func (s sides) followers() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.flights {
		n += f.followers
	}
	return n
}

// TestDifferentQuestionsAreNotShared checks that queries that may have different answers have exchanges of their own.
func TestDifferentQuestionsAreNotShared(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 100 * time.Millisecond} })
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	variants := []func(m *dns.Msg){
		func(*dns.Msg) {},
		func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAAAA },
		func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		func(m *dns.Msg) { m.Question[0].Name = "other.example." },
		func(m *dns.Msg) { m.CheckingDisabled = true },
		func(m *dns.Msg) { m.AuthenticatedData = true },
		func(m *dns.Msg) { m.RecursionDesired = false },
		func(m *dns.Msg) { m.SetEdns0(1232, true) },
		func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: []byte{10, 0, 0, 0}}}
		},
	}
	var wg sync.WaitGroup
	for _, vary := range variants {
		wg.Go(func() {
			m := ask("name.example.")
			vary(m)
			if _, err := g.Exchange(context.Background(), Query{Msg: m, Proto: observe.UDP}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := f.queries.Load(); n != int64(len(variants)) {
		t.Errorf("%d exchanges for %d different questions", n, len(variants))
	}
}

// TestHopOptions: options about the client's own connection neither travel nor keep clients apart.
func TestHopOptions(t *testing.T) {
	seen := make(chan []dns.EDNS0, 1)
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		seen <- m.IsEdns0().Option
		return fault{}
	})
	g := openGroup(t, GroupConfig{}, f)
	m := ask("name.example.")
	m.SetEdns0(1232, false)
	m.IsEdns0().Option = []dns.EDNS0{
		&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "24a5ac1122334455"},
		&dns.EDNS0_PADDING{Padding: make([]byte, 20)},
		&dns.EDNS0_LOCAL{Code: 0xfde9, Data: []byte("pod")},
	}
	if _, err := g.Exchange(context.Background(), Query{Msg: m, Proto: observe.UDP}); err != nil {
		t.Fatal(err)
	}
	if o := <-seen; len(o) != 1 || o[0].Option() != 0xfde9 {
		t.Errorf("the upstream got options %v", o)
	}
	if len(m.IsEdns0().Option) != 3 {
		t.Error("the client's message was changed")
	}
}

// TestLeaderLeaves checks that the others get their answer when the first client leaves.
func TestLeaderLeaves(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 300 * time.Millisecond} })
	g := openGroup(t, GroupConfig{MaxAttempts: 1}, f)
	ctx, cancel := context.WithCancel(context.Background())
	leader := make(chan error, 1)
	go func() {
		_, err := g.Exchange(ctx, Query{Msg: ask("name.example."), Proto: observe.UDP})
		leader <- err
	}()
	eventually(t, "the leader has asked", func() bool { return f.queries.Load() == 1 })
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			if a := g.mustAnswer(t, "name.example.", observe.UDP); !a.Shared {
				t.Error("a follower does not know that it is one")
			}
		})
	}
	eventually(t, "the others have joined", func() bool { return g.followers() == 5 })
	cancel()
	if err := <-leader; !errors.Is(err, context.Canceled) {
		t.Errorf("the leader got %v", err)
	}
	wg.Wait()
	if n := g.stat(f, observe.UDP).Outcomes[observe.NoError]; n != 1 {
		t.Errorf("%d exchanges, want 1", n)
	}
}

// TestClientLeaves checks that a client that leaves alone ends its flight, and that the exchange is reported.
func TestClientLeaves(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 100 * time.Millisecond} })
	g := openGroup(t, GroupConfig{}, f)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	_, err := g.Exchange(ctx, Query{Msg: ask("name.example."), Proto: observe.UDP})
	var failed *Error
	if !errors.As(err, &failed) || failed.Cause != CauseCanceled || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v", err)
	}
	g.mu.Lock()
	if len(g.flights) != 0 {
		t.Error("the flight is still there to be joined")
	}
	g.mu.Unlock()
	eventually(t, "the answer that nobody waited for is reported", func() bool {
		return g.stat(f, observe.UDP).Outcomes[observe.NoError] == 1
	})
}

// TestLateFlightIsNotJoined checks that a client that comes in the second half of a budget gets a flight of its own.
func TestLateFlightIsNotJoined(t *testing.T) {
	f := startFake(t, false, func(_ *dns.Msg, _ observe.Proto, n int) fault { return fault{drop: n == 1} })
	g := openGroup(t, GroupConfig{Budget: 600 * time.Millisecond, MaxAttempts: 1}, f)
	failed := make(chan error, 1)
	go func() {
		_, err := g.Exchange(context.Background(), Query{Msg: ask("name.example."), Proto: observe.UDP})
		failed <- err
	}()
	time.Sleep(350 * time.Millisecond)
	g.mustAnswer(t, "name.example.", observe.UDP)
	if err := <-failed; err == nil {
		t.Error("the first one got an answer that was never sent")
	}
}

// TestBudget checks that the client gets an error with its cause in time when no server answers.
func TestBudget(t *testing.T) {
	silent := func(*dns.Msg, observe.Proto, int) fault { return fault{drop: true} }
	a, b := startFake(t, false, silent), startFake(t, false, silent)
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		g := openGroup(t, GroupConfig{}, a, b)
		start := time.Now()
		_, err := g.Exchange(context.Background(), Query{Msg: ask("name.example."), Proto: proto})
		took := time.Since(start)
		var failed *Error
		if !errors.As(err, &failed) || failed.Cause != CauseTimeout {
			t.Fatalf("error %v", err)
		}
		if took < 2*time.Second || took > 2500*time.Millisecond {
			t.Errorf("%s: it took %s, the budget is %s", proto, took, DefaultBudget)
		}
		code, text := failed.ExtendedError()
		if code != dns.ExtendedErrorCodeNoReachableAuthority || !strings.Contains(text, a.addr.String()) || !strings.Contains(text, b.addr.String()) {
			t.Errorf("extended error %d %q", code, text)
		}
		if failed.Elapsed < 2*time.Second || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("error %v after %s", err, failed.Elapsed)
		}
	}
}

// TestHedgesAreBounded: while everything is late, the load does not double.
func TestHedgesAreBounded(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 600 * time.Millisecond} })
	g := openGroup(t, GroupConfig{MaxAttempts: 16}, f)
	for g.hedges.spend() { // what is saved up
	}
	var wg sync.WaitGroup
	const n = 200
	for i := range n {
		wg.Go(func() { g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP) })
	}
	wg.Wait()
	// 200 questions earn 20 hedges; what is given up after 4 times the estimate is retried freely only on a path that
	// is not in doubt.
	if got := f.queries.Load(); got > n*13/10 {
		t.Errorf("%d queries for %d questions of a slow server", got, n)
	}
}

func TestHedgeToAnotherServer(t *testing.T) {
	slow := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: time.Second} })
	quick := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{Policy: Sequential}, slow, quick)
	a := g.mustAnswer(t, "name.example.", observe.UDP)
	if a.Exchange.Upstream != quick.addr.String() || !a.Exchange.Hedge || len(a.Attempts) != 2 ||
		!a.Attempts[0].Overtaken || a.Attempts[1].Overtaken || a.Attempts[1].Start.Before(a.Attempts[0].Start) {
		t.Errorf("exchange %+v, attempts %+v", a.Exchange, a.Attempts)
	}
	// The loser is heard out and reported with its true duration.
	eventually(t, "the slow answer is reported", func() bool {
		return g.stat(slow, observe.UDP).Outcomes[observe.NoError] == 1
	})
	if s := g.stat(slow, observe.UDP); s.Latency.Quantile(1) < 900*time.Millisecond {
		t.Errorf("the slow answer counts as %s", s.Latency.Quantile(1))
	}
}

func TestPolicies(t *testing.T) {
	servers := []*fakeServer{startFake(t, false, wellBehaved), startFake(t, false, wellBehaved), startFake(t, false, wellBehaved)}
	for policy, want := range map[Policy][]int64{Sequential: {30, 0, 0}, RoundRobin: {10, 10, 10}, Random: nil} {
		g := openGroup(t, GroupConfig{Policy: policy}, servers...)
		var before, got []int64
		for _, s := range servers {
			before = append(before, s.queries.Load())
		}
		for i := range 30 {
			g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP)
		}
		for i, s := range servers {
			got = append(got, s.queries.Load()-before[i])
		}
		if want != nil && !slices.Equal(got, want) {
			t.Errorf("policy %d: %v, want %v", policy, got, want)
		}
		if policy == Random && slices.Contains(got, 0) {
			t.Errorf("random left a server out: %v", got)
		}
	}
}

func TestFailover(t *testing.T) {
	failing := func(rcode int) behaviour {
		return func(*dns.Msg, observe.Proto, int) fault { return fault{rcode: rcode} }
	}
	bad, good := startFake(t, false, failing(dns.RcodeServerFailure)), startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{Policy: Sequential, Failover: []int{dns.RcodeServerFailure}}, bad, good)
	if a := g.mustAnswer(t, "name.example.", observe.UDP); a.Msg.Rcode != dns.RcodeSuccess {
		t.Errorf("RCODE %d", a.Msg.Rcode)
	}
	if s := g.stat(bad, observe.UDP); s.Outcomes[observe.ServFail] != 1 {
		t.Errorf("outcomes %v", s.Outcomes)
	}

	// All fail: the last answer counts. Without failover the first one does.
	worse := startFake(t, false, failing(dns.RcodeRefused))
	g = openGroup(t, GroupConfig{Policy: Sequential, Failover: []int{dns.RcodeServerFailure, dns.RcodeRefused}}, bad, worse)
	if a := g.mustAnswer(t, "name.example.", observe.UDP); a.Msg.Rcode != dns.RcodeRefused {
		t.Errorf("RCODE %d, want that of the last server", a.Msg.Rcode)
	}
	g = openGroup(t, GroupConfig{Policy: Sequential}, bad, good)
	if a := g.mustAnswer(t, "name.example.", observe.UDP); a.Msg.Rcode != dns.RcodeServerFailure {
		t.Errorf("RCODE %d, want SERVFAIL", a.Msg.Rcode)
	}
}

func TestOverload(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 300 * time.Millisecond} })
	for name, g := range map[string]sides{
		"of the block":   openGroup(t, GroupConfig{MaxConcurrent: 2}, f),
		"of the process": openGroupWith(t, NewDialer(), Limits{Queries: 2}, GroupConfig{}, f),
	} {
		var wg sync.WaitGroup
		for i := range 2 {
			wg.Go(func() { g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP) })
		}
		eventually(t, "two wait", func() bool { return g.waiting.Load() == 2 })
		_, err := g.Exchange(context.Background(), Query{Msg: ask("third.example."), Proto: observe.UDP})
		var failed *Error
		if !errors.Is(err, ErrOverloaded) || !errors.As(err, &failed) || failed.Cause != CauseOverloaded {
			t.Errorf("the limit %s: %v", name, err)
		}
		wg.Wait()
		g.mustAnswer(t, "fourth.example.", observe.UDP)
	}
}

// TestVerbatim checks that unusual messages are forwarded unchanged.
func TestVerbatim(t *testing.T) {
	got := make(chan *dns.Msg, 1)
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		got <- m
		return fault{rcode: dns.RcodeNotImplemented}
	})
	g := openGroup(t, GroupConfig{}, f)
	m := new(dns.Msg)
	m.SetUpdate("example.")
	m.Insert([]dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.example.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: address("a.example.")}})
	a, err := g.Exchange(context.Background(), Query{Msg: m, Proto: observe.UDP})
	if err != nil || a.Msg.Id != m.Id || a.Msg.Rcode != dns.RcodeNotImplemented {
		t.Fatalf("answer %v, error %v", a.Msg, err)
	}
	if u := <-got; u.Opcode != dns.OpcodeUpdate || len(u.Ns) != 1 || u.IsEdns0() != nil {
		t.Errorf("the upstream got %v", u)
	}

	for name, bad := range map[string]*dns.Msg{
		"no question": new(dns.Msg),
		"long label":  ask(strings.Repeat("x", 70) + ".example."),
	} {
		if _, err := g.Exchange(context.Background(), Query{Msg: bad, Proto: observe.UDP}); !errors.Is(err, ErrInvalidQuery) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestAbandonReportsAll: attempts that ended in another order than they began, when the flight was over, are reported.
func TestAbandonReportsAll(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{}, f) // checks that each was
	flight := g.newFlight(observe.UDP, time.Now())
	if err := flight.q.pack(ask("name.example.")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		c := &call{path: g.servers[0].stream, q: &flight.q, results: flight.results}
		c.path.sink.Begin()
		flight.calls = append(flight.calls, c)
		flight.pending++
	}
	for _, c := range slices.Backward(flight.calls) {
		c.finish(nil, observe.Reset, errHungUp, time.Now())
	}
	abandonAll(flight.calls, flight.results)
	if n := g.stat(f, observe.TCP).Outcomes[observe.Reset]; n != 2 {
		t.Errorf("%d of 2 were reported", n)
	}
}

// TestPanicEndsTheFlight checks that followers get an error if the leader panics, which CoreDNS recovers from.
func TestPanicEndsTheFlight(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 50 * time.Millisecond} })
	r := NewRegistry(Limits{}, panicking{})
	g, err := r.Open(GroupConfig{Budget: 500 * time.Millisecond, Servers: []ServerConfig{{Addr: f.addr, Health: NewHealth()}}})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	panics, failures := 0, 0
	for range 5 {
		wg.Go(func() {
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				if recover() != nil {
					panics++
				}
			}()
			_, err := g.Exchange(context.Background(), Query{Msg: ask("name.example."), Proto: observe.UDP})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures++
			}
		})
	}
	wg.Wait()
	if panics == 0 || panics+failures != 5 {
		t.Errorf("%d panics and %d errors of 5 questions", panics, failures)
	}
	g.Close()
	r.Wait()
}

// panicking is a Recorder that fails at the end of each exchange.
type panicking struct{}

func (panicking) Sink(string, observe.Proto) observe.Sink { return panicking{} }
func (panicking) Begin()                                  {}
func (panicking) End(*observe.Exchange)                   { panic("no statistics") }
func (panicking) Drop(observe.Drop)                       {}
func (panicking) Release()                                {}

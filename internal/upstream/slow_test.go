package upstream

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// askSteadily asks n questions, a step apart, and returns how many failed.
func askSteadily(g sides, n int, step time.Duration, proto observe.Proto) (failed int) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if _, err := g.Exchange(context.Background(), Query{Msg: ask(fmt.Sprintf("n%d.example.", i)), Proto: proto}); err != nil {
				mu.Lock()
				failed++
				mu.Unlock()
			}
		})
		time.Sleep(step)
	}
	wg.Wait()
	return failed
}

func startSlow(t *testing.T, n int, delay time.Duration) (servers []*fakeServer) {
	for range n {
		servers = append(servers, startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: delay} }))
	}
	return servers
}

// TestSlowIsNotSilent checks that upstreams that answer everything, but slowly, do not get a multiple of the
// questions.
func TestSlowIsNotSilent(t *testing.T) {
	const n = 400
	for _, c := range []struct {
		servers int
		delay   time.Duration
		proto   observe.Proto
	}{
		{1, 1500 * time.Millisecond, observe.UDP},
		{2, 1500 * time.Millisecond, observe.UDP},
		{2, 1800 * time.Millisecond, observe.TCP},
	} {
		t.Run(fmt.Sprintf("%d %s %s", c.servers, c.proto, c.delay), func(t *testing.T) {
			t.Parallel()
			servers := startSlow(t, c.servers, c.delay)
			g := openGroup(t, GroupConfig{ForceTCP: c.proto == observe.TCP}, servers...)
			for g.hedges.spend() || g.retries.spend() { // what is saved up
			}
			if failed := askSteadily(g, n, 5*time.Millisecond, c.proto); failed > 0 {
				t.Errorf("%d of %d questions failed", failed, n)
			}
			var asked int64
			for _, s := range servers {
				asked += s.queries.Load()
			}
			// A tenth for hedges, three tenths for retries, and some probes.
			if asked > n*3/2 {
				t.Errorf("%d exchanges for %d questions", asked, n)
			}
		})
	}
}

// TestProbeHarmsNobody: questions that go to a probe's connection have their own time, not the probe's.
func TestProbeHarmsNobody(t *testing.T) {
	servers := startSlow(t, 1, 1700*time.Millisecond)
	g := openGroup(t, GroupConfig{ForceTCP: true}, servers...)
	if failed := askSteadily(g, 400, 5*time.Millisecond, observe.TCP); failed > 0 {
		t.Errorf("%d questions failed", failed)
	}
	s := g.stat(servers[0], observe.TCP)
	if s.Outcomes[observe.Timeout] > 0 {
		t.Errorf("%d time-outs of a server that always answers in time", s.Outcomes[observe.Timeout])
	}
	if n := s.Probes; n == ([observe.NumOutcomes]uint64{}) {
		t.Error("it was never probed: this shows nothing")
	}
}

// TestSlowRecovers checks that a server that is slower than a probing interval is found healthy again, although
// another one answers all questions meanwhile.
func TestSlowRecovers(t *testing.T) {
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		t.Run(proto.String(), func(t *testing.T) {
			t.Parallel()
			quick, slow := startFake(t, false, wellBehaved), startSlow(t, 1, 300*time.Millisecond)[0]
			health := NewHealth()
			health.Interval = 100 * time.Millisecond
			g := openGroup(t, GroupConfig{ForceTCP: proto == observe.TCP, Policy: RoundRobin, Servers: []ServerConfig{
				{Addr: quick.addr, Health: health}, {Addr: slow.addr, Health: health},
			}})
			behave := *slow.behave.Load()
			slow.set(func(*dns.Msg, observe.Proto, int) fault { return fault{drop: true} })
			name := 0
			askAnother := func() {
				name++
				g.mustAnswer(t, fmt.Sprintf("n%d.example.", name), proto)
			}
			eventually(t, "the silent server is down", func() bool {
				askAnother()
				return standingOf(g, slow, proto) == "down"
			})
			slow.set(behave)
			eventually(t, "it is healthy", func() bool {
				askAnother()
				return standingOf(g, slow, proto) == "healthy"
			})
		})
	}
}

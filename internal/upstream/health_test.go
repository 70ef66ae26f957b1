package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

var silence = func(*dns.Msg, observe.Proto, int) fault { return fault{drop: true} }

// TestDeadUpstreamIsNotVisible: one of two is silent. After its first failure no client notices.
func TestDeadUpstreamIsNotVisible(t *testing.T) {
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		t.Run(proto.String(), func(t *testing.T) {
			alive := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: time.Millisecond} })
			dying := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: time.Millisecond} })
			g := openGroup(t, GroupConfig{}, alive, dying)
			// held is how many questions were sent to the dying upstream first.
			p99 := func(phase string) (d time.Duration, held int) {
				var mu sync.Mutex
				var took []time.Duration
				var wg sync.WaitGroup
				for w := range 4 {
					wg.Go(func() {
						for i := range 100 {
							start := time.Now()
							a := g.mustAnswer(t, fmt.Sprintf("%s%d-%d.example.", phase, w, i), proto)
							mu.Lock()
							took = append(took, time.Since(start))
							first := a.Exchange.Upstream
							if len(a.Attempts) > 0 {
								first = a.Attempts[0].Upstream
							}
							if first == dying.addr.String() {
								held++
							}
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				slices.Sort(took)
				return took[len(took)*99/100], held
			}
			before, _ := p99("before")
			dying.set(silence)
			silent := time.Now()
			for i := 0; standingOf(g, dying, proto) == "healthy"; i++ {
				g.mustAnswer(t, fmt.Sprintf("between%d.example.", i), proto)
			}
			if took := time.Since(silent); took > 1500*time.Millisecond {
				t.Errorf("the silent upstream was in doubt after %s, that is, not before a timeout", took)
			}
			after, held := p99("after")
			t.Logf("p99 %s with both, %s with one", before, after)
			// Were it more than one of a hundred, the 99th percentile would show it.
			if held > 4 {
				t.Errorf("%d of 400 questions went to the silent upstream first", held)
			}

			dying.set(wellBehaved)
			start := time.Now()
			eventually(t, "the upstream is healthy again", func() bool { return standingOf(g, dying, proto) == "healthy" })
			if took := time.Since(start); took > 3*DefaultHealthInterval {
				t.Errorf("the upstream was back after %s, probes come each %s", took, DefaultHealthInterval)
			}
			if s := g.stat(dying, proto); s.Probes[observe.NoError] == 0 {
				t.Error("no probe was recorded")
			}
		})
	}
}

func standingOf(g sides, f *fakeServer, proto observe.Proto) string {
	for _, s := range g.Status() {
		if s.Upstream == f.addr.String() && s.Proto == proto {
			return s.Standing
		}
	}
	return ""
}

// TestAllDead: with all upstreams in doubt they are tried in order of hope, not at random, and
// FailFast does not try.
func TestAllDead(t *testing.T) {
	older, newer := startFake(t, false, wellBehaved), startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{Policy: Sequential, Budget: time.Second}, older, newer)
	g.mustAnswer(t, "one.example.", observe.UDP) // older answers
	now := time.Now()
	g.servers[1].datagram.lastAnswer.Store(now.UnixNano())
	older.set(silence)
	newer.set(silence)
	for _, s := range g.servers {
		s.datagram.failed(now)
		s.datagram.failed(now)
	}
	for range 20 {
		paths, allDown := g.order(nil, observe.UDP, now)
		if !allDown || paths[0].server != g.servers[1] {
			t.Fatal("the upstream that answered last is not the first hope")
		}
	}
	_, err := g.Exchange(context.Background(), Query{Msg: ask("two.example."), Proto: observe.UDP})
	var failed *Error
	if !errors.As(err, &failed) || !failed.AllDown || len(failed.Attempts) > g.config.MaxAttempts {
		t.Errorf("error %v", err)
	}

	fast := openGroup(t, GroupConfig{FailFast: true}, older, newer)
	for _, s := range fast.servers {
		s.datagram.failed(now)
		s.datagram.failed(now)
	}
	start := time.Now()
	_, err = fast.Exchange(context.Background(), Query{Msg: ask("three.example."), Proto: observe.UDP})
	if !errors.Is(err, ErrAllDown) || time.Since(start) > time.Second {
		t.Errorf("fail fast: %v after %s", err, time.Since(start))
	}
}

// TestMaxFailsZero: never in doubt, never probed.
func TestMaxFailsZero(t *testing.T) {
	f := startFake(t, false, silence)
	g := openGroup(t, GroupConfig{Budget: 500 * time.Millisecond, Servers: []ServerConfig{{Addr: f.addr, ReadTimeout: 200 * time.Millisecond}}})
	for i := range 3 {
		if _, err := g.Exchange(context.Background(), Query{Msg: ask(fmt.Sprintf("n%d.example.", i)), Proto: observe.UDP}); err == nil {
			t.Error("a silent upstream answered")
		}
	}
	if s := standingOf(g, f, observe.UDP); s != "healthy" {
		t.Errorf("the upstream is %s", s)
	}
	if s := g.stat(f, observe.UDP); s.Probes != [observe.NumOutcomes]uint64{} {
		t.Errorf("probes %v", s.Probes)
	}
}

// TestProbe asks what the configuration says.
func TestProbe(t *testing.T) {
	probes := make(chan *dns.Msg, 100)
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		if m.Question[0].Qtype == dns.TypeNS {
			probes <- m
		}
		return fault{drop: true}
	})
	health := NewHealth()
	health.Domain, health.NoRecursion, health.Interval = "probe.example.", true, 50*time.Millisecond
	g := openGroup(t, GroupConfig{Budget: 400 * time.Millisecond, Servers: []ServerConfig{{Addr: f.addr, Health: health}}})
	g.Exchange(context.Background(), Query{Msg: ask("a.example."), Proto: observe.UDP})
	m := <-probes
	if m.Question[0].Name != "probe.example." || m.RecursionDesired {
		t.Errorf("probe %v", m)
	}
	<-probes
}

// TestFrozenConnections: connections that worked reach nothing any more, as when the kube-dns pod behind a Service
// dies. It is the only upstream; new connections reach another pod.
func TestFrozenConnections(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	for i := range 10 {
		g.mustAnswer(t, fmt.Sprintf("warm%d.example.", i), observe.TCP)
	}
	f.frozen.Store(f.dials.Load())
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			start := time.Now()
			g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP)
			if took := time.Since(start); took > 1500*time.Millisecond {
				t.Errorf("n%d took %s", i, took)
			}
		})
	}
	wg.Wait()
	start := time.Now()
	for i := range 20 {
		g.mustAnswer(t, fmt.Sprintf("later%d.example.", i), observe.TCP)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("20 questions after that took %s", took)
	}
}

// TestRetryTakesAnotherConnection: the upstream is far away, so that its connection does not count as
// late yet when the attempt on it does.
func TestRetryTakesAnotherConnection(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 60 * time.Millisecond} })
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	for i := range 20 {
		g.mustAnswer(t, fmt.Sprintf("warm%d.example.", i), observe.TCP)
	}
	f.frozen.Store(f.dials.Load())
	g.mustAnswer(t, "name.example.", observe.TCP)
	if sunk, frozen := f.sunk.Load(), f.frozen.Load(); sunk > frozen {
		t.Errorf("%d attempts on %d connections that lead nowhere", sunk, frozen)
	}
}

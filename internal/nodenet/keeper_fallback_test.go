package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

func servers(s ...string) []netip.AddrPort {
	var l []netip.AddrPort
	for _, a := range s {
		l = append(l, netip.MustParseAddrPort(a))
	}
	return l
}

func TestWithFallback(t *testing.T) {
	s := keeperSpec()
	got := s.WithFallback(
		servers("10.0.0.2:53", "10.0.0.2:53", "169.254.25.10:53", "127.0.0.1:53", "224.0.0.1:53", "0.0.0.0:53", "10.0.0.3:0", "[fd00::2]:53"),
		servers("10.0.0.2:53", "[fd00::2]:53"))
	if want := servers("10.0.0.2:53", "[fd00::2]:53"); !slices.Equal(got.Fallback, want) || got.FallbackTCP != nil {
		t.Errorf("UDP %v, TCP %v, want %v for both", got.Fallback, got.FallbackTCP, want)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if !slices.Equal(s.Fallback, keeperSpec().Fallback) {
		t.Error("the Spec itself has changed")
	}
	other := s.WithFallback(servers("10.0.0.2:5353"), servers("10.0.0.2:5354"))
	for _, r := range other.Plan(PlanOptions{}) {
		if want := map[rule.Proto]string{rule.UDP: "10.0.0.2:5353", rule.TCP: "10.0.0.2:5354"}[r.Proto]; r.Verdict == rule.DNAT && r.Targets[0].String() != want {
			t.Errorf("%s goes to %v, want %s", r.Proto, r.Targets, want)
		}
	}
}

// The targets change while the process runs: one change of the rules, none if nothing differs, and none by a process
// that is not the keeper.
func TestKeeperSetFallback(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	ctx := context.Background()
	nettest.Must(t, p.k.SetFallback(ctx, servers("10.0.0.9:53"), nil)) // nothing is in force
	spec := keeperSpec()
	p.start(spec)
	m.takeCalls()

	udp, tcp := servers("10.0.0.2:53", "10.0.0.3:53"), servers("10.0.0.2:5353")
	nettest.Must(t, p.k.SetFallback(ctx, udp, tcp))
	nettest.Must(t, p.k.SetFallback(ctx, udp, tcp))
	if calls := m.takeCalls(); !slices.Equal(calls, []string{"apply memory-auto normal"}) {
		t.Errorf("calls %q, want one change", calls)
	}
	want := spec.WithFallback(udp, tcp)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, want.Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	if s := p.k.Status(); len(s.Fallback) != 3 || !s.RulesInPlace {
		t.Errorf("status %+v", s)
	}
	if lines := p.log.All(); !strings.Contains(lines[len(lines)-1], "10.0.0.2:53, 10.0.0.3:53, 10.0.0.2:5353") {
		t.Errorf("log %q", lines)
	}

	// A Commit of something prepared before has the Spec's own servers, as written.
	nettest.Must(t, p.k.Prepare(ctx, spec))
	nettest.Must(t, p.k.SetFallback(ctx, servers("10.0.0.7:53"), nil))
	nettest.Must(t, p.k.Commit(ctx))
	if s := p.k.Status(); !slices.Equal(s.Fallback, spec.Fallback) {
		t.Errorf("fallback %v after a reload", s.Fallback)
	}

	newer := newProcess(t, n, m)
	newer.start(spec)
	m.takeCalls()
	nettest.Must(t, p.k.SetFallback(ctx, udp, nil))
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("%q by a process that does not keep the rules", calls)
	}
	newer.die()
	nettest.Must(t, p.k.checkRules(ctx)) // takes over, with its own servers
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, spec.WithFallback(udp, nil).Plan(PlanOptions{})) {
		t.Errorf("rules after the newer process has gone: %v", got)
	}

	nettest.Must(t, p.k.Close(ctx))
	if err := p.k.SetFallback(ctx, udp, nil); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Servers that could not be put in place are retried by Run, and draining continues.
func TestKeeperSetFallbackFails(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	ctx := context.Background()
	spec := keeperSpec()
	p.start(spec)
	broken := errors.New("broken for the test")
	m.set(func() { m.applyErr = broken })
	udp := servers("10.0.0.2:53")
	if err := p.k.SetFallback(ctx, udp, nil); !errors.Is(err, broken) {
		t.Fatalf("SetFallback: %v", err)
	}
	if p.k.Status().RulesInPlace {
		t.Error("the status says that the rules are in place")
	}
	m.set(func() { m.applyErr = nil })
	p.Run(n)
	want := spec.WithFallback(udp, nil)
	eventually(t, "Run puts them in place", func() bool {
		return sameRules(m.of(autoName, "nodelocaldns"), want.Plan(PlanOptions{})) && p.k.Status().RulesInPlace
	})
}

// A process that keeps the fallback starts with the servers that an earlier one learned, and keeps them across a
// reload that has learned nothing either. One that names its own servers, or none on purpose, does not.
func TestKeeperAdoptsFallback(t *testing.T) {
	ctx := context.Background()
	for _, backend := range append([]string{"memory"}, backends...) {
		t.Run(backend, func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			spec := keeperSpec()
			spec.Fallback, spec.KeepFallback = nil, true
			begin := func() *testProcess {
				p := newProcess(t, n, m)
				if backend != "memory" {
					fw := openBackend(t, backend, spec.Interface)
					p.k.cfg.Detect = func(context.Context, Choice, string, rule.Logger) (rule.Backend, string, error) {
						return fw, "the test asks for it", nil
					}
					p.k.cfg.All = func(context.Context, string) []rule.Backend { return []rule.Backend{fw} }
				}
				return p
			}
			udp := servers("10.0.0.2:53", "10.0.0.3:5353", "[fd00::2]:53")
			tcp := servers("10.0.0.2:54", "[fd00::3]:53")
			want := spec.WithFallback(udp, tcp)
			fallback := func(p *testProcess) string {
				t.Helper()
				p.k.mu.Lock()
				defer p.k.mu.Unlock()
				s := p.k.committed.spec
				return fmt.Sprint(s.Fallback, s.FallbackTCP)
			}
			first := begin()
			first.start(spec)
			if got := fallback(first); got != "[] []" {
				t.Errorf("%s without anything to adopt", got)
			}
			nettest.Must(t, first.k.SetFallback(ctx, udp, tcp))
			first.die()

			second := begin()
			second.start(spec)
			if got := fallback(second); got != fmt.Sprint(want.Fallback, want.FallbackTCP) {
				t.Errorf("the next process has %s, want %v %v", got, want.Fallback, want.FallbackTCP)
			}
			second.start(spec)
			if got := fallback(second); got != fmt.Sprint(want.Fallback, want.FallbackTCP) {
				t.Errorf("after a reload %s", got)
			}
			own := spec
			own.Fallback = servers("10.0.0.9:53")
			second.start(own)
			if got := fallback(second); got != "[10.0.0.9:53] []" {
				t.Errorf("%s in place of what the Spec names", got)
			}
			own.Fallback, own.KeepFallback = nil, false
			second.start(own)
			if got := fallback(second); got != "[] []" {
				t.Errorf("%s where none is wanted", got)
			}
		})
	}
}

// TestSetFallbackUnderTraffic makes a pod ask repeatedly while no socket is open and the servers change. Every query
// is answered by one of them, because there is no moment without rules.
func TestSetFallbackUnderTraffic(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			top := nettest.NewTopology(t)
			fw := openBackend(t, backend, "lc0")
			spec := testSpec()
			first, second := spec.WithFallback(spec.Fallback[:1], nil), spec.WithFallback(spec.Fallback[1:], nil)
			if len(spec.fallbackFor(spec.Addresses[0], rule.UDP)) != 2 {
				t.Fatal("the test needs two servers of the first address's family, and they to be the first")
			}
			for _, f := range spec.Fallback {
				top.DNS.Serve("dns-"+f.Addr().String(), f.String())
			}
			to := net.JoinHostPort(spec.Addresses[0].String(), "53")
			apply(t, fw, first.Plan(PlanOptions{}))
			stop, done := make(chan struct{}), make(chan struct{})
			answers := make(map[string]int)
			var asked atomic.Int32
			top.Pod.Go(func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
					}
					for _, network := range []string{"udp", "tcp"} {
						asked.Add(1)
						c, err := net.Dial(network, to)
						if err != nil {
							answers[err.Error()]++
							continue
						}
						answers[nettest.Ask(c)]++
						c.Close()
					}
				}
			})
			// On a busy machine the pod may not come to its turn while the servers change a dozen times.
			for i := 0; i < 12 || i < 500 && asked.Load() < 50; i++ {
				apply(t, fw, []Spec{second, first}[i%2].Plan(PlanOptions{}))
			}
			close(stop)
			<-done
			t.Logf("%v", answers)
			for _, f := range spec.Fallback[:2] {
				if answers["dns-"+f.Addr().String()] == 0 {
					t.Errorf("%s was never asked", f)
				}
				delete(answers, "dns-"+f.Addr().String())
			}
			if len(answers) > 0 {
				t.Errorf("not answered: %v", answers)
			}
		})
	}
}

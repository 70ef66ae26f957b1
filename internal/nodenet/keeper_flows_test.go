package nodenet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/conntrack"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/sockets"
	"localcache.dev/localcache/internal/nodenet/status"
)

// memoryFlows is connection tracking in memory: it is asked for services and has one entry for each.
type memoryFlows struct {
	mu      sync.Mutex
	asked   [][]conntrack.Service
	err     error
	found   int    // entries, in place of one for each service
	during  func() // while it is read
	deleted int
}

func (m *memoryFlows) table() conntrack.Table {
	return conntrack.Table{
		Find: func(_ context.Context, to []conntrack.Service) ([]conntrack.Flow, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.asked = append(m.asked, to)
			if m.during != nil {
				m.during()
			}
			n := len(to)
			if m.found > 0 {
				n = m.found
			}
			return make([]conntrack.Flow, n), m.err
		},
		Forget: func(_ context.Context, flows []conntrack.Flow) (int, error) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.deleted += len(flows)
			return len(flows), nil
		},
	}
}

func (m *memoryFlows) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// rounds returns how often the table was read, and forgotten how many entries were deleted.
func (m *memoryFlows) rounds() (n int) { m.set(func() { n = len(m.asked) }); return n }

func (m *memoryFlows) forgotten() (n int) { m.set(func() { n = m.deleted }); return n }

// flowsProcess returns a process with a connection tracking of its own, and its Spec.
func flowsProcess(t *testing.T, n *nettest.Namespace) (*testProcess, *memoryFlows, Spec) {
	t.Helper()
	p := newProcess(t, n, newMemory())
	m := &memoryFlows{}
	p.k.flows, p.k.flowsRest = m.table(), 20*time.Millisecond
	return p, m, keeperSpec()
}

// serve opens sockets at the addresses in the midst of a start, as a server does.
func (p *testProcess) Serve(n *nettest.Namespace, spec Spec, addrs ...netip.Addr) []*nettest.Server {
	p.t.Helper()
	ctx := context.Background()
	nettest.Must(p.t, p.k.Prepare(ctx, spec))
	all := openSockets(p.t, n, addrs...)
	nettest.Must(p.t, p.k.Commit(ctx))
	return all
}

// forgetOld does at once what the keeper does after a rest.
func (p *testProcess) forgetOld(ctx context.Context) (n int, more bool, err error) {
	select {
	case <-p.k.wakeFlows:
	default:
	}
	return p.k.forgetOldOnce(ctx)
}

func servicesAt(port uint16, protos []rule.Proto, addrs ...netip.Addr) (s []conntrack.Service) {
	for _, a := range addrs {
		for _, p := range protos {
			s = append(s, conntrack.Service{Proto: p, At: netip.AddrPortFrom(a, port)})
		}
	}
	return s
}

// openSockets opens a server's sockets at the addresses, until the end of the test at the latest.
func openSockets(t *testing.T, n *nettest.Namespace, addrs ...netip.Addr) (all []*nettest.Server) {
	t.Helper()
	for _, a := range addrs {
		all = append(all, n.Serve("local", net.JoinHostPort(a.String(), "53")))
	}
	return all
}

// Old entries are deleted once rules and sockets are there, after a repair and a reload again, and at no other time.
func TestKeeperForgetsFlows(t *testing.T) {
	n := nettest.NewNamespace(t)
	p, m, spec := flowsProcess(t, n)
	ctx := context.Background()
	p.Serve(n, spec, nettest.Both...)
	p.Run(n)
	forgotten := func(times int) {
		t.Helper()
		eventually(t, "the entries are forgotten", func() bool { return m.forgotten() == 4*times })
		time.Sleep(100 * time.Millisecond)
		if got := m.rounds(); got != times {
			t.Errorf("read %d times, want %d", got, times)
		}
	}
	forgotten(1)
	if want := servicesAt(53, []rule.Proto{rule.UDP, rule.TCP}, nettest.Both...); !slices.Equal(m.asked[0], want) {
		t.Errorf("asked for %v, want %v", m.asked[0], want)
	}
	p.start(spec)
	forgotten(2)
	fw := p.k.committed.fw.(memoryBackend)
	fw.m.set(func() { clear(fw.m.rules) })
	nettest.Must(t, p.k.checkRules(ctx))
	forgotten(3)
	nettest.Must(t, p.k.checkRules(ctx))
	nettest.Must(t, p.k.SetFallback(ctx, servers("10.0.0.9:53"), nil))
	forgotten(3)
	if lines := strings.Join(p.log.All(), "\n"); strings.Count(lines, "has forgotten 4 flows") != 3 {
		t.Errorf("log:\n%s", lines)
	}
}

// Services that no socket of this process answers belong to the fallback, and their entries stay.
func TestKeeperForgetsOwnFlowsOnly(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec, *testProcess)
		open   func(t *testing.T, n *nettest.Namespace)
		want   []conntrack.Service
	}{
		{"no sockets", nil, func(*testing.T, *nettest.Namespace) {}, nil},
		{"one address of two", nil, func(t *testing.T, n *nettest.Namespace) { openSockets(t, n, nettest.Both[1]) }, servicesAt(53, []rule.Proto{rule.UDP, rule.TCP}, nettest.Both[1])},
		{"another port", func(s *Spec, _ *testProcess) { s.Port = 54 }, func(t *testing.T, n *nettest.Namespace) { openSockets(t, n, nettest.Both...) }, nil},
		{"somebody's wildcard sockets", nil, func(_ *testing.T, n *nettest.Namespace) { n.Serve("other", "[::]:53") }, nil},
		{"our wildcard sockets", func(s *Spec, _ *testProcess) { s.Wildcard = true },
			func(_ *testing.T, n *nettest.Namespace) { n.Serve("local", "[::]:53") }, servicesAt(53, []rule.Proto{rule.UDP, rule.TCP}, nettest.Both...)},
		{"our wildcard sockets of IPv4", func(s *Spec, _ *testProcess) { s.Wildcard = true },
			func(_ *testing.T, n *nettest.Namespace) { n.Serve("local", "0.0.0.0:53") }, servicesAt(53, []rule.Proto{rule.UDP, rule.TCP}, nettest.Both[0])},
		{"UDP left", nil, func(t *testing.T, n *nettest.Namespace) {
			openSockets(t, n, nettest.Both[0])
			if left, err := sockets.LeaveUDP(nettest.Both, 53, false); left != 1 || err != nil {
				t.Fatalf("left %d sockets: %v", left, err)
			}
		}, servicesAt(53, []rule.Proto{rule.TCP}, nettest.Both[0])},
		{"no rules", func(s *Spec, _ *testProcess) { s.Notrack, s.Fallback = ChoiceOff, nil },
			func(t *testing.T, n *nettest.Namespace) { openSockets(t, n, nettest.Both...) }, nil},
		{"no socket match", func(_ *Spec, p *testProcess) { p.m.noSocket = errors.New("none in the test") },
			func(t *testing.T, n *nettest.Namespace) { openSockets(t, n, nettest.Both...) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nettest.NewNamespace(t)
			p, m, spec := flowsProcess(t, n)
			if c.change != nil {
				c.change(&spec, p)
			}
			ctx := context.Background()
			nettest.Must(t, p.k.Prepare(ctx, spec))
			c.open(t, n)
			nettest.Must(t, p.k.Commit(ctx))
			got, _, err := p.forgetOld(ctx)
			nettest.Must(t, err)
			if got != len(c.want) {
				t.Errorf("%d entries forgotten, want %d", got, len(c.want))
			}
			var asked []conntrack.Service
			if len(m.asked) > 0 {
				asked = m.asked[0]
			}
			if !slices.Equal(asked, c.want) {
				t.Errorf("asked for %v, want %v", asked, c.want)
			}
		})
	}
}

// The fallback serves, or another process is the keeper: nothing is deleted, even if that begins while the table is
// read.
func TestKeeperForgetsNothingInUse(t *testing.T) {
	for _, late := range []bool{false, true} {
		for name, change := range map[string]func(p *testProcess, n *nettest.Namespace, local []*nettest.Server){
			"draining": func(p *testProcess, _ *nettest.Namespace, _ []*nettest.Server) {
				nettest.Must(p.t, p.k.Drain(context.Background()))
			},
			"closed": func(p *testProcess, _ *nettest.Namespace, _ []*nettest.Server) {
				nettest.Must(p.t, p.k.Close(context.Background()))
			},
			"a socket closed": func(_ *testProcess, _ *nettest.Namespace, local []*nettest.Server) {
				local[0].Close()
			},
			"a newer process": func(p *testProcess, n *nettest.Namespace, _ []*nettest.Server) {
				newProcess(p.t, n, p.m).start(keeperSpec())
			},
		} {
			t.Run(name, func(t *testing.T) {
				n := nettest.NewNamespace(t)
				p, m, spec := flowsProcess(t, n)
				ctx := context.Background()
				local := p.Serve(n, spec, nettest.Both...)
				if late {
					m.during = func() { change(p, n, local) }
				} else {
					change(p, n, local)
					nettest.Must(t, p.k.checkRules(ctx)) // learns of other processes
				}
				got, _, err := p.forgetOld(ctx)
				nettest.Must(t, err)
				want := 0
				if name == "a socket closed" && !late {
					want = 2 // those of the other address
				}
				if got != want || m.forgotten() != want {
					t.Errorf("%d entries were forgotten, want %d", m.forgotten(), want)
				}
			})
		}
	}
}

// Another program has just damaged the rules, which no check has found yet: the fallback may use entries of the
// table. After the repair it is tried again.
func TestKeeperForgetsNothingWhileDamaged(t *testing.T) {
	n := nettest.NewNamespace(t)
	p, m, spec := flowsProcess(t, n)
	ctx := context.Background()
	p.Serve(n, spec, nettest.Both...)
	fw := p.k.committed.fw.(memoryBackend)
	fw.m.set(func() { clear(fw.m.rules) })
	if got, more, err := p.forgetOld(ctx); got != 0 || m.forgotten() != 0 || !more || err != nil {
		t.Errorf("%d forgotten, %d deleted, more %v, %v", got, m.forgotten(), more, err)
	}
	nettest.Must(t, p.k.checkRules(ctx))
	if got, more, err := p.k.forgetOldOnce(ctx); got != 0 || m.forgotten() != 0 || !more || err != nil {
		t.Errorf("right after the repair: %d forgotten, %d deleted, more %v, %v", got, m.forgotten(), more, err)
	}
	if got, more, err := p.forgetOld(ctx); got != 4 || m.forgotten() != 4 || more || err != nil {
		t.Errorf("later: %d forgotten, %d deleted, more %v, %v", got, m.forgotten(), more, err)
	}
}

// Each repair begins the rest anew.
func TestFlowsRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := &Keeper{wakeFlows: make(chan struct{}, 1), flowsRest: flowsRest}
		go func() {
			for range 3 {
				time.Sleep(flowsRest - time.Second)
				nudge(k.wakeFlows)
			}
		}()
		began := time.Now()
		if !k.rest(t.Context()) {
			t.Error("it has ended")
		}
		if took, want := time.Since(began), 3*(flowsRest-time.Second)+flowsRest; took != want {
			t.Errorf("it took %v, want %v", took, want)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if k.rest(ctx) {
			t.Error("it does not end")
		}
	})
}

// A kernel without the feature is reported once and counted each time, and nothing else suffers.
func TestKeeperCannotForgetFlows(t *testing.T) {
	n := nettest.NewNamespace(t)
	p, m, spec := flowsProcess(t, n)
	m.err = conntrack.Explain(unix.EPERM)
	p.Serve(n, spec, nettest.Both...)
	p.Run(n)
	counted := func(want uint64) {
		t.Helper()
		eventually(t, "it is counted", func() bool { return p.k.Status().Errors[status.ErrorConntrack] == want })
	}
	counted(1)
	time.Sleep(100 * time.Millisecond)
	counted(1) // it is not retried automatically
	p.start(spec)
	counted(2)
	if s := p.k.Status(); !s.RulesInPlace || !strings.Contains(s.LastError, "NET_ADMIN") {
		t.Errorf("status %+v", s)
	}
	m.set(func() { m.err = nil })
	p.start(spec)
	eventually(t, "the entries are forgotten", func() bool { return m.forgotten() == 4 })
	warnings := 0
	for _, line := range p.log.All() {
		if strings.HasPrefix(line, "WARN") {
			warnings++
		}
	}
	if warnings != 1 {
		t.Errorf("%d warnings, want 1", warnings)
	}
}

// More entries than are held at a time take several rounds.
func TestKeeperForgetsManyFlows(t *testing.T) {
	n := nettest.NewNamespace(t)
	p, m, spec := flowsProcess(t, n)
	m.found = conntrack.MaxFlows
	p.Serve(n, spec, nettest.Both[0])
	p.Run(n)
	eventually(t, "there is a second round", func() bool { return m.rounds() >= 2 })
	m.set(func() { m.found = 1 })
	eventually(t, "the last is forgotten", func() bool { return m.forgotten()%conntrack.MaxFlows == 1 })
}

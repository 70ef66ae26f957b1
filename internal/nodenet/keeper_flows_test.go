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
)

// memoryFlows is connection tracking in memory: it is asked for services and has one entry for each.
type memoryFlows struct {
	mu      sync.Mutex
	asked   [][]service
	err     error
	found   int    // entries, in place of one for each service
	during  func() // while it is read
	deleted int
}

func (m *memoryFlows) table() flowTable {
	return flowTable{
		find: func(_ context.Context, to []service) ([]flow, error) {
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
			return make([]flow, n), m.err
		},
		forget: func(_ context.Context, flows []flow) (int, error) {
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

// rounds is how often the table was read, and forgotten how many entries were deleted.
func (m *memoryFlows) rounds() (n int) { m.set(func() { n = len(m.asked) }); return n }

func (m *memoryFlows) forgotten() (n int) { m.set(func() { n = m.deleted }); return n }

// flowsProcess is a process with a connection tracking of its own, and what it is to serve.
func flowsProcess(t *testing.T, n *namespace) (*process, *memoryFlows, Spec) {
	t.Helper()
	p := newProcess(t, n, newMemory())
	m := &memoryFlows{}
	p.k.flows, p.k.flowsRest = m.table(), 20*time.Millisecond
	return p, m, keeperSpec()
}

// serve opens sockets at the addresses in the midst of a start, as a server does.
func (p *process) serve(n *namespace, spec Spec, addrs ...netip.Addr) []*server {
	p.t.Helper()
	ctx := context.Background()
	must(p.t, p.k.Prepare(ctx, spec))
	all := openSockets(p.t, n, addrs...)
	must(p.t, p.k.Commit(ctx))
	return all
}

// forgetOld does at once what the keeper does after a rest.
func (p *process) forgetOld(ctx context.Context) (n int, more bool, err error) {
	select {
	case <-p.k.wakeFlows:
	default:
	}
	return p.k.forgetOldOnce(ctx)
}

func servicesAt(port uint16, protos []Proto, addrs ...netip.Addr) (s []service) {
	for _, a := range addrs {
		for _, p := range protos {
			s = append(s, service{p, netip.AddrPortFrom(a, port)})
		}
	}
	return s
}

// openSockets opens what a server has open at the addresses, until the end of the test at the latest.
func openSockets(t *testing.T, n *namespace, addrs ...netip.Addr) (all []*server) {
	t.Helper()
	for _, a := range addrs {
		all = append(all, n.serve("local", net.JoinHostPort(a.String(), "53")))
	}
	return all
}

// Old entries are deleted once rules and sockets are there, after a repair and a reload again, and at no other time.
func TestKeeperForgetsFlows(t *testing.T) {
	n := newNamespace(t)
	p, m, spec := flowsProcess(t, n)
	ctx := context.Background()
	p.serve(n, spec, both...)
	p.run(n)
	forgotten := func(times int) {
		t.Helper()
		eventually(t, "the entries are forgotten", func() bool { return m.forgotten() == 4*times })
		time.Sleep(100 * time.Millisecond)
		if got := m.rounds(); got != times {
			t.Errorf("read %d times, want %d", got, times)
		}
	}
	forgotten(1)
	if want := servicesAt(53, []Proto{UDP, TCP}, both...); !slices.Equal(m.asked[0], want) {
		t.Errorf("asked for %v, want %v", m.asked[0], want)
	}
	p.start(spec)
	forgotten(2)
	fw := p.k.committed.fw.(memoryFirewall)
	fw.m.set(func() { clear(fw.m.rules) })
	must(t, p.k.checkRules(ctx))
	forgotten(3)
	must(t, p.k.checkRules(ctx))
	must(t, p.k.SetFallback(ctx, servers("10.0.0.9:53"), nil))
	forgotten(3)
	if lines := strings.Join(p.log.all(), "\n"); strings.Count(lines, "has forgotten 4 flows") != 3 {
		t.Errorf("log:\n%s", lines)
	}
}

// What no socket of this process answers is the fallback's, and its entries stay.
func TestKeeperForgetsOwnFlowsOnly(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Spec, *process)
		open   func(t *testing.T, n *namespace)
		want   []service
	}{
		{"no sockets", nil, func(*testing.T, *namespace) {}, nil},
		{"one address of two", nil, func(t *testing.T, n *namespace) { openSockets(t, n, both[1]) }, servicesAt(53, []Proto{UDP, TCP}, both[1])},
		{"another port", func(s *Spec, _ *process) { s.Port = 54 }, func(t *testing.T, n *namespace) { openSockets(t, n, both...) }, nil},
		{"somebody's wildcard sockets", nil, func(_ *testing.T, n *namespace) { n.serve("other", "[::]:53") }, nil},
		{"our wildcard sockets", func(s *Spec, _ *process) { s.Wildcard = true },
			func(_ *testing.T, n *namespace) { n.serve("local", "[::]:53") }, servicesAt(53, []Proto{UDP, TCP}, both...)},
		{"our wildcard sockets of IPv4", func(s *Spec, _ *process) { s.Wildcard = true },
			func(_ *testing.T, n *namespace) { n.serve("local", "0.0.0.0:53") }, servicesAt(53, []Proto{UDP, TCP}, both[0])},
		{"UDP left", nil, func(t *testing.T, n *namespace) {
			openSockets(t, n, both[0])
			if left, err := leaveUDP(both, 53, false); left != 1 || err != nil {
				t.Fatalf("left %d sockets: %v", left, err)
			}
		}, servicesAt(53, []Proto{TCP}, both[0])},
		{"no rules", func(s *Spec, _ *process) { s.Notrack, s.Fallback = ChoiceOff, nil },
			func(t *testing.T, n *namespace) { openSockets(t, n, both...) }, nil},
		{"no socket match", func(_ *Spec, p *process) { p.m.noSocket = errors.New("none in the test") },
			func(t *testing.T, n *namespace) { openSockets(t, n, both...) }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNamespace(t)
			p, m, spec := flowsProcess(t, n)
			if c.change != nil {
				c.change(&spec, p)
			}
			ctx := context.Background()
			must(t, p.k.Prepare(ctx, spec))
			c.open(t, n)
			must(t, p.k.Commit(ctx))
			got, _, err := p.forgetOld(ctx)
			must(t, err)
			if got != len(c.want) {
				t.Errorf("%d entries forgotten, want %d", got, len(c.want))
			}
			var asked []service
			if len(m.asked) > 0 {
				asked = m.asked[0]
			}
			if !slices.Equal(asked, c.want) {
				t.Errorf("asked for %v, want %v", asked, c.want)
			}
		})
	}
}

// The fallback serves, or another process has the say: nothing is forgotten, not even if that comes to be while the
// table is read.
func TestKeeperForgetsNothingInUse(t *testing.T) {
	for _, late := range []bool{false, true} {
		for name, change := range map[string]func(p *process, n *namespace, local []*server){
			"draining": func(p *process, _ *namespace, _ []*server) { must(p.t, p.k.Drain(context.Background())) },
			"closed":   func(p *process, _ *namespace, _ []*server) { must(p.t, p.k.Close(context.Background())) },
			"a socket closed": func(_ *process, _ *namespace, local []*server) {
				local[0].close()
			},
			"a newer process": func(p *process, n *namespace, _ []*server) {
				newProcess(p.t, n, p.m).start(keeperSpec())
			},
		} {
			t.Run(name, func(t *testing.T) {
				n := newNamespace(t)
				p, m, spec := flowsProcess(t, n)
				ctx := context.Background()
				local := p.serve(n, spec, both...)
				if late {
					m.during = func() { change(p, n, local) }
				} else {
					change(p, n, local)
					must(t, p.k.checkRules(ctx)) // learns of other processes
				}
				got, _, err := p.forgetOld(ctx)
				must(t, err)
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

// Another program has just damaged the rules, which no check has found yet: the fallback may have taken up what is in
// the table. After the repair it is tried again.
func TestKeeperForgetsNothingWhileDamaged(t *testing.T) {
	n := newNamespace(t)
	p, m, spec := flowsProcess(t, n)
	ctx := context.Background()
	p.serve(n, spec, both...)
	fw := p.k.committed.fw.(memoryFirewall)
	fw.m.set(func() { clear(fw.m.rules) })
	if got, more, err := p.forgetOld(ctx); got != 0 || m.forgotten() != 0 || !more || err != nil {
		t.Errorf("%d forgotten, %d deleted, more %v, %v", got, m.forgotten(), more, err)
	}
	must(t, p.k.checkRules(ctx))
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

// A kernel without the means is told of once and counted each time, and takes nothing else away.
func TestKeeperCannotForgetFlows(t *testing.T) {
	n := newNamespace(t)
	p, m, spec := flowsProcess(t, n)
	m.err = explainConntrack(unix.EPERM)
	p.serve(n, spec, both...)
	p.run(n)
	counted := func(want uint64) {
		t.Helper()
		eventually(t, "it is counted", func() bool { return p.k.Status().Errors[ErrorConntrack] == want })
	}
	counted(1)
	time.Sleep(100 * time.Millisecond)
	counted(1) // it is not tried again by itself
	p.start(spec)
	counted(2)
	if s := p.k.Status(); !s.RulesInPlace || !strings.Contains(s.LastError, "NET_ADMIN") {
		t.Errorf("status %+v", s)
	}
	m.set(func() { m.err = nil })
	p.start(spec)
	eventually(t, "the entries are forgotten", func() bool { return m.forgotten() == 4 })
	warnings := 0
	for _, line := range p.log.all() {
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
	n := newNamespace(t)
	p, m, spec := flowsProcess(t, n)
	m.found = maxFlows
	p.serve(n, spec, both[0])
	p.run(n)
	eventually(t, "there is a second round", func() bool { return m.rounds() >= 2 })
	m.set(func() { m.found = 1 })
	eventually(t, "the last is forgotten", func() bool { return m.forgotten()%maxFlows == 1 })
}

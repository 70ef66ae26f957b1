package nodenet

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/status"
)

// otherSpec is the Spec of a process of another version: one address less and one more, other rules.
func otherSpec() Spec {
	s := keeperSpec()
	s.Addresses = []netip.Addr{nettest.Local4, nettest.Local4b}
	s.Fallback = []netip.AddrPort{netip.MustParseAddrPort("10.244.9.9:53")}
	return s
}

func checkNow(t *testing.T, p *testProcess) {
	t.Helper()
	nettest.Must(t, p.k.checkRules(context.Background()))
}

// The second of two processes comes, fails or serves, and goes: the first one's state stays, whatever on_exit says.
func TestKeeperSecondOfTwoEnds(t *testing.T) {
	for _, serves := range []bool{false, true} {
		n := nettest.NewNamespace(t)
		m := newMemory()
		ctx := context.Background()
		first, second := newProcess(t, n, m), newProcess(t, n, m)
		first.start(keeperSpec())
		spec := otherSpec()
		spec.OnExit = ExitRemove
		nettest.Must(t, second.k.Prepare(ctx, spec))
		if serves {
			nettest.Must(t, second.k.Commit(ctx))
			nettest.Must(t, second.k.Drain(ctx))
			if second.k.Status().Draining {
				t.Error("new queries are led away from the first, which could answer them")
			}
			nettest.Must(t, second.k.Close(ctx))
		} else {
			nettest.Must(t, second.k.Rollback(ctx))
			// Whether another process has come to want it is not for the second to know.
			if got := nettest.AddrsOn(t, "nodelocaldns"); len(got) != 3 {
				t.Errorf("removed while another process is there: %v are left", got)
			}
		}
		server := nettest.Echo(t, nettest.Local6)
		if err := nettest.AskEcho(server); err != nil {
			t.Errorf("the first one's address: %v", err)
		}
		checkNow(t, first)
		if got := m.of(autoName, "nodelocaldns"); !sameRules(got, keeperSpec().Plan(PlanOptions{})) {
			t.Errorf("served %v: rules %v", serves, got)
		}
		// What only the second one wanted is removed with it.
		if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32", "fd00:10::10/128"}) {
			t.Errorf("served %v: addresses %v", serves, got)
		}
		nettest.Must(t, first.k.Close(ctx))
	}
}

// The first of two goes, as in an upgrade by surge: what the second one needs stays.
func TestKeeperFirstOfTwoEnds(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	ctx := context.Background()
	first, second := newProcess(t, n, m), newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	first.start(spec)
	second.start(otherSpec())
	if got := nettest.AddrsOn(t, "nodelocaldns"); len(got) != 3 {
		t.Errorf("while both serve: %v", got)
	}
	m.takeCalls()
	nettest.Must(t, first.k.Drain(ctx))
	nettest.Must(t, first.k.Close(ctx))
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("the first changed rules at its end: %q", calls)
	}
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, otherSpec().Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	if !slices.ContainsFunc(first.log.All(), func(l string) bool { return strings.Contains(l, "left to another localcache process") }) {
		t.Error("the first does not say why it left everything")
	}
	checkNow(t, second)
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.96.0.10/32", "169.254.25.10/32"}) {
		t.Errorf("addresses after the next check: %v", got)
	}
}

// Both repair the link; only the newest repairs the rules, until it dies.
func TestKeeperNewestRepairs(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	ctx := context.Background()
	first, second := newProcess(t, n, m), newProcess(t, n, m)
	first.start(keeperSpec())
	second.start(otherSpec())
	checkNow(t, first)
	if first.k.Status().Keeper || !second.k.Status().Keeper {
		t.Error("the older one takes itself for the keeper")
	}
	m.takeCalls()
	nettest.Must(t, first.k.Commit(ctx)) // a reload of the older
	checkNow(t, first)
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("the older one changed rules: %q", calls)
	}
	m.set(func() { clear(m.rules) })
	checkNow(t, first)
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("the older one repaired rules: %q", calls)
	}
	checkNow(t, second)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, otherSpec().Plan(PlanOptions{})) {
		t.Errorf("the newest did not repair: %v", got)
	}

	// Each restores its own addresses.
	l, err := netlink.LinkByName("nodelocaldns")
	nettest.Must(t, err)
	nettest.Must(t, netlink.LinkDel(l))
	first.Run(n)
	stopSecond := second.Run(n)
	eventually(t, "all three addresses are back", func() bool {
		return nettest.LinkExists(t, "nodelocaldns") && len(nettest.AddrsOn(t, "nodelocaldns")) == 3
	})

	stopSecond()
	second.die()
	eventually(t, "the older one keeps the rules", func() bool {
		return first.k.Status().Keeper && sameRules(m.of(autoName, "nodelocaldns"), keeperSpec().Plan(PlanOptions{}))
	})
	if s := first.k.Status(); s.Repairs[status.RepairRules] != 0 {
		t.Error("what is only a change of the keeper counts as a repair")
	}
}

// A new process that never serves, for example in a crash loop, does not end repairs, and does not keep the only
// serving process from draining; what it needs is not removed.
func TestKeeperBesideOneThatOnlyStarts(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	ctx := context.Background()
	first, second := newProcess(t, n, m), newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	first.start(spec)
	nettest.Must(t, second.k.Prepare(ctx, keeperSpec()))
	m.set(func() { clear(m.rules) })
	checkNow(t, first)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, keeperSpec().Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	m.takeCalls()
	nettest.Must(t, first.k.Drain(ctx))
	nettest.Must(t, first.k.Close(ctx))
	want := []string{"apply memory-auto draining", "apply memory-auto normal"}
	if calls := m.takeCalls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	if !nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface was removed under the newcomer")
	}
}

// A lock that is never released costs time, but does not prevent the work.
func TestKeeperSquattedLock(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	unlock, err := (&process.Presence{Owner: "nodelocaldns"}).Lock(context.Background())
	nettest.Must(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	nettest.Must(t, p.k.Prepare(ctx, keeperSpec()))
	if s := p.k.Status(); s.Errors[status.ErrorPresence] != 1 || len(nettest.AddrsOn(t, "nodelocaldns")) != 2 {
		t.Errorf("status %+v", s)
	}
}

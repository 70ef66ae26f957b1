package nodenet

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// otherSpec is that of a process of another version: one address less and one more, other rules.
func otherSpec() Spec {
	s := keeperSpec()
	s.Addresses = []netip.Addr{local4, local4b}
	s.Fallback = []netip.AddrPort{netip.MustParseAddrPort("10.244.9.9:53")}
	return s
}

func checkNow(t *testing.T, p *process) {
	t.Helper()
	must(t, p.k.checkRules(context.Background()))
}

// The second of two processes comes, fails or serves, and goes: the first one's state stays whatever
// it is told to do at its end.
func TestKeeperSecondGoes(t *testing.T) {
	for _, serves := range []bool{false, true} {
		n := newNamespace(t)
		m := newMemory()
		ctx := context.Background()
		first, second := newProcess(t, n, m), newProcess(t, n, m)
		first.start(keeperSpec())
		spec := otherSpec()
		spec.OnExit = ExitRemove
		must(t, second.k.Prepare(ctx, spec))
		if serves {
			must(t, second.k.Commit(ctx))
			must(t, second.k.Drain(ctx))
			if second.k.Status().Draining {
				t.Error("new queries are led away from the first, which could answer them")
			}
			must(t, second.k.Close(ctx))
		} else {
			must(t, second.k.Rollback(ctx))
			// Whether another process has come to want it is not for the second to know.
			if got := addrsOn(t, "nodelocaldns"); len(got) != 3 {
				t.Errorf("removed while another process is there: %v are left", got)
			}
		}
		server := echo(t, local6)
		if err := askEcho(server); err != nil {
			t.Errorf("the first one's address: %v", err)
		}
		checkNow(t, first)
		if got := m.of(autoName, "nodelocaldns"); !sameRules(got, keeperSpec().Plan(PlanOptions{})) {
			t.Errorf("served %v: rules %v", serves, got)
		}
		// What only the second wanted goes when it is gone.
		if got := addrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32", "fd00:10::10/128"}) {
			t.Errorf("served %v: addresses %v", serves, got)
		}
		must(t, first.k.Close(ctx))
	}
}

// The first of two goes, as in an upgrade by surge: what the second needs stays.
func TestKeeperFirstGoes(t *testing.T) {
	n := newNamespace(t)
	m := newMemory()
	ctx := context.Background()
	first, second := newProcess(t, n, m), newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	first.start(spec)
	second.start(otherSpec())
	if got := addrsOn(t, "nodelocaldns"); len(got) != 3 {
		t.Errorf("while both serve: %v", got)
	}
	m.takeCalls()
	must(t, first.k.Drain(ctx))
	must(t, first.k.Close(ctx))
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("the first changed rules at its end: %q", calls)
	}
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, otherSpec().Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	if !slices.ContainsFunc(first.log.all(), func(l string) bool { return strings.Contains(l, "left to another localcache process") }) {
		t.Error("the first does not say why it left everything")
	}
	checkNow(t, second)
	if got := addrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.96.0.10/32", "169.254.25.10/32"}) {
		t.Errorf("addresses after the next check: %v", got)
	}
}

// Both repair the link; the newest alone repairs the rules, until it dies.
func TestKeeperNewestRepairs(t *testing.T) {
	n := newNamespace(t)
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
	must(t, first.k.Commit(ctx)) // a reload of the older
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

	// Each puts back its own addresses.
	l, err := netlink.LinkByName("nodelocaldns")
	must(t, err)
	must(t, netlink.LinkDel(l))
	first.run(n)
	stopSecond := second.run(n)
	eventually(t, "all three addresses are back", func() bool {
		return linkExists(t, "nodelocaldns") && len(addrsOn(t, "nodelocaldns")) == 3
	})

	stopSecond()
	second.die()
	eventually(t, "the older one keeps the rules", func() bool {
		return first.k.Status().Keeper && sameRules(m.of(autoName, "nodelocaldns"), keeperSpec().Plan(PlanOptions{}))
	})
	if s := first.k.Status(); s.Repairs[RepairRules] != 0 {
		t.Error("what is only a change of the keeper counts as a repair")
	}
}

// A newcomer that never comes to serve, such as one in a crash loop, does not end repairs, nor does it
// keep a sole serving process from draining; what it needs is not removed.
func TestKeeperBesideOneThatOnlyStarts(t *testing.T) {
	n := newNamespace(t)
	m := newMemory()
	ctx := context.Background()
	first, second := newProcess(t, n, m), newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	first.start(spec)
	must(t, second.k.Prepare(ctx, keeperSpec()))
	m.set(func() { clear(m.rules) })
	checkNow(t, first)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, keeperSpec().Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	m.takeCalls()
	must(t, first.k.Drain(ctx))
	must(t, first.k.Close(ctx))
	want := []string{"apply memory-auto draining", "apply memory-auto normal"}
	if calls := m.takeCalls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	if !linkExists(t, "nodelocaldns") {
		t.Error("the interface was removed under the newcomer")
	}
}

// A lock that is never given back costs time, not the work.
func TestKeeperSquattedLock(t *testing.T) {
	n := newNamespace(t)
	p := newProcess(t, n, newMemory())
	unlock, err := (&presence{owner: "nodelocaldns"}).lock(context.Background())
	must(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	must(t, p.k.Prepare(ctx, keeperSpec()))
	if s := p.k.Status(); s.Errors[ErrorPresence] != 1 || len(addrsOn(t, "nodelocaldns")) != 2 {
		t.Errorf("status %+v", s)
	}
}

package nodenet

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
)

// nodeCache starts a process that answers at addr and announces no name.
func nodeCache(t *testing.T, addr netip.Addr) (end func()) {
	t.Helper()
	_, end = nettest.StartChild(t, nettest.ChildSpec{Listen: []netip.AddrPort{netip.AddrPortFrom(addr, process.DNSPort)}})
	return end
}

func countLines(lines []string, has string) int {
	n := 0
	for _, l := range lines {
		if strings.Contains(l, has) {
			n++
		}
	}
	return n
}

// An address that no localcache process wants stays while another process has a socket on it.
func TestKeeperSurplusHeld(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	first := newProcess(t, n, m)
	first.start(otherSpec()) // with 10.96.0.10
	first.die()
	end := nodeCache(t, nettest.Local4b)

	p := newProcess(t, n, m)
	p.start(keeperSpec())
	for range 3 {
		checkNow(t, p)
	}
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Contains(got, "10.96.0.10/32") {
		t.Errorf("it was taken from a living process: %v are left", got)
	}
	if n := countLines(p.log.All(), "at 10.96.0.10:53"); n != 1 {
		t.Errorf("said %d times why it stays, want once", n)
	}
	end()
	checkNow(t, p)
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32", "fd00:10::10/128"}) {
		t.Errorf("when the process has ended: %v", got)
	}
}

// At its end a process removes nothing that another one uses for its answers, be it an address of its own or one that
// it left to the other.
func TestKeeperEndHeld(t *testing.T) {
	for _, addr := range []netip.Addr{nettest.Local4, nettest.Local4b} {
		t.Run(addr.String(), func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			ctx := context.Background()
			first := newProcess(t, n, m)
			first.start(otherSpec())
			first.die()
			nodeCache(t, addr)
			p := newProcess(t, n, m)
			spec := keeperSpec()
			spec.OnExit = ExitRemove
			p.start(spec)
			before := nettest.AddrsOn(t, "nodelocaldns")
			nettest.Must(t, p.k.Drain(ctx))
			nettest.Must(t, p.k.Close(ctx))
			if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, before) {
				t.Errorf("addresses %v, before %v", got, before)
			}
			if got := m.of(autoName, "nodelocaldns"); !sameRules(got, spec.Plan(PlanOptions{})) {
				t.Errorf("rules %v", got)
			}
			if countLines(p.log.All(), "`localcache teardown`") != 1 {
				t.Error("it does not say what is left and what to do")
			}
		})
	}
}

// A start that fails removes what it created, except what another process has begun to use.
func TestKeeperUndoHeld(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	nettest.Must(t, p.k.Prepare(context.Background(), keeperSpec()))
	nodeCache(t, nettest.Local4)
	nettest.Must(t, p.k.Rollback(context.Background()))
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32"}) {
		t.Errorf("addresses %v", got)
	}
}

// A start beside a newer process logs once that the rules belong to that one.
func TestKeeperStartsBesideNewer(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p, newer := newProcess(t, n, m), newProcess(t, n, m)
	nettest.Must(t, p.k.Prepare(context.Background(), keeperSpec()))
	nettest.Must(t, p.k.presence.Keep()) // it has its turn, and is overtaken
	newer.start(otherSpec())
	p.log.All()
	nettest.Must(t, p.k.Commit(context.Background()))
	checkNow(t, p)
	if n := countLines(p.log.All(), "left to a newer localcache process"); n != 1 {
		t.Errorf("said %d times to whom the rules are left, want once", n)
	}
	if p.k.Status().Keeper {
		t.Error("it takes itself for the keeper")
	}
}

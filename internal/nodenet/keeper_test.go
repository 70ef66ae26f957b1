package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

const autoName = "memory-auto"

func TestKeeperStart(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	ctx := context.Background()
	spec := keeperSpec()

	if err := p.k.Commit(ctx); err == nil {
		t.Error("Commit without Prepare succeeded")
	}
	nettest.Must(t, p.k.Prepare(ctx, spec))
	servers := []netip.AddrPort{nettest.Echo(t, nettest.Local4), nettest.Echo(t, nettest.Local6)}
	for _, s := range servers {
		if err := nettest.AskEcho(s); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
	if calls := m.takeCalls(); len(calls) > 0 {
		t.Errorf("rules changed before sockets were open: %q", calls)
	}
	nettest.Must(t, p.k.Commit(ctx))
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, spec.Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	s := p.k.Status()
	if s.Interface != "nodelocaldns" || s.Kind == "" || !s.Up || len(s.AddressesMissing) > 0 || s.Backend != autoName ||
		s.Why == "" || !s.RulesInPlace || !s.SocketMatch || !slices.Equal(s.Fallback, spec.Fallback) || !s.Keeper || s.Draining {
		t.Errorf("status %+v", s)
	}
	for k, n := range s.Repairs {
		if n != 0 {
			t.Errorf("%d repairs of %s at a start", n, k)
		}
	}
	if len(s.Repairs) != len(status.RepairKinds()) || len(s.Errors) != len(status.ErrorTypes()) || s.LastError != "" {
		t.Errorf("counters %+v", s)
	}
}

// A start that cannot go on leaves the node as it was.
func TestKeeperPrepareFails(t *testing.T) {
	for _, c := range []struct {
		name, says string
		break_     func(t *testing.T, m *memory, s *Spec)
		counted    status.ErrorType
	}{
		{"wrong spec", "port 0", func(_ *testing.T, _ *memory, s *Spec) { s.Port = 0 }, ""},
		{"no backend", "no iptables, no nft", func(_ *testing.T, m *memory, _ *Spec) {
			m.detectErr = errors.New("no iptables, no nft")
		}, status.ErrorIPTables},
		{"foreign link", "br0", func(t *testing.T, _ *memory, _ *Spec) {
			nettest.AddLink(t, &netlink.Bridge{}, "br0", "fd00:10::10/128")
		}, status.ErrorInterfaceCheck},
		{"second address fails", "disable_ipv6", func(t *testing.T, _ *memory, _ *Spec) {
			nettest.DisableIPv6(t)
		}, status.ErrorInterfaceAdd},
		{"no rights", "NET_ADMIN", func(t *testing.T, _ *memory, _ *Spec) { nettest.DropNetAdmin(t) }, status.ErrorInterfaceAdd},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			p := newProcess(t, n, m)
			spec := keeperSpec()
			c.break_(t, m, &spec)
			err := p.k.Prepare(context.Background(), spec)
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("error %v", err)
			}
			if nettest.LinkExists(t, "nodelocaldns") {
				t.Error("the interface is still there")
			}
			if r := peerRoles(t, &process.Presence{Owner: "nodelocaldns"}); r != nil {
				t.Errorf("still says that it is there: %v", r)
			}
			if c.counted != "" && p.k.Status().Errors[c.counted] != 1 {
				t.Errorf("counted %v", p.k.Status().Errors)
			}
		})
	}
}

// A failed Prepare removes from an existing link what it added, and nothing else.
func TestKeeperPrepareFailsOnExisting(t *testing.T) {
	n := nettest.NewNamespace(t)
	nettest.DisableIPv6(t)
	nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns", "10.1.0.1/24")
	p := newProcess(t, n, newMemory())
	if err := p.k.Prepare(context.Background(), keeperSpec()); err == nil {
		t.Fatal("Prepare succeeded")
	}
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.1.0.1/24"}) {
		t.Errorf("addresses %v", got)
	}
}

// Rules that the kernel accepts without keeping them, and a held lock, are errors of Commit.
func TestKeeperCommitFails(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	m.forgets = true
	p := newProcess(t, n, m)
	ctx := context.Background()
	nettest.Must(t, p.k.Prepare(ctx, keeperSpec()))
	if err := p.k.Commit(ctx); err == nil || !strings.Contains(err.Error(), "not in place") {
		t.Errorf("rules that were not kept: %v", err)
	}
	if s := p.k.Status(); s.RulesInPlace || s.Errors[status.ErrorIPTables] != 1 {
		t.Errorf("status %+v", s)
	}
	m.set(func() { m.forgets, m.applyErr = false, rule.ErrLocked })
	if err := p.k.Commit(ctx); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("a held lock: %v", err)
	}
	if s := p.k.Status(); s.Errors[status.ErrorIPTablesLock] != 1 || !strings.Contains(s.LastError, "xtables") {
		t.Errorf("status %+v", s)
	}
	next := keeperSpec()
	next.Addresses = []netip.Addr{nettest.Local4b}
	nettest.Must(t, p.k.Prepare(ctx, next))
	nettest.Must(t, p.k.Rollback(ctx))
	// A start that never put its rules in place is undone at the end, although on_exit is keep.
	nettest.Must(t, p.k.Close(ctx))
	if nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
}

// Rules of an earlier process send queries to the fallback. A process that ends before its own rules are in place
// removes none of them, unless on_exit says so.
func TestKeeperLeavesPredecessorsRules(t *testing.T) {
	for _, c := range []struct {
		exit  ExitPolicy
		found bool // the predecessor had rules
		stay  bool
	}{{ExitKeep, true, true}, {ExitKeep, false, false}, {ExitRemove, true, false}} {
		t.Run(fmt.Sprintf("%s, found %v", c.exit, c.found), func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			ctx := context.Background()
			spec := keeperSpec()
			spec.OnExit = c.exit
			if c.found {
				m.rules[autoName+" nodelocaldns"] = spec.Plan(PlanOptions{})
			}
			p := newProcess(t, n, m)
			nettest.Must(t, p.k.Prepare(ctx, spec))
			m.applyErr = rule.ErrLocked
			if err := p.k.Commit(ctx); !errors.Is(err, rule.ErrLocked) {
				t.Fatalf("Commit: %v", err)
			}
			nettest.Must(t, p.k.Close(ctx))
			if stays := len(m.of(autoName, "nodelocaldns")) > 0; stays != c.stay {
				t.Errorf("the rules are there: %v, want %v", stays, c.stay)
			}
			if removed := slices.ContainsFunc(m.takeCalls(), func(s string) bool { return strings.HasPrefix(s, "remove") }); removed == c.stay && c.found {
				t.Errorf("removed: %v", removed)
			}
		})
	}
}

// A held lock at the start keeps nothing back: the rules come as soon as it is free.
func TestKeeperLockedAtStart(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	m.detectErr, m.noSocket, m.applyErr = rule.ErrLocked, rule.ErrLocked, rule.ErrLocked
	p := newProcess(t, n, m)
	ctx := context.Background()
	spec := keeperSpec()
	nettest.Must(t, p.k.Prepare(ctx, spec))
	if err := p.k.Commit(ctx); !errors.Is(err, rule.ErrLocked) {
		t.Fatalf("Commit: %v", err)
	}
	p.Run(n)
	m.set(func() { m.detectErr = nil })
	eventually(t, "the backend is chosen", func() bool {
		s := p.k.Status()
		return s.Errors[status.ErrorIPTablesLock] >= 3 && !s.RulesInPlace
	})
	m.set(func() { m.noSocket, m.applyErr = nil, nil })
	eventually(t, "the rules are in place", func() bool {
		return sameRules(m.of(autoName, "nodelocaldns"), spec.Plan(PlanOptions{})) && p.k.Status().RulesInPlace
	})
	if s := p.k.Status(); !s.SocketMatch || len(s.Fallback) != 1 || s.Repairs[status.RepairRules] != 0 {
		t.Errorf("status %+v", s)
	}
}

// A reload that meets a held lock has its rules as soon as it is free, and that is no repair.
func TestKeeperLockedAtReload(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	ctx := context.Background()
	spec := keeperSpec()
	p.start(spec)
	spec.Addresses = []netip.Addr{nettest.Local4, nettest.Local4b}
	m.set(func() { m.detectErr, m.applyErr = rule.ErrLocked, rule.ErrLocked })
	nettest.Must(t, p.k.Prepare(ctx, spec))
	if err := p.k.Commit(ctx); !errors.Is(err, rule.ErrLocked) {
		t.Fatalf("Commit: %v", err)
	}
	nettest.Must(t, p.k.Rollback(ctx)) // a further reload that fails early changes nothing
	if s := p.k.Status(); s.RulesInPlace || s.Backend != "" || len(s.AddressesMissing) > 0 {
		t.Errorf("status %+v", s)
	}
	m.set(func() { m.detectErr, m.applyErr = nil, nil })
	checkNow(t, p)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, spec.Plan(PlanOptions{})) {
		t.Errorf("rules %v", got)
	}
	if s := p.k.Status(); !s.RulesInPlace || s.Repairs[status.RepairRules] != 0 || s.Backend != autoName {
		t.Errorf("status %+v", s)
	}
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.96.0.10/32", "169.254.25.10/32"}) {
		t.Errorf("addresses %v", got)
	}
	// It had come to serve before: this is no half-made start, which would be undone.
	nettest.Must(t, p.k.Close(ctx))
	if !nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface was removed")
	}
}

func TestKeeperReload(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	ctx := context.Background()
	p.start(keeperSpec())
	first := nettest.AddrsOn(t, "nodelocaldns")

	next := keeperSpec()
	next.Addresses = []netip.Addr{nettest.Local4, nettest.Local4b}
	next.Notrack = ChoiceNFTables
	nettest.Must(t, p.k.Prepare(ctx, next))
	if got := nettest.AddrsOn(t, "nodelocaldns"); len(got) != 3 {
		t.Errorf("while both are in use: %v", got)
	}
	// The server does not start with it.
	nettest.Must(t, p.k.Rollback(ctx))
	nettest.Must(t, p.k.Rollback(ctx)) // there is nothing more to do
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, first) {
		t.Errorf("after Rollback: %v", got)
	}
	if s := p.k.Status(); s.Backend != autoName || !s.RulesInPlace {
		t.Errorf("after Rollback: %+v", s)
	}
	nettest.Must(t, p.k.Commit(ctx)) // a reload that asks for no setup
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, keeperSpec().Plan(PlanOptions{})) {
		t.Errorf("rules after Rollback and Commit: %v", got)
	}

	nettest.Must(t, p.k.Prepare(ctx, next))
	nettest.Must(t, p.k.Commit(ctx))
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.96.0.10/32", "169.254.25.10/32"}) {
		t.Errorf("after the reload: %v", got)
	}
	if got := m.of("memory-nftables", "nodelocaldns"); !sameRules(got, next.Plan(PlanOptions{})) {
		t.Errorf("rules after the reload: %v", got)
	}
	if got := m.of(autoName, "nodelocaldns"); len(got) > 0 {
		t.Errorf("rules are left in the previous backend: %v", got)
	}
	if calls := m.takeCalls(); calls[len(calls)-1] != "remove "+autoName {
		t.Errorf("the old rules were removed before the new ones were there: %q", calls)
	}

	off := keeperSpec()
	off.Notrack, off.Fallback = ChoiceOff, nil
	p.start(off)
	if got := m.of("memory-nftables", "nodelocaldns"); len(got) > 0 {
		t.Errorf("rules are left with notrack off: %v", got)
	}
	if s := p.k.Status(); s.Backend != "off" || s.SocketMatch || s.Fallback != nil || !s.RulesInPlace {
		t.Errorf("status with notrack off: %+v", s)
	}

	other := keeperSpec()
	other.Interface = "localcache"
	if err := p.k.Prepare(ctx, other); err == nil || !strings.Contains(err.Error(), "restart") {
		t.Errorf("another interface: %v", err)
	}
	if !nettest.LinkExists(t, "nodelocaldns") || nettest.LinkExists(t, "localcache") {
		t.Error("a refused reload has changed interfaces")
	}
}

// Rollback of a first start leaves nothing.
func TestKeeperRollbackFirst(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	ctx := context.Background()
	nettest.Must(t, p.k.Prepare(ctx, keeperSpec()))
	nettest.Must(t, p.k.Rollback(ctx))
	if nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
	if r := peerRoles(t, &process.Presence{Owner: "nodelocaldns"}); r != nil {
		t.Errorf("still says that it is there: %v", r)
	}
	p.start(keeperSpec()) // it can start anew
	nettest.Must(t, p.k.Close(ctx))
}

// Without a socket match there is no fallback, which is logged once and shown.
func TestKeeperNoSocketMatch(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	m.noSocket = errors.New("no module xt_socket")
	p := newProcess(t, n, m)
	spec := keeperSpec()
	p.start(spec)
	p.start(spec)
	if got := m.of(autoName, "nodelocaldns"); !sameRules(got, spec.Plan(PlanOptions{NoSocketMatch: true})) {
		t.Errorf("rules %v", got)
	}
	if s := p.k.Status(); s.SocketMatch || s.NoSocketMatch != "no module xt_socket" || s.Fallback != nil || !s.RulesInPlace {
		t.Errorf("status %+v", s)
	}
	var warnings []string
	for _, l := range p.log.All() {
		if strings.HasPrefix(l, "WARN") {
			warnings = append(warnings, l)
		}
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0], "fallback is off") || !strings.Contains(warnings[0], "xt_socket") {
		t.Errorf("warnings %q", warnings)
	}
}

// An interface that others make is neither made nor changed nor removed.
func TestKeeperUnmanaged(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	spec.ManageInterface, spec.OnExit = false, ExitRemove
	nettest.AddLink(t, &netlink.Bridge{}, "br0", "169.254.25.10/32")
	p.start(spec)
	if s := p.k.Status(); !slices.Equal(s.AddressesMissing, []netip.Addr{nettest.Local6}) {
		t.Errorf("status %+v", s)
	}
	if lines := p.log.All(); !slices.ContainsFunc(lines, func(l string) bool {
		return strings.HasPrefix(l, "WARN") && strings.Contains(l, nettest.Local6.String())
	}) {
		t.Errorf("no warning of the missing address: %q", lines)
	}
	nettest.Must(t, p.k.Close(context.Background()))
	if got := nettest.AddrsOn(t, "br0"); !slices.Equal(got, []string{"169.254.25.10/32"}) || nettest.LinkExists(t, "nodelocaldns") {
		t.Errorf("links were changed: %v", got)
	}
	if got := m.of(autoName, "nodelocaldns"); len(got) > 0 {
		t.Errorf("rules are left: %v", got)
	}
}

// Rules that an earlier process left in another backend are removed once the new rules are in place.
func TestKeeperLeftovers(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	m.rules["memory-nftables nodelocaldns"] = keeperSpec().Plan(PlanOptions{})
	p := newProcess(t, n, m)
	p.start(keeperSpec())
	if calls := m.takeCalls(); !slices.Equal(calls, []string{"apply memory-auto normal", "remove memory-nftables"}) {
		t.Errorf("calls %q", calls)
	}
	if s := p.k.Status(); s.Repairs[status.RepairLeftovers] != 1 {
		t.Errorf("repairs %v", s.Repairs)
	}
}

func TestKeeperEnd(t *testing.T) {
	for _, c := range []struct {
		name     string
		exit     ExitPolicy
		fallback bool
		drain    bool
		calls    []string
		remains  bool
	}{
		{"keep", ExitKeep, true, true, []string{"apply memory-auto draining", "apply memory-auto normal"}, true},
		{"keep without drain", ExitKeep, true, false, nil, true},
		{"remove", ExitRemove, true, true, []string{"apply memory-auto draining", "remove memory-auto"}, false},
		{"no fallback", ExitRemove, false, true, []string{"remove memory-auto"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			p := newProcess(t, n, m)
			ctx := context.Background()
			spec := keeperSpec()
			spec.OnExit = c.exit
			if !c.fallback {
				spec.Fallback = nil
			}
			p.start(spec)
			m.takeCalls()
			if c.drain {
				nettest.Must(t, p.k.Drain(ctx))
				if got := p.k.Status().Draining; got != c.fallback {
					t.Errorf("draining: %v", got)
				}
				nettest.Must(t, p.k.checkRules(ctx)) // does not revert what Drain did
			}
			nettest.Must(t, p.k.Close(ctx))
			nettest.Must(t, p.k.Close(ctx))
			if calls := m.takeCalls(); !slices.Equal(calls, c.calls) {
				t.Errorf("calls %q", calls)
			}
			if got := nettest.LinkExists(t, "nodelocaldns"); got != c.remains {
				t.Errorf("the interface remains: %v", got)
			}
			if r := peerRoles(t, &process.Presence{Owner: "nodelocaldns"}); r != nil {
				t.Errorf("still says that it is there: %v", r)
			}
			if err := p.k.Prepare(ctx, spec); !errors.Is(err, errClosed) {
				t.Errorf("Prepare after Close: %v", err)
			}
		})
	}
}

// Rules that cannot be removed are reported, and the interface stays with them: without it they would keep queries to
// a Service's address from kube-proxy's DNAT.
func TestKeeperCloseFails(t *testing.T) {
	for _, c := range []struct {
		name    string
		err     error
		applied bool
	}{
		{"no rights", unix.EPERM, true},
		{"locked for ever", rule.ErrLocked, true},
		{"never applied", unix.EPERM, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nettest.NewNamespace(t)
			m := newMemory()
			p := newProcess(t, n, m)
			spec := keeperSpec()
			spec.OnExit = ExitRemove
			if c.applied {
				p.start(spec)
			} else {
				m.forgets = true
				nettest.Must(t, p.k.Prepare(context.Background(), spec))
				if err := p.k.Commit(context.Background()); err == nil {
					t.Fatal("Commit succeeded")
				}
			}
			m.set(func() { m.removeErr = c.err })
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if err := p.k.Close(ctx); !errors.Is(err, c.err) || !strings.Contains(err.Error(), "`localcache teardown`") {
				t.Errorf("error %v", err)
			}
			if got := nettest.AddrsOn(t, "nodelocaldns"); len(got) != 2 {
				t.Errorf("rules are left, and the addresses are %v", got)
			}
			if p.k.Status().Errors[status.ErrorIPTables]+p.k.Status().Errors[status.ErrorIPTablesLock] == 0 {
				t.Error("not counted")
			}
			// The advice of the message works.
			m.set(func() { m.removeErr = nil })
			nettest.Must(t, Teardown(context.Background(), TeardownConfig{Log: p.log, All: m.All}).Err())
			if nettest.LinkExists(t, "nodelocaldns") || len(m.of(autoName, "nodelocaldns")) > 0 {
				t.Error("something is left after a teardown")
			}
		})
	}
}

// A lock that another program releases in time does not prevent the removal of the rules.
func TestKeeperCloseLocked(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	p.start(spec)
	m.set(func() { m.removeErr = rule.ErrLocked })
	time.AfterFunc(3*removePause/2, func() { m.set(func() { m.removeErr = nil }) })
	nettest.Must(t, p.k.Close(context.Background()))
	if nettest.LinkExists(t, "nodelocaldns") || len(m.of(autoName, "nodelocaldns")) > 0 {
		t.Error("something is left")
	}
}

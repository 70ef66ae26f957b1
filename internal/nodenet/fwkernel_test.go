package nodenet

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// TestApplyAgain has a second Apply write nothing, and looks at what an idle Check costs.
func TestApplyAgain(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			fw := openBackend(t, backend, "lc0")
			rules := testSpec().Plan(PlanOptions{})
			apply(t, fw, rules)
			// Handles are new for each rule that is written, in legacy the chain's generation is.
			handles := func() string { return nettest.Ruleset(t) + nettest.Run(t, "nft -a list ruleset 2>/dev/null") }
			first := handles()
			apply(t, fw, rules)
			if second := handles(); second != first {
				t.Errorf("the second Apply wrote\n%s\nover\n%s", second, first)
			}
			// Other rules are another matter.
			apply(t, fw, testSpec().Plan(PlanOptions{Draining: true}))
			if handles() == first {
				t.Error("other rules changed nothing; the test does not see any change")
			}
			apply(t, fw, nil)
			clean(t, fw, nil)
			if s := nettest.Ruleset(t); strings.Contains(s, "LC-") || strings.Contains(s, "localcache") {
				t.Errorf("no rules leave\n%s", s)
			}

			apply(t, fw, rules)
			var programs []*iptables.Program
			used := func(x *iptables.Program) bool { return false }
			switch f := fw.(type) {
			case *iptables.Backend:
				programs, used = f.Leftovers, func(x *iptables.Program) bool { return x == f.V4 || x == f.V6 }
			case *nftables.Backend:
				programs = f.Leftovers
			}
			for _, x := range programs {
				x.Calls = 0
			}
			clean(t, fw, rules)
			for _, x := range programs {
				// The table raw, the chain of nat and ours that it leads to, the table filter; of front
				// ends that are not in use raw, where node-cache's rules matter.
				most := 1
				if used(x) {
					most = 4
				}
				if x.Calls > most {
					t.Errorf("%s was started %d times for one Check, want %d at most", x.Path, x.Calls, most)
				}
			}
		})
	}
}

// TestRemove has Remove leave nothing but what was there before, and nothing to remove the next time.
func TestRemove(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			fw := openBackend(t, backend, "lc0")
			apply(t, fw, testSpec().Plan(PlanOptions{}))
			if nettest.Ruleset(t) == before {
				t.Fatal("Apply changed nothing")
			}
			removed, err := fw.Remove(nettest.Context(t))
			if err != nil || len(removed) == 0 {
				t.Fatalf("Remove: %v, %v", removed, err)
			}
			t.Logf("removed:\n%s", strings.Join(removed, "\n"))
			if after := nettest.Ruleset(t); after != before {
				t.Errorf("after Remove:\n%s\nwant\n%s", after, before)
			}
			if removed, err = fw.Remove(nettest.Context(t)); err != nil || len(removed) > 0 {
				t.Errorf("the second Remove: %v, %v", removed, err)
			}
		})
	}
}

// TestSocketMatch has the trial succeed here and leave nothing behind.
func TestSocketMatch(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			fw := openBackend(t, backend, "lc0")
			if err := fw.SocketMatch(nettest.Context(t), testSpec().Addresses); err != nil {
				t.Error(err)
			}
			if after := nettest.Ruleset(t); after != before {
				t.Errorf("it left\n%s\nwant\n%s", after, before)
			}
		})
	}
}

// TestSocketMatchMissing takes the extension away from iptables: without its library the program knows
// no socket match, as with a kernel that lacks it.
func TestSocketMatchMissing(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.ForeignRules(t)
	dir := findLibrary(t, "libxt_socket.so")
	if err := unix.Mount("/dev/null", filepath.Join(dir, "libxt_socket.so"), "", unix.MS_BIND, ""); err != nil {
		t.Skipf("hide the library: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(dir, "libxt_socket.so"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	before := nettest.Ruleset(t)
	fw := openBackend(t, rule.IPTablesLegacy, "lc0")
	err := fw.SocketMatch(nettest.Context(t), testSpec().Addresses)
	if err == nil || !strings.Contains(err.Error(), "no socket match") {
		t.Errorf("got %v", err)
	}
	if after := nettest.Ruleset(t); after != before {
		t.Errorf("it left\n%s\nwant\n%s", after, before)
	}
}

// TestSocketMatchOfOneFamily has an ip6tables that knows no socket match: rules for IPv4 addresses do not
// need it.
func TestSocketMatchOfOneFamily(t *testing.T) {
	for _, backend := range backends[:2] {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			fw := openBackend(t, backend, "lc0").(*iptables.Backend)
			if fw.V6 == nil {
				t.Skip("no ip6tables")
			}
			fw.V6.Path = writeProgram(t, "ip6tables", `case "$*" in *socket*) echo 'unknown option "socket"' >&2; exit 2;; esac
exec `+fw.V6.Path+` "$@"`)
			addrs := testSpec().Addresses
			if err := fw.SocketMatch(nettest.Context(t), addrs[:1]); err != nil {
				t.Errorf("IPv4 alone: %v", err)
			}
			for _, a := range [][]netip.Addr{addrs, addrs[1:]} {
				if err := fw.SocketMatch(nettest.Context(t), a); err == nil || !strings.Contains(err.Error(), "no socket match for IPv6") {
					t.Errorf("%v: %v", a, err)
				}
			}
		})
	}
}

func findLibrary(t *testing.T, name string) string {
	for _, pattern := range []string{"/usr/lib/*/xtables", "/usr/lib/xtables", "/usr/lib64/xtables"} {
		dirs, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range dirs {
			if _, err := os.Stat(filepath.Join(d, name)); err == nil {
				return d
			}
		}
	}
	t.Skipf("no %s", name)
	return ""
}

// TestManyRules has more addresses and fallback servers than any node: nftables takes them in one
// transaction of some hundred kilobytes.
func TestManyRules(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			fw := openBackend(t, backend, "lc0")
			spec := testSpec()
			spec.Addresses = spec.Addresses[:0]
			spec.Fallback = spec.Fallback[:0]
			for i := range 16 {
				spec.Addresses = append(spec.Addresses, netip.AddrFrom4([4]byte{169, 254, 25, byte(i)}))
				spec.Fallback = append(spec.Fallback, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 53))
			}
			rules := spec.Plan(PlanOptions{})
			apply(t, fw, rules)
			clean(t, fw, rules)
		})
	}
}

// TestWithoutRestore has programs that change one rule a call, and what they made be the same.
func TestWithoutRestore(t *testing.T) {
	for _, backend := range backends[:2] {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			fw := openBackend(t, backend, "lc0").(*iptables.Backend)
			rules := testSpec().Plan(PlanOptions{})
			calls := func() int { return fw.V4.Calls + fw.V6.Calls }
			if fw.V4.Restore == "" || fw.V6.Restore == "" {
				t.Fatalf("no restore program is known beside %s", fw.V4.Path)
			}
			apply(t, fw, rules)
			clean(t, fw, rules)
			with, whole := calls(), nettest.Ruleset(t)
			if _, err := fw.Remove(nettest.Context(t)); err != nil {
				t.Fatal(err)
			}
			fw.V4.Restore, fw.V6.Restore = "", ""
			start := calls()
			apply(t, fw, rules)
			clean(t, fw, rules)
			without := calls() - start
			if s := nettest.Ruleset(t); s != whole {
				t.Errorf("without restore\n%s\nwith it\n%s", s, whole)
			}
			// Five hooks of two families, one call each, and what is read before and after.
			if with > 30 || without < 2*with {
				t.Errorf("%d calls with restore, %d without", with, without)
			}
			if _, err := fw.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if s := nettest.Ruleset(t); s != before {
				t.Errorf("left\n%s\nwant\n%s", s, before)
			}
		})
	}
}

// TestTwoOwners has two owners apply at the same time, again and again, and one leave.
func TestTwoOwners(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			ns := nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			one, two := openBackend(t, backend, "lc0"), openBackend(t, backend, "lc1")
			specTwo := testSpec()
			specTwo.Addresses = []netip.Addr{netip.MustParseAddr("169.254.25.11")}
			rulesOne, rulesTwo := testSpec().Plan(PlanOptions{}), specTwo.Plan(PlanOptions{})
			var wg sync.WaitGroup
			for _, w := range []struct {
				fw    rule.Backend
				rules []rule.Rule
			}{{one, rulesOne}, {two, rulesTwo}} {
				wg.Add(1)
				ns.Go(func() {
					defer wg.Done()
					for i := range 4 {
						rules := w.rules
						if i%2 == 0 {
							rules = rules[:len(rules)-2]
						}
						if err := w.fw.Apply(t.Context(), rules); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			clean(t, one, rulesOne)
			clean(t, two, rulesTwo)
			if _, err := two.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			clean(t, one, rulesOne)
			if _, err := one.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if after := nettest.Ruleset(t); after != before {
				t.Errorf("left:\n%s\nwant\n%s", after, before)
			}
		})
	}
}

// TestSameOwner has two processes of one owner apply at the same time, which nothing forbids. Either may
// fail, but the next Apply finds and mends what came of it.
func TestSameOwner(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			ns := nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			one, two := openBackend(t, backend, "lc0"), openBackend(t, backend, "lc0")
			rules := testSpec().Plan(PlanOptions{})
			var wg sync.WaitGroup
			for _, fw := range []rule.Backend{one, two} {
				wg.Add(1)
				ns.Go(func() {
					defer wg.Done()
					for i := range 3 {
						if err := fw.Apply(t.Context(), testSpec().Plan(PlanOptions{Draining: i%2 == 0})); err != nil {
							t.Logf("while both apply: %v", err)
						}
					}
				})
			}
			wg.Wait()
			apply(t, one, rules)
			clean(t, one, rules)
			clean(t, two, rules)
			if _, err := one.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if after := nettest.Ruleset(t); after != before {
				t.Errorf("left:\n%s\nwant\n%s", after, before)
			}
		})
	}
}

// TestLocked holds the xtables lock.
func TestLocked(t *testing.T) {
	nettest.NewNamespace(t)
	fw, err := iptables.New(t.Context(), rule.IPTablesLegacy, "lc0", iptables.Find(t.Context()), time.Second)
	if err != nil {
		t.Skip(err)
	}
	rules := testSpec().Plan(PlanOptions{})
	lock, err := iptables.OpenLock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	if err := fw.Apply(nettest.Context(t), rules); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("Apply: %v, want ErrLocked", err)
	}
	if err := fw.SocketMatch(nettest.Context(t), testSpec().Addresses); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("SocketMatch: %v, want ErrLocked", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %s to give up after 1 s", took)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	apply(t, fw, rules)
	clean(t, fw, rules)

	// Held again, what was there stays.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if _, err := fw.Check(nettest.Context(t), rules); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("Check: %v, want ErrLocked", err)
	}
	if removed, err := fw.Remove(nettest.Context(t)); !errors.Is(err, rule.ErrLocked) || len(removed) > 0 {
		t.Errorf("Remove: %v, %v, want ErrLocked", removed, err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	clean(t, fw, rules)
}

// TestLockMissing has no place for the lock, as with a read-only /run.
func TestLockMissing(t *testing.T) {
	nettest.NewNamespace(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "none", "xtables.lock"))
	fw := openBackend(t, rule.IPTablesLegacy, "lc0")
	err := fw.Apply(nettest.Context(t), testSpec().Plan(PlanOptions{}))
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "xtables.lock") {
		t.Errorf("got %v", err)
	}
}

// TestContext has calls end at once with their context.
func TestContext(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			fw := openBackend(t, backend, "lc0")
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			rules := testSpec().Plan(PlanOptions{})
			_, checkErr := fw.Check(ctx, rules)
			_, removeErr := fw.Remove(ctx)
			for i, err := range []error{fw.Apply(ctx, rules), checkErr, removeErr, fw.SocketMatch(ctx, testSpec().Addresses)} {
				if !errors.Is(err, context.Canceled) {
					t.Errorf("call %d: %v", i, err)
				}
			}
			if s := nettest.Ruleset(t); strings.Contains(s, "LC-") || strings.Contains(s, "localcache") {
				t.Errorf("rules were made:\n%s", s)
			}
		})
	}
}

// TestMissingProgram has rules of a family for which there is no program.
func TestMissingProgram(t *testing.T) {
	nettest.NewNamespace(t)
	found := iptables.Find(t.Context())
	for i := range found {
		found[i].Path6 = ""
	}
	fw, err := iptables.New(t.Context(), rule.IPTablesNFT, "lc0", found, time.Second)
	if err != nil {
		t.Skip(err)
	}
	err = fw.Apply(nettest.Context(t), testSpec().Plan(PlanOptions{}))
	if err == nil || !strings.Contains(err.Error(), "the rule for fd00:25::10 needs ip6tables") {
		t.Errorf("got %v", err)
	}
	v4 := testSpec()
	v4.Addresses = v4.Addresses[:1]
	apply(t, fw, v4.Plan(PlanOptions{}))
	clean(t, fw, v4.Plan(PlanOptions{}))
}

package iptables

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// bothVariants are the variants that each test of a variant runs with.
var bothVariants = []string{rule.IPTablesNFT, rule.IPTablesLegacy}

// testAddrs are the local addresses of testRules.
var testAddrs = []netip.Addr{netip.MustParseAddr("169.254.25.10"), netip.MustParseAddr("fd00:25::10")}

// testRules returns the rules that a node has for an address of each family with a fallback of two servers.
func testRules(addrs ...netip.Addr) []rule.Rule {
	if len(addrs) == 0 {
		addrs = testAddrs
	}
	var rules []rule.Rule
	for _, a := range addrs {
		targets := []netip.AddrPort{netip.MustParseAddrPort("10.233.74.65:53"), netip.MustParseAddrPort("10.233.74.66:1053")}
		if a.Is6() {
			targets = []netip.AddrPort{netip.MustParseAddrPort("[fd00:74::65]:53"), netip.MustParseAddrPort("[fd00:74::66]:1053")}
		}
		for _, p := range []rule.Proto{rule.UDP, rule.TCP} {
			rules = append(rules,
				rule.Rule{Hook: rule.NatPrerouting, Proto: p, Dst: a, DstPort: 53, Opening: p == rule.TCP, Verdict: rule.DNAT, Targets: targets},
				rule.Rule{Hook: rule.FilterInput, Proto: p, Dst: a, DstPort: 53, Verdict: rule.Accept},
				rule.Rule{Hook: rule.FilterOutput, Proto: p, Src: a, SrcPort: 53, Verdict: rule.Accept},
				rule.Rule{Hook: rule.RawOutput, Proto: p, Src: a, SrcPort: 53, Verdict: rule.NoTrack},
				rule.Rule{Hook: rule.RawOutput, Proto: p, Dst: a, DstPort: 53, Verdict: rule.NoTrack},
				rule.Rule{Hook: rule.RawPrerouting, Proto: p, Dst: a, DstPort: 53, Socket: rule.SocketSpecific, Verdict: rule.NoTrack},
			)
		}
	}
	return rules
}

// open opens a variant inside the calling test's namespace, or skips the test where it is missing.
func open(t *testing.T, name string) *Backend {
	t.Helper()
	b, err := New(t.Context(), name, "lc0", Find(t.Context()), LockWait)
	if err != nil {
		t.Skip(err)
	}
	return b
}

// apply applies the rules and fails the test unless Check finds them in place.
func apply(t *testing.T, b *Backend, rules []rule.Rule) {
	t.Helper()
	nettest.Must(t, b.Apply(nettest.Context(t), rules))
	clean(t, b, rules)
}

// clean fails the test unless Check finds the rules in place.
func clean(t *testing.T, b *Backend, rules []rule.Rule) {
	t.Helper()
	if diffs, err := b.Check(nettest.Context(t), rules); err != nil || len(diffs) > 0 {
		t.Fatalf("Check: %v\n%s", err, strings.Join(diffs, "\n"))
	}
}

// TestSocketMatchMissing hides the extension from iptables: without its library the program knows no
// socket match, as with a kernel that lacks it.
func TestSocketMatchMissing(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.ForeignRules(t)
	library := findLibrary(t, "libxt_socket.so")
	if err := unix.Mount("/dev/null", library, "", unix.MS_BIND, ""); err != nil {
		t.Skipf("hide the library: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(library, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	before := nettest.Ruleset(t)
	err := open(t, rule.IPTablesLegacy).SocketMatch(nettest.Context(t), testAddrs)
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
	for _, variant := range bothVariants {
		t.Run(variant, func(t *testing.T) {
			nettest.NewNamespace(t)
			b := open(t, variant)
			if b.families[1] == nil {
				t.Skip("no ip6tables")
			}
			path := nettest.WriteProgram(t, t.TempDir(), "ip6tables", `case "$*" in *socket*) echo 'unknown option "socket"' >&2; exit 2;; esac
exec `+b.families[1].path+` "$@"`)
			var err error
			b.families[1], err = openProgram(t.Context(), path, b.families[1].legacy, true, LockWait, b.lock)
			nettest.Must(t, err)
			if err := b.SocketMatch(nettest.Context(t), testAddrs[:1]); err != nil {
				t.Errorf("IPv4 alone: %v", err)
			}
			for _, a := range [][]netip.Addr{testAddrs, testAddrs[1:]} {
				if err := b.SocketMatch(nettest.Context(t), a); err == nil || !strings.Contains(err.Error(), "no socket match for IPv6") {
					t.Errorf("%v: %v", a, err)
				}
			}
		})
	}
}

// findLibrary returns the path of an extension of iptables, or skips the test.
func findLibrary(t *testing.T, name string) string {
	t.Helper()
	for _, pattern := range []string{"/usr/lib/*/xtables", "/usr/lib/xtables", "/usr/lib64/xtables"} {
		paths, err := filepath.Glob(filepath.Join(pattern, name))
		nettest.Must(t, err)
		if len(paths) > 0 {
			return paths[0]
		}
	}
	t.Skipf("no %s", name)
	return ""
}

// TestWithoutRestore compares what programs make that change one rule a call with what restore makes.
func TestWithoutRestore(t *testing.T) {
	for _, variant := range bothVariants {
		t.Run(variant, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			starts := nettest.CountStarts(t)
			b := open(t, variant)
			rules := testRules()
			calls := func() (n int) {
				for program, started := range starts() {
					if strings.Contains(program, strings.TrimPrefix(variant, "iptables")) {
						n += started
					}
				}
				return n
			}
			if b.families[0].restore == "" || b.families[1].restore == "" {
				t.Fatalf("no restore program is known beside %s", b.families[0].path)
			}
			calls()
			apply(t, b, rules)
			with, whole := calls(), nettest.Ruleset(t)
			if _, err := b.Remove(nettest.Context(t)); err != nil {
				t.Fatal(err)
			}
			b.families[0].restore, b.families[1].restore = "", ""
			calls()
			apply(t, b, rules)
			without := calls()
			if s := nettest.Ruleset(t); s != whole {
				t.Errorf("without restore\n%s\nwith it\n%s", s, whole)
			}
			// Five hooks of two families need one call each, besides the reads before and after.
			if with > 30 || without < 2*with {
				t.Errorf("%d calls with restore, %d without", with, without)
			}
			if _, err := b.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if s := nettest.Ruleset(t); s != before {
				t.Errorf("left\n%s\nwant\n%s", s, before)
			}
		})
	}
}

// TestMissingProgram has rules of a family for which there is no program.
func TestMissingProgram(t *testing.T) {
	nettest.NewNamespace(t)
	found := Find(t.Context())
	for i := range found {
		found[i].paths[1] = ""
	}
	b, err := New(t.Context(), rule.IPTablesNFT, "lc0", found, time.Second)
	if err != nil {
		t.Skip(err)
	}
	err = b.Apply(nettest.Context(t), testRules())
	if err == nil || !strings.Contains(err.Error(), "the rule for fd00:25::10 needs ip6tables") {
		t.Errorf("got %v", err)
	}
	apply(t, b, testRules(testAddrs[0]))
}

// TestHungPrograms has programs that do not end: every method ends with its context, and without one after
// the limit, and names the program.
func TestHungPrograms(t *testing.T) {
	for _, variant := range bothVariants {
		t.Run(variant, func(t *testing.T) {
			nettest.NewNamespace(t)
			if variant == rule.IPTablesLegacy {
				nettest.Run(t, "iptables-legacy -t raw -S; iptables-legacy -t filter -S") // loads the tables
			}
			nettest.HangPrograms(t)
			b, err := New(t.Context(), variant, "lc0", Find(t.Context()), LockWait)
			nettest.Must(t, err)
			rules := testRules()
			methods := map[string]func(context.Context) error{
				"Check":           func(ctx context.Context) error { _, err := b.Check(ctx, rules); return err },
				"Apply":           func(ctx context.Context) error { return b.Apply(ctx, rules) },
				"Remove":          func(ctx context.Context) error { _, err := b.Remove(ctx); return err },
				"RemoveNodeCache": func(ctx context.Context) error { _, err := b.RemoveNodeCache(ctx); return err },
				"SocketMatch":     func(ctx context.Context) error { return b.SocketMatch(ctx, testAddrs) },
			}
			for name, method := range methods {
				nettest.Within(t, name+" with a deadline", 15*time.Second, func() {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					defer cancel()
					err := method(ctx)
					if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "iptables-") {
						t.Errorf("%s with a deadline: %v", name, err)
					}
				})
			}
			for _, p := range b.all {
				p.limit = 100 * time.Millisecond
			}
			for name, method := range methods {
				nettest.Within(t, name, 15*time.Second, func() {
					if err := method(t.Context()); !errors.Is(err, errHung) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "iptables-") {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
			if left := ownChildren(t); len(left) > 0 {
				t.Errorf("processes %v are left", left)
			}
		})
	}
}

package nodenet

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// TestApplyAgain checks that a second Apply writes nothing, and what an idle Check costs.
func TestApplyAgain(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			starts := nettest.CountStarts(t)
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
			starts()
			clean(t, fw, rules)
			for program, n := range starts() {
				// The table raw, the chain of nat and localcache's chain that it jumps to, the table filter; of
				// backends that are not in use raw, where node-cache's rules matter.
				most := 1
				if strings.HasSuffix(program, strings.TrimPrefix(backend, "ip")) {
					most = 4
				}
				if n > most {
					t.Errorf("%s was started %d times for one Check, want %d at most", program, n, most)
				}
			}
		})
	}
}

// TestRemove checks that Remove leaves the state from before, and that a second one has nothing to remove.
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

// TestSocketMatch checks that the trial succeeds here and leaves nothing behind.
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

// TestManyRules uses more addresses and fallback servers than any node: nftables accepts them in one transaction of
// some hundred kilobytes.
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

// TestSameOwner lets two processes of one owner apply at the same time, which is possible. Either may fail, but the
// next Apply finds and repairs the result.
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

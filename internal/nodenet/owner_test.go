package nodenet

import (
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

func TestOwnerTag(t *testing.T) {
	plain := regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)
	seen := make(map[string]string)
	for _, owner := range []string{"nodelocaldns", "lc0", "a.b-c_d", "nodelocaldns0123", "x;y", "x'y", "x*y", "é", `a"b\c`, strings.Repeat("*", 15)} {
		tag := rule.OwnerTag(owner)
		if !plain.MatchString(tag) {
			t.Errorf("%q: %q", owner, tag)
		}
		if other, twice := seen[tag]; twice {
			t.Errorf("%q and %q are both %q", owner, other, tag)
		}
		seen[tag] = owner
	}
	if rule.OwnerTag("nodelocaldns") != "nodelocaldns" {
		t.Error("a plain name is not its own tag")
	}
}

// TestOwnerNames checks that the kernel and the programs accept names made of unusual interface names.
func TestOwnerNames(t *testing.T) {
	for _, owner := range []string{`a"b'c\d`, "-x", "dnat", "0", "inet.ip-table"} {
		for _, backend := range backends {
			t.Run(backend, func(t *testing.T) {
				nettest.NewNamespace(t)
				fw := openBackend(t, backend, owner)
				rules := testSpec().Plan(PlanOptions{})
				apply(t, fw, rules)
				clean(t, fw, rules)
				if nft, err := exec.LookPath("nft"); err == nil && backend == rule.NFTables {
					// nft reads what it lists.
					nettest.Run(t, nft+" -s list ruleset > /run/rules && "+nft+" flush ruleset && "+nft+" -f /run/rules")
					clean(t, fw, rules)
				}
				removed, err := fw.Remove(nettest.Context(t))
				if err != nil || len(removed) == 0 {
					t.Errorf("Remove: %v, %v", removed, err)
				}
			})
		}
	}
}

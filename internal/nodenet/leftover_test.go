package nodenet

import (
	"fmt"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// nodeCacheRules adds node-cache's twelve rules for an address with a program of iptables.
func nodeCacheRules(t *testing.T, program, addr string) {
	t.Helper()
	nettest.Need(t, program)
	nettest.Run(t, fmt.Sprintf(`P='%s -w'; A=%s
skip='-m comment --comment "%s"'; allow='-m comment --comment "%s"'
for p in udp tcp; do
eval $P -t raw -I PREROUTING -d $A -p $p -m $p --dport 53 $skip -j NOTRACK
eval $P -t raw -I OUTPUT -s $A -p $p -m $p --sport 53 $skip -j NOTRACK
eval $P -t raw -I OUTPUT -d $A -p $p -m $p --dport 53 $skip -j NOTRACK
eval $P -t filter -I INPUT -d $A -p $p -m $p --dport 53 $allow -j ACCEPT
eval $P -t filter -I OUTPUT -s $A -p $p -m $p --sport 53 $allow -j ACCEPT
done
eval $P -t raw -I OUTPUT -d $A -p tcp -m tcp --dport 9254 $skip -j NOTRACK
eval $P -t raw -I OUTPUT -s $A -p tcp -m tcp --sport 9254 $skip -j NOTRACK`, program, addr, rule.NodeCacheNoTrack, rule.NodeCacheAccept))
}

// TestLeftovers checks that each backend removes node-cache's rules on its own addresses at Apply, in both variants,
// and all of them at RemoveNodeCache.
func TestLeftovers(t *testing.T) {
	for _, backend := range backends {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.ForeignRules(t)
			before := nettest.Ruleset(t)
			for _, v := range []string{"nft", "legacy"} {
				nodeCacheRules(t, "iptables-"+v, "169.254.25.10")
				nodeCacheRules(t, "iptables-"+v, "169.254.20.10")
				nodeCacheRules(t, "ip6tables-"+v, "fd00:25::10")
			}
			fw := openBackend(t, backend, "lc0")
			full := nettest.Ruleset(t)
			apply(t, fw, nil)
			if s := nettest.Ruleset(t); s != full {
				t.Errorf("Apply of no rules changed\n%s\nto\n%s", full, s)
			}
			rules := testSpec().Plan(PlanOptions{})
			diffs, err := fw.Check(nettest.Context(t), rules)
			all := strings.Join(diffs, "\n")
			want := []string{"IPv4 raw/PREROUTING: rule of node-cache", "IPv6 filter/OUTPUT: rule of node-cache"}
			if backend == rule.NFTables {
				want = []string{"table ip raw: rule of node-cache in chain PREROUTING", "table ip6 filter: rule of node-cache in chain OUTPUT"}
			}
			for _, w := range want {
				// Twelve of each family, and of the other variant the eight in raw.
				if err != nil || strings.Count(all, "rule of node-cache") != 40 || !strings.Contains(all, w) {
					t.Errorf("Check: %v\n%s\nwant 40 rules of node-cache, and %q", err, all, w)
				}
			}
			apply(t, fw, rules)
			clean(t, fw, rules)
			after := nettest.Ruleset(t)
			for _, l := range strings.Split(after, "\n") {
				if strings.Contains(l, "NodeLocal DNS Cache") && (strings.Contains(l, "169.254.25.10") || strings.Contains(l, "fd00:25::10")) {
					t.Errorf("still there: %s", l)
				}
			}
			saved, _, _ := strings.Cut(after, "== nft")
			if n := strings.Count(saved, "NodeLocal DNS Cache"); n != 24 {
				t.Errorf("%d rules of node-cache for the other address, want its 24", n)
			}
			if _, err := fw.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			saved, _, _ = strings.Cut(nettest.Ruleset(t), "== nft")
			if n := strings.Count(saved, "NodeLocal DNS Cache"); n != 24 {
				t.Errorf("%d rules of node-cache after Remove, want the 24 of an address that is not ours", n)
			}
			if _, err := fw.RemoveNodeCache(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if s := nettest.Ruleset(t); s != before {
				t.Errorf("after RemoveNodeCache\n%s\nwant\n%s", s, before)
			}
		})
	}
}

// TestLeftoversOfOtherBackend has a node-cache that is still alive add its rules through the variant that
// is not in use, after Apply: Check sees them and touches nothing, and the next Apply removes them.
func TestLeftoversOfOtherBackend(t *testing.T) {
	for _, c := range []struct{ backend, other string }{
		{rule.IPTablesNFT, "legacy"}, {rule.NFTables, "legacy"}, {rule.NFTables, "nft"}, {rule.IPTablesLegacy, "nft"},
	} {
		t.Run(c.backend+"/"+c.other, func(t *testing.T) {
			nettest.NewNamespace(t)
			fw := openBackend(t, c.backend, "lc0")
			rules := testSpec().Plan(PlanOptions{})
			apply(t, fw, rules)
			clean(t, fw, rules)
			nodeCacheRules(t, "iptables-"+c.other, "169.254.20.10")
			clean(t, fw, rules)
			nodeCacheRules(t, "iptables-"+c.other, "169.254.25.10")
			before := nettest.Ruleset(t)
			diffs, err := fw.Check(nettest.Context(t), rules)
			if all := strings.Join(diffs, "\n"); err != nil || !strings.Contains(all, "raw: rule of node-cache") || !strings.Contains(all, "PREROUTING") {
				t.Errorf("Check: %v\n%s\nwant the rules of node-cache in raw", err, all)
			}
			if s := nettest.Ruleset(t); s != before {
				t.Errorf("Check changed\n%s\nto\n%s", before, s)
			}
			apply(t, fw, rules)
			clean(t, fw, rules)
		})
	}
}

// TestLeftoversWithoutPrograms is TestLeftovers for an image without programs. Rules in iptables-legacy are out of
// reach.
func TestLeftoversWithoutPrograms(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.ForeignRules(t)
	before := nettest.Ruleset(t)
	nodeCacheRules(t, "iptables-nft", "169.254.25.10")
	nodeCacheRules(t, "iptables-nft", "169.254.20.10")
	nodeCacheRules(t, "ip6tables-nft", "fd00:25::10")
	fw := nftables.New("lc0", nil)
	rules := testSpec().Plan(PlanOptions{})
	apply(t, fw, rules)
	clean(t, fw, rules)
	saved, _, _ := strings.Cut(nettest.Ruleset(t), "== nft")
	if n := strings.Count(saved, "NodeLocal DNS Cache"); n != 12 {
		t.Errorf("%d rules of node-cache are left, want the 12 of the other address", n)
	}
	if removed, err := fw.Remove(nettest.Context(t)); err != nil || len(removed) != 1 {
		t.Errorf("Remove: %q, %v, want the table", removed, err)
	}
	removed, err := fw.RemoveNodeCache(nettest.Context(t))
	if err != nil || len(removed) != 12 {
		t.Errorf("RemoveNodeCache: %q, %v, want 12 rules", removed, err)
	}
	if s := nettest.Ruleset(t); s != before {
		t.Errorf("after Remove\n%s\nwant\n%s", s, before)
	}
}

// An image without programs cannot read iptables-legacy, and a teardown says so if there may be something.
func TestTeardownReportsUnseenLegacyTables(t *testing.T) {
	nettest.NewNamespace(t)
	nodeCacheRules(t, "iptables-legacy", "169.254.25.10")
	t.Setenv("PATH", t.TempDir())
	r := Teardown(nettest.Context(t), TeardownConfig{Log: nettest.NewLog(t)})
	for _, i := range r.Items {
		if i.Where == rule.IPTablesLegacy && strings.Contains(i.Note, "raw") && strings.Contains(i.Note, "filter") {
			return
		}
	}
	t.Errorf("the report says nothing of the tables of iptables-legacy: %v", r.Items)
}

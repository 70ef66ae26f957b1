package nodenet

import (
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// damage is a change of the rules by another program. The commands run with I and I6 set to the variant's programs.
type damage struct {
	name, commands string
	want           string // in one of the lines that Check returns
}

var iptablesDamage = []damage{
	{"flushed chain", "$I -t raw -F LC-PRE-lc0-0", "IPv4 raw/PREROUTING: missing rule"},
	{"flushed chain of IPv6", "$I6 -t nat -F LC-PRE-lc0-0", "IPv6 nat/PREROUTING: missing rule"},
	{"deleted rule", "$I -t filter -D LC-IN-lc0-0 1", "filter/INPUT: missing rule"},
	{"added rule", "$I -t filter -A LC-IN-lc0-0 -s 10.0.0.1 -j DROP", "filter/INPUT: superfluous rule"},
	{"changed rule", "$I -t raw -R LC-PRE-lc0-0 1 -d 169.254.25.10 -p udp -m udp --dport 54 -j ACCEPT", "raw/PREROUTING: superfluous rule"},
	{"changed target of the fallback", "$I -t nat -R LC-PRE-lc0-0 2 -d 169.254.25.10 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.1:53", "nat/PREROUTING: missing rule"},
	{"doubled rule", `$I -t filter -A LC-IN-lc0-0 -d 169.254.25.10/32 -p udp -m udp --dport 53 -m comment --comment "` + rule.CommentAccept + `" -j ACCEPT`, "filter/INPUT: superfluous rule"},
	{"reordered", `r=$($I -t nat -S LC-PRE-lc0-0 2 | cut -d' ' -f3-); $I -t nat -D LC-PRE-lc0-0 2; eval $I -t nat -I LC-PRE-lc0-0 1 $r`, "nat/PREROUTING: the rules are out of order"},
	{"deleted jump", "$I -t raw -D PREROUTING 1", "raw/PREROUTING: no rule jumps to localcache's chain"},
	{"deleted jump of filter", "$I -t filter -D OUTPUT 1", "filter/OUTPUT: no rule jumps to localcache's chain"},
	{"doubled jump", `$I -t nat -A PREROUTING -m comment --comment "` + rule.CommentJump + `" -j LC-PRE-lc0-0`, "nat/PREROUTING: superfluous rule"},
	{"narrowed jump", "$I -t raw -R PREROUTING 1 -p udp -j LC-PRE-lc0-0", "raw/PREROUTING: -A PREROUTING -p udp -j LC-PRE-lc0-0 does not send every packet"},
	{"rule before ours in raw", "$I -t raw -I PREROUTING 1 -p udp -j ACCEPT", "raw/PREROUTING: a rule of another program comes before localcache's"},
	{"rule before ours in nat", "$I6 -t nat -I PREROUTING 1 -p udp -j RETURN", "IPv6 nat/PREROUTING: a rule of another program comes before localcache's"},
	{"moved behind others", `$I -t nat -D PREROUTING 1; $I -t nat -A PREROUTING -m comment --comment "` + rule.CommentJump + `" -j LC-PRE-lc0-0`, "nat/PREROUTING: a rule of another program comes before localcache's"},
	{"chain of a broken replacement", "$I -t raw -N LC-OUT-lc0-1; $I -t raw -A LC-OUT-lc0-1 -j ACCEPT", "raw/OUTPUT: superfluous chain LC-OUT-lc0-1"},
	{"two generations in use", "$I -t raw -N LC-PRE-lc0-1; $I -t raw -I PREROUTING -j LC-PRE-lc0-1", "raw/PREROUTING: superfluous"},
	{"goto", "$I -t raw -R PREROUTING 1 -g LC-PRE-lc0-0", "does not send every packet"},
	{"flushed tables", "for p in \"$I\" \"$I6\"; do for t in raw nat filter; do $p -t $t -F; $p -t $t -X; done; done", "IPv6 raw/PREROUTING: no rule jumps to localcache's chain"},
}

var nftablesDamage = []damage{
	{"flushed chain", "nft flush chain inet localcache-lc0 raw_prerouting", "raw_prerouting: missing rule"},
	{"deleted table", "nft delete table inet localcache-lc0", "missing"},
	{"flushed table", "nft flush table inet localcache-lc0", "nat_prerouting: missing rule"},
	{"flushed ruleset", "nft flush ruleset", "missing"},
	{"deleted chain", "nft flush chain inet localcache-lc0 raw_output; nft delete chain inet localcache-lc0 raw_output", "missing chain raw_output"},
	{"added rule", "nft insert rule inet localcache-lc0 raw_prerouting udp dport 53 accept", "raw_prerouting: superfluous rule"},
	{"doubled rule", `nft add rule inet localcache-lc0 filter_input ip daddr 169.254.25.10 udp dport 53 accept comment '"` + rule.CommentAccept + `"'`, "filter_input: superfluous rule"},
	{"deleted rule", `h=$(nft -a list chain inet localcache-lc0 raw_prerouting | sed -n 's/.*udp.* handle //p' | head -1); nft delete rule inet localcache-lc0 raw_prerouting handle $h`, "raw_prerouting: missing rule"},
	{"changed rule", `h=$(nft -a list chain inet localcache-lc0 nat_prerouting | sed -n 's/.*udp.* handle //p' | head -1); nft replace rule inet localcache-lc0 nat_prerouting handle $h ip daddr 169.254.25.10 udp dport 53 dnat ip to 10.0.0.1:53`, "nat_prerouting: missing rule"},
	{"reordered", `set -- $(nft -a list chain inet localcache-lc0 filter_input | sed -n 's/.*accept comment .* handle //p'); nft delete rule inet localcache-lc0 filter_input handle $1; nft add rule inet localcache-lc0 filter_input ip daddr 169.254.25.10 udp dport 53 accept comment '"` + rule.CommentAccept + `"'`, "filter_input: the rules are out of order"},
	{"added chain", "nft add chain inet localcache-lc0 other", "superfluous chain other"},
	{"policy", "nft add chain inet localcache-lc0 filter_input '{ policy drop; }'", "chain filter_input is"},
	{"switched off", "nft add table inet localcache-lc0 '{ flags dormant; }'", "switched off"},
	{"other priority", "nft delete table inet localcache-lc0; nft add table inet localcache-lc0; nft add chain inet localcache-lc0 nat_prerouting '{ type nat hook prerouting priority -50; }'", "chain nat_prerouting is"},
}

// TestDamage checks that each backend finds and repairs damage to its rules.
func TestDamage(t *testing.T) {
	for _, backend := range backends {
		cases := iptablesDamage
		if backend == rule.NFTables {
			cases = nftablesDamage
		}
		for _, d := range cases {
			t.Run(backend+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				nettest.NewNamespace(t)
				nettest.ForeignRules(t)
				before := nettest.Ruleset(t)
				fw := openBackend(t, backend, "lc0")
				rules := testSpec().Plan(PlanOptions{})
				apply(t, fw, rules)
				clean(t, fw, rules)
				whole := nettest.Ruleset(t)
				variant := strings.TrimPrefix(backend, "iptables-")
				nettest.Run(t, "I='iptables-"+variant+" -w'; I6='ip6tables-"+variant+" -w'; "+d.commands)

				diffs, err := fw.Check(nettest.Context(t), rules)
				if err != nil {
					t.Fatal(err)
				}
				if all := strings.Join(diffs, "\n"); !strings.Contains(all, d.want) {
					t.Errorf("Check: %q\nwant a line with %q", all, d.want)
				}
				apply(t, fw, rules)
				clean(t, fw, rules)

				flushed := strings.HasPrefix(d.name, "flushed table") || d.name == "flushed ruleset"
				foreignBefore := strings.Contains(d.name, "before ours")
				if after := sameGeneration(nettest.Ruleset(t)); after != sameGeneration(whole) && !flushed && !foreignBefore {
					t.Errorf("after the repair:\n%s\nwant\n%s", after, whole)
				}
				if _, err := fw.Remove(nettest.Context(t)); err != nil {
					t.Fatal(err)
				}
				if after := nettest.Ruleset(t); after != before && !flushed && !foreignBefore {
					t.Errorf("after Remove:\n%s\nwant\n%s", after, before)
				}
			})
		}
	}
}

// sameGeneration makes texts of two generations of chains comparable. nft lists chains in order of creation, which a
// replacement changes, so only the iptables part is kept.
func sameGeneration(ruleset string) string {
	ruleset, _, _ = strings.Cut(ruleset, "== nft")
	return strings.ReplaceAll(ruleset, "-lc0-1", "-lc0-0")
}

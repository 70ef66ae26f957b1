package iptables_test

import (
	"net/netip"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet"
	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// TestArgsOfNodeCachesRules compares the arguments of a plan for one address with one health address and
// no fallback with node-cache's twelve rules. The socket match is the one difference.
func TestArgsOfNodeCachesRules(t *testing.T) {
	spec := nodenet.Spec{
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.25.10")},
		Port:      53,
		Health:    []netip.AddrPort{netip.MustParseAddrPort("169.254.25.10:9254")},
		Notrack:   nodenet.ChoiceAuto,
	}
	want := map[string]bool{
		"raw/PREROUTING -d 169.254.25.10/32 -p udp --dport 53 NOTRACK if socket": true,
		"raw/PREROUTING -d 169.254.25.10/32 -p tcp --dport 53 NOTRACK if socket": true,
		"filter/INPUT -d 169.254.25.10/32 -p udp --dport 53 ACCEPT":              true,
		"filter/INPUT -d 169.254.25.10/32 -p tcp --dport 53 ACCEPT":              true,
		"raw/OUTPUT -s 169.254.25.10/32 -p udp --sport 53 NOTRACK":               true,
		"raw/OUTPUT -s 169.254.25.10/32 -p tcp --sport 53 NOTRACK":               true,
		"filter/OUTPUT -s 169.254.25.10/32 -p udp --sport 53 ACCEPT":             true,
		"filter/OUTPUT -s 169.254.25.10/32 -p tcp --sport 53 ACCEPT":             true,
		"raw/OUTPUT -d 169.254.25.10/32 -p udp --dport 53 NOTRACK":               true,
		"raw/OUTPUT -d 169.254.25.10/32 -p tcp --dport 53 NOTRACK":               true,
		"raw/OUTPUT -d 169.254.25.10/32 -p tcp --dport 9254 NOTRACK":             true,
		"raw/OUTPUT -s 169.254.25.10/32 -p tcp --sport 9254 NOTRACK":             true,
	}
	rules := spec.Plan(nodenet.PlanOptions{})
	if len(rules) != 12 {
		t.Errorf("%d rules, want 12", len(rules))
	}
	for _, r := range rules {
		for _, args := range iptables.RuleArgs(r) {
			l := iptables.RuleLine{Args: args}
			s := string(r.Hook)
			for _, o := range []string{"-s", "-d", "-p", "--sport", "--dport"} {
				if v := l.Option(o); v != "" {
					s += " " + o + " " + v
				}
			}
			s += " " + strings.Replace(l.Option("-j"), "CT", "NOTRACK", 1)
			if r.Socket == rule.SocketSpecific {
				s += " if socket"
			}
			if !want[s] {
				t.Errorf("%s is not of node-cache's", s)
			}
			delete(want, s)
		}
	}
	for s := range want {
		t.Errorf("missing: %s", s)
	}
}

// TestChainNamesFitLimit makes the chain names of the longest owners: iptables takes 28 characters.
func TestChainNamesFitLimit(t *testing.T) {
	for _, owner := range []string{"nodelocaldns0123", strings.Repeat("x", 15), strings.Repeat("*", 15)} {
		for _, name := range iptables.ChainNames(owner) {
			if len(name) > 28 {
				t.Errorf("chain %s has %d characters", name, len(name))
			}
		}
	}
}

package nftables_test

import (
	"net/netip"
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// testSpec returns a Spec with both families, a fallback of two servers for each, and a health address.
func testSpec() nodenet.Spec {
	return nodenet.Spec{
		Interface: "lc0",
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.25.10"), netip.MustParseAddr("fd00:25::10")},
		Port:      53,
		Health:    []netip.AddrPort{netip.MustParseAddrPort("169.254.25.10:9254")},
		Notrack:   nodenet.ChoiceAuto,
		Fallback: []netip.AddrPort{
			netip.MustParseAddrPort("10.233.74.65:53"), netip.MustParseAddrPort("10.233.74.66:1053"),
			netip.MustParseAddrPort("[fd00:74::65]:53"), netip.MustParseAddrPort("[fd00:74::66]:1053"),
		},
	}
}

// FuzzNFTRule reads messages of the kernel with any contents.
func FuzzNFTRule(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 8, 0, 4, 128, 4, 0, 1, 128})
	for _, r := range testSpec().Plan(nodenet.PlanOptions{}) {
		for _, n := range nftables.RulesFor(r) {
			var list []netlink.Attribute
			for _, e := range n.Exprs {
				b, err := expr.Marshal(unix.NFPROTO_INET, e)
				if err != nil {
					f.Fatal(err)
				}
				list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
			}
			exprs, err := netlink.MarshalAttributes(list)
			if err != nil {
				f.Fatal(err)
			}
			attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
				{Type: unix.NFTA_RULE_CHAIN, Data: []byte("raw_prerouting\x00")},
				{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: exprs},
				{Type: unix.NFTA_RULE_USERDATA, Data: nftables.UserData(n)},
			})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(append([]byte{1, 0, 0, 0}, attrs...))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		one, err := nftables.ParseRule(body)
		other, again := nftables.ParseRule(body)
		if one != other || (err == nil) != (again == nil) {
			t.Fatalf("%q, %v and then %q, %v", one, err, other, again)
		}
	})
}

// TestNFTRulesDiffer checks that no two rules of a plan look the same when they are read back, and that needless
// attributes of the library make no difference.
func TestNFTRulesDiffer(t *testing.T) {
	seen := make(map[nftables.RuleText]rule.Rule)
	for _, o := range []nodenet.PlanOptions{{}, {NoSocketMatch: true}} {
		for _, wildcard := range []bool{false, true} {
			s := testSpec()
			s.Wildcard = wildcard
			for _, r := range s.Plan(o) {
				texts, err := nftables.WantedTexts(string(r.Hook), nftables.RulesFor(r))
				if err != nil {
					t.Fatal(err)
				}
				for _, text := range texts {
					if other, twice := seen[text]; twice && (other.Hook != r.Hook || other.Proto != r.Proto || other.Dst != r.Dst || other.Src != r.Src) {
						t.Errorf("%+v\n%+v\nare both %s", other, r, text)
					}
					seen[text] = r
				}
			}
		}
	}
}

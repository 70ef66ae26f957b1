package nodenet

import (
	"testing"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// FuzzNFTRule reads messages of the kernel with any contents.
func FuzzNFTRule(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 8, 0, 4, 128, 4, 0, 1, 128})
	for _, r := range testSpec().Plan(PlanOptions{}) {
		for _, n := range nftRules(r) {
			var list []netlink.Attribute
			for _, e := range n.exprs {
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
				{Type: unix.NFTA_RULE_USERDATA, Data: n.userData()},
			})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(append([]byte{1, 0, 0, 0}, attrs...))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		one, err := parseNFTRule(body)
		other, again := parseNFTRule(body)
		if one != other || (err == nil) != (again == nil) {
			t.Fatalf("%q, %v and then %q, %v", one, err, other, again)
		}
	})
}

// TestNFTRulesDiffer has no two rules of a plan look the same when they are read back, and the
// attributes that the library adds without need make no difference.
func TestNFTRulesDiffer(t *testing.T) {
	seen := make(map[nftRuleText]Rule)
	for _, o := range []PlanOptions{{}, {NoSocketMatch: true}} {
		for _, wildcard := range []bool{false, true} {
			s := testSpec()
			s.Wildcard = wildcard
			for _, r := range s.Plan(o) {
				texts, err := nftWanted(string(r.Hook), nftRules(r))
				if err != nil {
					t.Fatal(err)
				}
				for _, text := range texts {
					if other, twice := seen[text]; twice && (other.Hook != r.Hook || other.Proto != r.Proto || other.Dst != r.Dst || other.Src != r.Src) {
						t.Errorf("%s\n%s\nare both %s", ruleText(other), ruleText(r), text)
					}
					seen[text] = r
				}
			}
		}
	}
}

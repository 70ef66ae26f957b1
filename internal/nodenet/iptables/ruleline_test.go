package iptables

import (
	"slices"
	"testing"
)

// TestParseRuleLine parses lines with quotes, escapes, blanks and faults.
func TestParseRuleLine(t *testing.T) {
	for _, test := range []struct {
		line string
		want *ruleLine
	}{
		{`-P PREROUTING ACCEPT`, &ruleLine{"-P", "PREROUTING", []string{"ACCEPT"}}},
		{`-N LC-PRE-lc0-0`, &ruleLine{"-N", "LC-PRE-lc0-0", []string{}}},
		{`-A PREROUTING -m comment --comment "a b" -j X`, &ruleLine{"-A", "PREROUTING", []string{"-m", "comment", "--comment", "a b", "-j", "X"}}},
		{`-A X --comment "it\'s \"x\" \\ y"`, &ruleLine{"-A", "X", []string{"--comment", `it's "x" \ y`}}},
		{`-A X --comment ""`, &ruleLine{"-A", "X", []string{"--comment", ""}}},
		{`-A   X  -j  Y `, &ruleLine{"-A", "X", []string{"-j", "Y"}}},
		{`-A X --comment "open`, nil},
		{"# Table `raw' contains incompatible base-chains, use 'nft' tool to list them.", nil},
		{`-A`, nil},
		{``, nil},
	} {
		got, ok := parseRuleLine(test.line)
		if ok != (test.want != nil) {
			t.Errorf("%s: ok is %v", test.line, ok)
			continue
		}
		if ok && (got.Command != test.want.Command || got.Chain != test.want.Chain || !slices.Equal(got.Args, test.want.Args)) {
			t.Errorf("%s: %+v, want %+v", test.line, got, *test.want)
		}
	}
}

// TestCanonicalRule compares pairs of spellings of a rule.
func TestCanonicalRule(t *testing.T) {
	for _, test := range []struct {
		one, other string
		same       bool
	}{
		{"-d 169.254.25.10/32 -p udp -j ACCEPT", "-p udp -d 169.254.25.10 -j ACCEPT", true},
		{"-d 169.254.25.10/255.255.255.255 -j ACCEPT", "-d 169.254.25.10/32 -j ACCEPT", true},
		{"-d fd00:0::10/128 -j ACCEPT", "-d fd00::10 -j ACCEPT", true},
		{"-d fd00::10/64 -j ACCEPT", "-d fd00::10 -j ACCEPT", false},
		{"-d 10.0.0.0/8 -j ACCEPT", "-d 10.0.0.0 -j ACCEPT", false},
		{"! -d 10.0.0.1 -j ACCEPT", "-d 10.0.0.1 -j ACCEPT", false},
		{"-m comment --comment a -m socket -j ACCEPT", "-m socket -m comment --comment a -j ACCEPT", true},
		{"-m socket --nowildcard -j ACCEPT", "-m socket -j ACCEPT", false},
		{"-m statistic --mode random --probability 0.50000000000 -j X", "-m statistic --mode random --probability 0.5 -j X", true},
		{"-m statistic --mode random --probability 0.33333333349 -j X", "-m statistic --mode random --probability 0.5 -j X", false},
		{"-p udp -c 5 300 -j ACCEPT", "-p udp -j ACCEPT", true},
		{"-j NOTRACK", "-j CT --notrack", true},
		{"-j CT --zone 1", "-j CT --notrack", false},
		{"-j DNAT --to-destination [fd00:0::2]:53", "-j DNAT --to-destination [fd00::2]:53", true},
		{"--source 10.0.0.1 --jump X", "-s 10.0.0.1/32 -j X", true},
		{"-j X", "-g X", false},
	} {
		one, _ := splitWords(test.one)
		other, _ := splitWords(test.other)
		if (canonicalRule(one) == canonicalRule(other)) != test.same {
			t.Errorf("%q is %q\n%q is %q", test.one, canonicalRule(one), test.other, canonicalRule(other))
		}
	}
}

// FuzzRuleLine parses lines as a program of unknown version may print them. A parsed line must render to
// a line that parses to the same, because a rule is deleted by its parsed arguments.
func FuzzRuleLine(f *testing.F) {
	f.Add(`-A PREROUTING -d 169.254.25.10/32 -p udp -m udp --dport 53 -m socket -m comment --comment "NodeLocal DNS Cache: skip conntrack" -j CT --notrack`)
	f.Add(`-A X ! -s fd00::/8 -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination [fd00::1]:53`)
	f.Add(`-A X -m comment --comment "it\'s \"x\" \\ y" -c 1 2 -g Y`)
	f.Add("-N \"\"\x00\\")
	f.Add(`-A X "" !`)
	f.Fuzz(func(t *testing.T, line string) {
		l, ok := parseRuleLine(line)
		if !ok {
			return
		}
		canonicalRule(l.Args)
		nodeCacheRules([]ruleLine{l}, nil)
		again, ok := parseRuleLine(l.String())
		if !ok || again.Command != l.Command || again.Chain != l.Chain || !slices.Equal(again.Args, l.Args) {
			t.Fatalf("%q reads as %q and is rendered %q, which reads as %q", line, l, l.String(), again)
		}
		if again.String() != l.String() || canonicalRule(again.Args) != canonicalRule(l.Args) {
			t.Fatalf("%q is rendered %q, then %q", line, l.String(), again.String())
		}
	})
}

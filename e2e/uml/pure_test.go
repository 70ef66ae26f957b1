package uml

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

// Leftovers must show up in the comparison, or a test that finds none proves nothing.
func TestRuleLines(t *testing.T) {
	const empty = "# Generated\n*raw\n:PREROUTING ACCEPT [12:900]\n:OUTPUT ACCEPT [0:0]\nCOMMIT\n"
	if lines := ruleLines(empty); len(lines) != 0 {
		t.Errorf("an empty table has the lines %q", lines)
	}
	const used = "*nat\n:PREROUTING ACCEPT [0:0]\n:LC-PRE-x-0 - [0:0]\n" +
		"-A PREROUTING -j LC-PRE-x-0\n-A LC-PRE-x-0 -d 169.254.25.10/32 -j ACCEPT\nCOMMIT\n"
	want := nodeState{"nat chain LC-PRE-x-0", "nat -A PREROUTING -j LC-PRE-x-0", "nat -A LC-PRE-x-0 -d 169.254.25.10/32 -j ACCEPT"}
	got := nodeState(ruleLines(empty + used))
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if left := got.minus(want[:1]); !slices.Equal(left, want[1:]) {
		t.Errorf("minus leaves %q, want %q", left, want[1:])
	}
	if n := got.matching("169.254.25.10", "ACCEPT"); n != 1 {
		t.Errorf("%d lines match, want 1", n)
	}
}

func TestMissingNotrack(t *testing.T) {
	var s nodeState
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		s = append(s, "iptables-legacy-save: raw -A "+chain+" -j LC-X")
	}
	for _, proto := range []string{"udp", "tcp"} {
		s = append(s,
			"iptables-legacy-save: raw -A LC-PRE-x-0 -d 169.254.25.10/32 -p "+proto+" -m "+proto+" --dport 53 -m socket -j CT --notrack",
			"iptables-legacy-save: raw -A LC-OUT-x-0 -d 169.254.25.10/32 -p "+proto+" -m "+proto+" --dport 53 -j CT --notrack",
			"iptables-legacy-save: raw -A LC-OUT-x-0 -s 169.254.25.10/32 -p "+proto+" -m "+proto+" --sport 53 -j CT --notrack")
	}
	if missing := s.missingNotrack(); len(missing) != 0 {
		t.Errorf("missing from a complete list: %q", missing)
	}
	for i := range s {
		if missing := slices.Delete(slices.Clone(s), i, i+1).missingNotrack(); len(missing) != 1 {
			t.Errorf("missing without %q: %q", s[i], missing)
		}
	}
	if missing := append(slices.Clone(s), s[2]).missingNotrack(); len(missing) != 1 || !strings.Contains(missing[0], "2 rules") {
		t.Errorf("missing with a doubled rule: %q", missing)
	}
}

func TestModuleDeps(t *testing.T) {
	deps, err := parseModuleDeps(strings.NewReader("kernel/net/a.ko:\nkernel/net/b.ko: kernel/net/c.ko kernel/net/a.ko\n"))
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"kernel/net/b.ko", "kernel/net/c.ko", "kernel/net/a.ko"}; !slices.Equal(deps["b"], want) {
		t.Errorf("b needs %q, want %q", deps["b"], want)
	}
	if err := deps.load(t.TempDir(), "none"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("a module that is not there: %v", err)
	}
	if _, err := parseModuleDeps(strings.NewReader("no colon\n")); err == nil {
		t.Error("a line without a colon is accepted")
	}
}

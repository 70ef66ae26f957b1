package nodenet

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/rule"
)

var update = flag.Bool("update", false, "write the golden files of Plan anew")

// ruleText renders a rule for people to read.
func ruleText(r rule.Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-14s %s", r.Hook, r.Proto)
	side := func(name string, a netip.Addr, port uint16) {
		switch {
		case a.IsValid() && port != 0:
			fmt.Fprintf(&b, " %s %s", name, netip.AddrPortFrom(a, port))
		case a.IsValid():
			fmt.Fprintf(&b, " %s %s", name, a)
		case port != 0:
			fmt.Fprintf(&b, " %s port %d", name, port)
		}
	}
	side("from", r.Src, r.SrcPort)
	side("to", r.Dst, r.DstPort)
	if r.Opening {
		b.WriteString(" opening")
	}
	switch r.Socket {
	case rule.SocketSpecific:
		b.WriteString(" if a socket of the address is open")
	case rule.SocketAny:
		b.WriteString(" if any socket is open")
	}
	fmt.Fprintf(&b, ": %s", r.Verdict)
	for _, t := range r.Targets {
		fmt.Fprintf(&b, " %s", t)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	v4 := Spec{Addresses: []netip.Addr{netip.MustParseAddr("169.254.25.10")}, Port: 53, Notrack: ChoiceAuto}
	both := testSpec()
	health := func(addrs ...string) Spec {
		s := v4
		for _, a := range addrs {
			s.Health = append(s.Health, netip.MustParseAddrPort(a))
		}
		return s
	}
	wildcard := both
	wildcard.Wildcard = true
	off := both
	off.Notrack = ChoiceOff
	oneFamily := both
	oneFamily.Fallback = both.Fallback[:1]

	for _, test := range []struct {
		name    string
		spec    Spec
		options PlanOptions
	}{
		{"ipv4", v4, PlanOptions{}},
		{"both-families", both, PlanOptions{}},
		{"fallback-of-one-family-draining", oneFamily, PlanOptions{Draining: true}},
		// A health address of another host, and one on the DNS port itself, have no rules.
		{"health-specific", health("169.254.25.10:9254", "127.0.0.1:8080", "169.254.25.10:53"), PlanOptions{}},
		{"health-unspecified", health("0.0.0.0:8080", "[::]:8080", "169.254.25.10:9254"), PlanOptions{}},
		{"wildcard", wildcard, PlanOptions{}},
		{"no-socket-match", both, PlanOptions{NoSocketMatch: true}},
		{"draining", both, PlanOptions{Draining: true}},
		// Without a fallback queries have nowhere else to go.
		{"draining-without-fallback", v4, PlanOptions{Draining: true}},
		{"draining-without-socket-match", both, PlanOptions{Draining: true, NoSocketMatch: true}},
		{"off", off, PlanOptions{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var b strings.Builder
			for _, r := range test.spec.Plan(test.options) {
				b.WriteString(ruleText(r) + "\n")
			}
			golden := filepath.Join("testdata", "plan", test.name+".txt")
			if *update {
				if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s", b.String(), want)
			}
		})
	}
}

func TestRuleIs6(t *testing.T) {
	for _, r := range testSpec().Plan(PlanOptions{}) {
		a := r.Dst
		if !a.IsValid() {
			a = r.Src
		}
		if r.Is6() != strings.Contains(a.String(), ":") {
			t.Errorf("%s: Is6 is %v", ruleText(r), r.Is6())
		}
	}
}

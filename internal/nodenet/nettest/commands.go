package nettest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// Context returns a context that ends after a minute, or with the test.
func Context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// Run runs commands, one a line, in the namespace of the calling thread.
func Run(t *testing.T, commands string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", commands).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out)
	}
	return string(out)
}

// Need skips the test if one of the programs is missing.
func Need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|counter packets \d+ bytes \d+`)

// Ruleset returns the namespace's rules as every backend lists them, without counters.
func Ruleset(t *testing.T) string {
	t.Helper()
	Need(t, "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft")
	out := Run(t, `for f in iptables ip6tables; do for v in nft legacy; do echo "== $f-$v"; $f-$v-save 2>/dev/null; done; done
echo == nft; nft -s list ruleset 2>/dev/null`)
	return volatile.ReplaceAllString(out, "")
}

// ForeignRules fills every chain that this package looks at with rules of others.
func ForeignRules(t *testing.T) {
	t.Helper()
	Need(t, "iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore", "nft")
	var rules strings.Builder
	for _, table := range []string{"raw PREROUTING OUTPUT", "nat PREROUTING", "filter INPUT OUTPUT"} {
		names := strings.Fields(table)
		fmt.Fprintf(&rules, "*%s\n", names[0])
		for _, chain := range names[1:] {
			fmt.Fprintf(&rules, ":FOREIGN-%s -\n", chain)
			fmt.Fprintf(&rules, "-A FOREIGN-%s -p udp -m udp --dport 5353 -m comment --comment \"it's \\\"foreign\\\"\" -j RETURN\n", chain)
			fmt.Fprintf(&rules, "-A %s -m comment --comment \"a b\" -j FOREIGN-%s\n", chain, chain)
			fmt.Fprintf(&rules, "-A %s -p tcp -m tcp --dport 22 -j ACCEPT\n", chain)
		}
		rules.WriteString("COMMIT\n")
	}
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, `for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $p-restore -w < `+file+`; done
nft add table inet foreign; nft add chain inet foreign c '{ type filter hook input priority 5; }'
nft add rule inet foreign c udp dport 53 counter`)
}

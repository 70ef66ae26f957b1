package netns

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/lab"
)

// eachBackend runs f once for each backend of packet rules. A backend whose program is missing is skipped, unless
// LOCALCACHE_LAB_REQUIRED is set.
func eachBackend(t *testing.T, f func(t *testing.T, backend string)) {
	t.Helper()
	for _, b := range []string{nftables, iptablesNFT, iptablesLegacy} {
		t.Run(b, func(t *testing.T) {
			if b != nftables {
				need(t, b, strings.Replace(b, "ip", "ip6", 1))
			}
			f(t, b)
		})
	}
}

// need skips the test where one of the programs is absent, and fails it where LOCALCACHE_LAB_REQUIRED
// is set.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		_, err := exec.LookPath(p)
		switch {
		case err != nil && os.Getenv("LOCALCACHE_LAB_REQUIRED") != "":
			t.Fatal(err)
		case err != nil:
			t.Skip(err)
		}
	}
}

// useBackend makes the node one that uses backend, and returns corefile for it. The lab's kube-proxy uses nftables,
// which would decide, so the others are requested with notrack; the variant of iptables is shown by kubelet's chain,
// as on a real node.
func useBackend(t *testing.T, l *lab.Lab, backend, corefile string) string {
	t.Helper()
	if backend == nftables {
		return corefile
	}
	onNode(t, l, fmt.Sprintf(`for p in %s %s; do
	$p -w -t mangle -S KUBE-IPTABLES-HINT >/dev/null 2>&1 || $p -w -t mangle -N KUBE-IPTABLES-HINT
done`, backend, strings.Replace(backend, "ip", "ip6", 1)))
	changed := strings.Replace(corefile, "setup {\n", "setup {\n        notrack iptables\n", 1)
	if changed == corefile {
		t.Fatal("the Corefile has no setup block to ask for iptables in")
	}
	return changed
}

// onNode runs shell commands on the node and returns their output.
func onNode(t *testing.T, l *lab.Lab, commands string) string {
	t.Helper()
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", commands)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.Node.Run(cmd); err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out.String())
	}
	return out.String()
}

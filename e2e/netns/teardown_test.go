package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// TestExitRemoves ends localcache by SIGTERM in the cases where nothing should stay: without a fallback, and with one
// and -skipteardown=false. The node is then as it was before.
func TestExitRemoves(t *testing.T) {
	// Clients do not matter here.
	quick := edit(t, string(localcache.CorefileExample), `lameduck 5s`, `lameduck 1ms`)
	t.Run("skipteardown=false", func(t *testing.T) {
		exitRemoves(t, nftables, serveOptions{Corefile: quick, Args: []string{"-skipteardown=false"}})
	})
	t.Run("on_exit remove", func(t *testing.T) {
		exitRemoves(t, nftables, serveOptions{Corefile: edit(t, quick, `setup \{\n`, "setup {\n        on_exit remove\n")})
	})
	eachBackend(t, func(t *testing.T, backend string) {
		exitRemoves(t, backend, serveOptions{Corefile: quick, Env: []string{"KUBE_DNS_ENDPOINTS="}})
	})
}

func exitRemoves(t *testing.T, backend string, o serveOptions) {
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	strangers(t, l, backend)
	o.Corefile = useBackend(t, l, backend, o.Corefile)
	before := network(t, l)
	d := start(t, l, o)
	if network(t, l) == before {
		t.Fatal("localcache has changed nothing that this test sees")
	}
	d.terminate()
	if after := network(t, l); after != before {
		t.Errorf("the node's network before:\n%s\nand after:\n%s", before, after)
	}
}

// TestTeardown kills localcache, which leaves all of it, and has `localcache teardown` remove that.
func TestTeardown(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		t.Parallel()
		l := lab.Start(t, lab.Config{})
		strangers(t, l, backend)
		o := serveOptions{Corefile: useBackend(t, l, backend, string(localcache.CorefileExample))}
		before := network(t, l)
		d := start(t, l, o)

		out, status := teardown(t, l)
		if want := fmt.Sprintf(`in use by .* \(pid %d\)`, d.program.PID()); status != 1 || !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("while localcache lives: status %d, want 1 and %q:\n%s", status, want, out)
		}
		d.waitAnswers(startTimeout)
		d.kill()
		out, status = teardown(t, l)
		t.Logf("%s", out)
		if status != 0 {
			t.Errorf("status %d", status)
		}
		for _, want := range []string{
			`nodelocaldns: ` + regexp.QuoteMeta(backend) + `: removed `,
			`nodelocaldns: interface: removed `,
			`localcache: interface: nothing to remove`,
		} {
			if !regexp.MustCompile(`(?m)^` + want).MatchString(out) {
				t.Errorf("teardown did not say %q", want)
			}
		}
		if after := network(t, l); after != before {
			t.Errorf("the node's network before:\n%s\nand after:\n%s", before, after)
		}
		if out, status = teardown(t, l); status != 0 || strings.Contains(out, "removed") {
			t.Errorf("a second teardown: status %d:\n%s", status, out)
		}
	})
}

// teardown runs `localcache teardown` on the node.
func teardown(t *testing.T, l *lab.Lab) (out string, status int) {
	t.Helper()
	var o output
	cmd := exec.CommandContext(t.Context(), os.Getenv(envBinary), "teardown")
	cmd.Stdout, cmd.Stderr = &o, &o
	var exit *exec.ExitError
	if err := l.Node.Run(cmd); errors.As(err, &exit) {
		status = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return o.String(), status
}

// strangers adds a rule of another program to every chain that localcache may add to, so that the kernel has the
// tables beforehand, and the removal of another program's rule is noticed.
func strangers(t *testing.T, l *lab.Lab, backend string) {
	t.Helper()
	if backend == nftables {
		return // the lab's kube-proxy is there
	}
	onNode(t, l, fmt.Sprintf(`for p in %s %s; do for c in "raw PREROUTING" "raw OUTPUT" "nat PREROUTING" "filter INPUT" "filter OUTPUT"; do
	set -- $c; $p -w -t $1 -A $2 -p tcp --dport 22 -j RETURN
done; done`, backend, strings.Replace(backend, "ip", "ip6", 1)))
}

// network returns the node's links, addresses and rules, without counters.
func network(t *testing.T, l *lab.Lab) string {
	t.Helper()
	need(t, "nft", "ip")
	text := onNode(t, l, `ip -o link | sed 's/ qdisc.*//'; ip -o addr; nft -s list ruleset
for p in iptables-legacy-save ip6tables-legacy-save; do command -v $p >/dev/null && $p || true; done`)
	return regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|counter packets \d+ bytes \d+`).ReplaceAllString(text, "")
}

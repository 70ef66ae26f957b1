package nodenet

import (
	"context"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// kernelProcess is a Keeper with the real backends.
func kernelProcess(t *testing.T, n *nettest.Namespace) *testProcess {
	t.Helper()
	p := newProcess(t, n, nil)
	p.k.cfg.Detect, p.k.cfg.All = DetectBackend, AllBackends
	return p
}

// inPlace reads the kernel back through a backend of the test's own.
func inPlace(t *testing.T, choice Choice, rules []rule.Rule) []string {
	t.Helper()
	ctx := nettest.Context(t)
	fw, _, err := DetectBackend(ctx, choice, "nodelocaldns", nettest.NewLog(t))
	nettest.Must(t, err)
	diffs, err := fw.Check(ctx, rules)
	nettest.Must(t, err)
	return diffs
}

// The whole life of a process with the real packet filters: start, flushed rules, reload to another backend, a second
// process, drain, end, teardown.
func TestKeeperInKernel(t *testing.T) {
	nettest.Need(t, "iptables", "nft")
	for _, c := range []struct{ first, then Choice }{
		{ChoiceNFTables, ChoiceIPTables},
		{ChoiceIPTables, ChoiceNFTables},
	} {
		t.Run(string(c.first), func(t *testing.T) {
			n := nettest.NewNamespace(t)
			ctx := context.Background()
			empty := nettest.Ruleset(t)
			spec := keeperSpec()
			spec.Notrack, spec.OnExit = c.first, ExitRemove
			p := kernelProcess(t, n)
			p.start(spec)
			stop := p.Run(n)
			noSocket := !p.k.Status().SocketMatch
			if diffs := inPlace(t, c.first, spec.Plan(PlanOptions{NoSocketMatch: noSocket})); len(diffs) > 0 {
				t.Errorf("after the start: %q", diffs)
			}

			nettest.Run(t, "nft flush ruleset")
			eventually(t, "the rules are back", func() bool { return p.k.Status().Repairs[status.RepairRules] == 1 })
			if diffs := inPlace(t, c.first, spec.Plan(PlanOptions{NoSocketMatch: noSocket})); len(diffs) > 0 {
				t.Errorf("after the repair: %q", diffs)
			}

			// A second process with the other backend: the first leaves the rules to it.
			next := spec
			next.Notrack = c.then
			second := kernelProcess(t, n)
			second.start(next)
			if got := second.k.Status().Repairs[status.RepairLeftovers]; got != 1 {
				t.Errorf("left in %s: cleaned up %d times", c.first, got)
			}
			nettest.Must(t, p.k.checkRules(ctx))
			stop()
			nettest.Must(t, p.k.Close(ctx))
			noSocket = !second.k.Status().SocketMatch
			if diffs := inPlace(t, c.then, next.Plan(PlanOptions{NoSocketMatch: noSocket})); len(diffs) > 0 {
				t.Errorf("after the first has gone: %q", diffs)
			}
			if diffs := inPlace(t, c.first, nil); len(diffs) > 0 {
				t.Errorf("still in %s: %q", c.first, diffs)
			}
			nettest.Must(t, second.k.Drain(ctx))
			if !noSocket {
				if diffs := inPlace(t, c.then, next.Plan(PlanOptions{Draining: true})); len(diffs) > 0 {
					t.Errorf("while draining: %q", diffs)
				}
			}
			nettest.Must(t, second.k.Close(ctx))
			for _, choice := range []Choice{c.first, c.then} {
				if diffs := inPlace(t, choice, nil); len(diffs) > 0 {
					t.Errorf("after the end, in %s: %q", choice, diffs)
				}
			}
			if nettest.LinkExists(t, "nodelocaldns") {
				t.Error("after the end, the interface is still there")
			}

			// One that was killed, and a teardown.
			spec.OnExit = ExitKeep
			third := kernelProcess(t, n)
			third.start(spec)
			third.die()
			r := Teardown(ctx, TeardownConfig{Log: p.log})
			nettest.Must(t, r.Err())
			if !r.Removed() || nettest.LinkExists(t, "nodelocaldns") {
				t.Errorf("teardown: %q", lines(r))
			}
			if after := nettest.Ruleset(t); strings.Contains(after, "169.254.25.10") {
				t.Errorf("left after the teardown:\n%s\nwhere there was at first:\n%s", after, empty)
			}
		})
	}
}

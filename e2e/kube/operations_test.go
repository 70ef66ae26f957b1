package kube

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// follow runs the nth block of commands of a section of the manual, as an administrator would, and returns the
// output.
func (l *lab) follow(ctx context.Context, t *testing.T, section string, n int) string {
	t.Helper()
	started := time.Now()
	out, err := l.Shell(ctx, l.folder, manualCommands(t, section)[n])
	if err != nil {
		t.Fatalf("%s, section %q, block %d: %v\n%s", manual, section, n+1, err, out)
	}
	progress("%s: %q, block %d took %.1f s", manual, section, n+1, time.Since(started).Seconds())
	return out
}

// install installs localcache and checks it, as the manual says.
func (l *lab) install(ctx context.Context, t *testing.T) {
	t.Helper()
	l.follow(ctx, t, "Install", 0)
	l.check(ctx, t)
}

// check makes the administrator's three checks.
func (l *lab) check(ctx context.Context, t *testing.T) {
	t.Helper()
	const section = "Check that it works"
	if out := l.follow(ctx, t, section, 0); !strings.Contains(out, "successfully rolled out") {
		t.Errorf("rollout status says %q", out)
	}
	if out := l.follow(ctx, t, section, 1); !strings.Contains(out, "169.254.25.10") || !strings.Contains(out, "10.96.0.1") {
		t.Errorf("nslookup says %q", out)
	}
	want := strings.Repeat("coredns_setup_rules_in_place 1\n", len(l.Nodes))
	if out := l.follow(ctx, t, section, 2); out != want {
		t.Errorf("the metrics say %q, want %q", out, want)
	}
}

// requireImage waits until each node has one pod, with this image: `rollout status` does not wait for the end of
// the old pods.
func (l *lab) requireImage(ctx context.Context, t *testing.T, when, image string) {
	t.Helper()
	l.awaitPods(ctx, t, caches[ours].label, func([]cluster.Pod) error { return nil })
	out, err := l.Kubectl(ctx, "-n", "kube-system", "get", "pods", "-l", caches[ours].label,
		"-o", "jsonpath={.items[*].spec.containers[0].image}")
	must(t, err)
	if got, want := fmt.Sprint(strings.Fields(out)), fmt.Sprint([]string{image, image}); got != want {
		t.Errorf("%s the nodes run %s, want %s", when, got, want)
	}
}

// testOperations continues from an installed localcache through the manual, to its end.
func (l *lab) testOperations(ctx context.Context, t *testing.T) {
	defer l.nudge(ctx)()
	// The faults before this have changed the DaemonSet by other means.
	l.requireManifest(ctx, t)

	l.follow(ctx, t, "Upgrade", 0)
	l.requireImage(ctx, t, "after the upgrade", imageV2)
	l.check(ctx, t)

	l.follow(ctx, t, "Roll back", 0)
	l.requireImage(ctx, t, "after undo", imageV1)
	l.follow(ctx, t, "Roll back", 1)
	l.requireImage(ctx, t, "after the old tag was applied", imageV1)
	l.check(ctx, t)

	// Uninstall. The lab's part of step 1: kubelets and the pods of the tests.
	for _, n := range l.Nodes {
		must(t, n.SetClusterDNS(ctx, cluster.KubeDNS))
	}
	must(t, l.restartClients(ctx))
	l.follow(ctx, t, "Uninstall", 0)
	if out := l.follow(ctx, t, "Uninstall", 1); !strings.Contains(out, "removed") {
		t.Errorf("teardown does not say that it removed something: %q", out)
	}
	for _, n := range l.Nodes {
		requireNothingLeft(ctx, t, n)
	}
	// Pods resolve as before the installation.
	for _, p := range l.clients(ctx, t) {
		out, err := l.Exec(ctx, p.Name, "/probe", "lookup", "host:web")
		if err != nil || !strings.Contains(out, webAddress) {
			t.Errorf("after the end, %s on %s: %q, %v", p.Name, p.Node, out, err)
		}
	}
}

// nudge makes the DaemonSet controller sync the DaemonSet every 5 s, until stop is called. Without it a rollout can stop
// for ever with all pods ready. The cause is in Kubernetes 1.34, pkg/controller/daemon/daemon_controller.go:
//   - A pod that becomes ready is looked at again after minReadySeconds plus 1 s (updatePod), by AddAfter of the work
//     queue. That queue keeps only the earliest time of a key, so that the wake-up of a second pod, or of the same pod
//     after its readiness changed twice, is dropped.
//   - updateDaemonSetStatus looks again only while a node's oldest pod is ready and not yet available. During a surge the
//     oldest pod is the old one, which is available.
func (l *lab) nudge(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-time.After(5 * time.Second):
			}
			// Before the installation and after its end there is none.
			_, _ = l.Kubectl(ctx, "-n", "kube-system", "annotate", "--overwrite", "daemonset/nodelocaldns", fmt.Sprintf("tests/looked-at=%d", n))
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// requireManifest sets the DaemonSet back to the manual's version.
func (l *lab) requireManifest(ctx context.Context, t *testing.T) {
	t.Helper()
	out, err := l.Shell(ctx, l.folder, "kubectl apply -k my-cluster && kubectl -n kube-system rollout status daemonset/nodelocaldns --timeout=4m")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.requireImage(ctx, t, "at the beginning", imageV1)
}

// requireNothingLeft checks that localcache left nothing on a node.
func requireNothingLeft(ctx context.Context, t *testing.T, n *cluster.Node) {
	t.Helper()
	for _, look := range [][]string{
		{"ip", "-o", "address"}, {"ip", "-o", "link"}, {"nft", "list", "ruleset"},
		{"iptables-nft-save"}, {"iptables-legacy-save"},
	} {
		out, err := n.Run(ctx, look[0], look[1:]...)
		must(t, err)
		for line := range strings.Lines(out) {
			if strings.Contains(line, cluster.LocalAddress) || strings.Contains(line, "localcache") || strings.Contains(line, "nodelocaldns") {
				t.Errorf("%s: %s still shows %s", n.Name, look[0], line)
			}
		}
	}
}

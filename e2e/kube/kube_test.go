// Package kube tests localcache as a DaemonSet in a Kubernetes cluster of two nodes, installed by the commands of
// doc/operations.md, with pods of several C libraries that resolve through it.
//
//	make e2e-kube                                        everything
//	go test -v -kube -run 'TestIptables/resolve'         one subject (in e2e/kube)
//
// cluster/ raises the cluster, kubernetes/ builds it, image/ packs images, probe/ runs in the pods. The tests of this
// folder check what pods see (resolve_test.go, expectations_test.go), what they see during faults (faults_test.go),
// and what an administrator does (operations_test.go).
//
// Without -kube the tests are skipped; with it, a machine that cannot run them is a failure.
package kube

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

var (
	wanted = flag.Bool("kube", false, "raise Kubernetes clusters on this machine and test in them; needs root")
	hold   = flag.Duration("hold", 0, "how `long` a cluster stays up after a failure, to look around in it")
)

// tools are further programs that the tests need, with the Debian packages that have them.
var tools = map[string]string{
	"make": "make", "gcc": "gcc libc6-dev", "musl-gcc": "musl-tools", "busybox": "busybox-static",
	"iptables-legacy-save": "iptables",
}

func TestMain(m *testing.M) {
	cluster.Main()
	flag.Parse()
	if *wanted {
		if err := cluster.Missing(tools); err != nil {
			fmt.Fprintf(os.Stderr, "this machine cannot raise a Kubernetes cluster:\n%v\n", err)
			os.Exit(1)
		}
		go endWithParent(os.Getppid())
	}
	os.Exit(m.Run())
}

// endWithParent ends this process, and the clusters with it, if the `go test` that started it was killed without its
// child.
func endWithParent(parent int) {
	for range time.Tick(time.Second) {
		if os.Getppid() != parent {
			fmt.Fprintln(os.Stderr, "the process that started these tests has ended")
			os.Exit(1)
		}
	}
}

// began is when the program started, for the times in its messages.
var began = time.Now()

func progress(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
}

// needCluster skips the test in a plain `go test`. The context ends with the test and at an interrupt.
func needCluster(t *testing.T) context.Context {
	t.Helper()
	if !*wanted {
		t.Skip("raises a Kubernetes cluster: 'make e2e-kube' does")
	}
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	t.Cleanup(stop)
	return ctx
}

// lab is a cluster with kube-dns, the outside world, and the tests' helpers in it.
type lab struct {
	*cluster.Cluster
	artifacts *artifacts
	// folder is an administrator's copy of the project: deploy/.
	folder string
}

// raise raises a cluster that has no localcache yet.
func raise(ctx context.Context, t *testing.T, proxy string) *lab {
	t.Helper()
	a := build(ctx, t)
	c, err := cluster.Up(ctx, cluster.Options{
		Kubernetes: a.kubernetes, Images: a.images, Proxy: proxy, Logf: progress,
		Dir: filepath.Join(root, ".cache/kube"), Logs: filepath.Join(root, ".cache/kube/logs", t.Name()),
	})
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{Cluster: c, artifacts: a, folder: t.TempDir()}
	t.Cleanup(func() {
		if t.Failed() {
			l.explain(t)
		}
		if err := l.Close(); err != nil {
			t.Errorf("end the cluster: %v", err)
		}
	})
	if err := os.CopyFS(filepath.Join(l.folder, "deploy"), os.DirFS(filepath.Join(root, "deploy"))); err != nil {
		t.Fatal(err)
	}
	l.startWorld(ctx, t)
	l.apply(ctx, t, "kube-dns.yaml")
	must(t, l.Rolled(ctx, "deployment/coredns"))
	progress("kube-dns is ready")
	return l
}

// explain shows, after a failure, what an administrator would look at first.
func (l *lab) explain(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, args := range [][]string{
		{"get", "pods", "-A", "-o", "wide"},
		{"get", "events", "-A", "--sort-by=.lastTimestamp", "--field-selector=type=Warning"},
		{"-n", "kube-system", "logs", "-l", "k8s-app=node-local-dns", "--prefix", "--tail=30"},
	} {
		out, err := l.Kubectl(ctx, args...)
		t.Logf("kubectl %v: %v\n%s", args, err, out)
	}
	t.Logf("the cluster's own logs: %s", l.Logs)
	if *hold > 0 {
		progress("the cluster stays for %v: nsenter -t $(pgrep -f kube-apiserver) -n -m -p", *hold)
		time.Sleep(*hold)
	}
}

// apply applies a file of manifests/.
func (l *lab) apply(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("manifests", name))
	must(t, err)
	must(t, l.Apply(ctx, string(content)))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestIptables(t *testing.T) {
	ctx := needCluster(t)
	build(ctx, t) // an engine that builds images may make folders of its own when it is first used
	before := readMachine(t)
	l := raise(ctx, t, "iptables")
	l.install(ctx, t)
	l.startClients(ctx, t)
	t.Run("resolve", func(t *testing.T) { l.testResolve(ctx, t) })
	t.Run("expectations", func(t *testing.T) { l.testExpectations(ctx, t) })
	t.Run("node", func(t *testing.T) { l.testNode(ctx, t) })
	t.Run("machine", func(t *testing.T) { requireSameMachine(t, before, readMachine(t)) })
	t.Run("faults", func(t *testing.T) { l.testFaults(ctx, t) })
	t.Run("operations", func(t *testing.T) { l.testOperations(ctx, t) })
}

func TestNftables(t *testing.T) {
	ctx := needCluster(t)
	l := raise(ctx, t, "nftables")
	l.install(ctx, t)
	l.startClients(ctx, t)
	t.Run("resolve", func(t *testing.T) { l.testResolve(ctx, t) })
	t.Run("node", func(t *testing.T) { l.testNode(ctx, t) })
	t.Run("all nodes", func(t *testing.T) { l.testAllNodes(ctx, t) })
	t.Run("pods", func(t *testing.T) { l.testPods(ctx, t) })
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// died holds the times at which processes died on each node: queries in their sockets at that time are lost.
type died map[string]struct{ since, until time.Time }

// fault is a fault of a cluster.
type fault struct {
	name string
	// strike does it to both caches, and returns when all is well again.
	strike func(ctx context.Context, t *testing.T) map[string]died
	// promised says that no query for an internal name of localcache's clients may fail, but for those that were
	// in flight when a process was killed.
	promised bool
	// hurts says that the plain CoreDNS must fail some queries; otherwise the fault had no effect.
	hurts bool
	why   string
}

// quiet is how long before and after a fault queries are counted; longer than their patience.
const quiet = 1500 * time.Millisecond

// testFaults runs the counters through all faults and prints the table.
func (l *lab) testFaults(ctx context.Context, t *testing.T) {
	counters := l.startCounters(ctx, t)
	var table table
	for _, f := range l.faults() {
		t.Run(f.name, func(t *testing.T) {
			since := time.Now()
			time.Sleep(quiet)
			deaths := f.strike(ctx, t)
			time.Sleep(quiet)
			until := time.Now()
			time.Sleep(quiet) // for the answers to the last of them
			for _, cache := range []string{ours, plain} {
				sum := newSums()
				for _, c := range counters[cache] {
					counts, err := l.read(ctx, c, since, until)
					must(t, err)
					sum.add(counts, deaths[cache], c.node)
				}
				table.add(f, cache, until.Sub(since), sum)
				sum.judge(t, f, cache)
			}
			progress("fault %q took %.0f s", f.name, until.Sub(since).Seconds())
		})
	}
	fmt.Print(table.String())
}

func (l *lab) faults() []fault {
	return []fault{
		{"none", l.strikeNothing, true, false, "the counters themselves lose nothing"},
		{"rollout of a new version", l.strikeRollout, true, true, "surge: the new process shares the sockets before the old one ends"},
		{"SIGKILL of the process", l.strikeKill, true, true, "fallback: the kernel leads queries to kube-dns while no process lives"},
		{"kubectl delete pod", l.strikeDelete, true, true, "the old process drains for 5 s, then the fallback serves until the new pod is up"},
		{"OOM kill under a small limit", l.strikeMemory, true, true, "as SIGKILL, but the kernel chooses the moment, under pressure"},
		{"broken Corefile pushed and mended", l.strikeCorefile, true, false, "the broken one is refused, the mended one is taken up by new sockets beside the old"},
		{"kube-dns scaled and rolled", l.strikeKubeDNS, false, false, "names in the cache are answered; new ones wait for kube-proxy to forget a replica that is gone"},
		{"a kube-dns replica killed", l.strikeReplica, false, false, "as above, until the replica is not ready any more"},
		{"API server stopped for 30 s", l.strikeAPI, true, false, "nobody needs it to answer; the fallback's servers stay as they were last known"},
		// Not promised, but it should be: in one of eight runs 3 fresh TCP connections were not answered. The
		// kubelets wait up to 20 s before they start the processes again. Entries that an earlier fallback left in
		// connection tracking can cause this for a few, and are deleted since (TestOldFlows in internal/nodenet); but
		// it is not shown that they were the cause: the replicas that were gone had closed their connections, and
		// entries of closed ones end within a minute or two.
		{"SIGKILL while the API server is stopped", l.strikeBlind, false, true, "the fallback leads to the servers that were last known, and so does the next process; rarely a fresh TCP connection is lost, for a reason that is not known for sure"},
	}
}

func (l *lab) strikeNothing(context.Context, *testing.T) map[string]died {
	time.Sleep(5 * time.Second)
	return nil
}

func (l *lab) strikeRollout(ctx context.Context, t *testing.T) map[string]died {
	defer l.nudge(ctx)()
	_, err := l.Kubectl(ctx, "-n", "kube-system", "set", "image", "daemonset/nodelocaldns", "node-cache="+imageV2)
	must(t, err)
	_, err = l.Kubectl(ctx, "-n", "kube-system", "rollout", "restart", "daemonset/plain")
	must(t, err)
	must(t, l.Rolled(ctx, "daemonset/nodelocaldns"))
	must(t, l.Rolled(ctx, "daemonset/plain"))
	l.requireImage(ctx, t, "after the rollout", imageV2)
	l.awaitOldPodsGone(ctx, t)
	return nil
}

// caches are the label and the name of the process of either cache.
var caches = map[string]struct{ label, program string }{
	ours:  {"k8s-app=node-local-dns", "localcache"},
	plain: {"k8s-app=plain", "coredns"},
}

// awaitOldPodsGone waits until each node has one pod of each cache: `rollout status` does not wait for the
// end of the old ones.
func (l *lab) awaitOldPodsGone(ctx context.Context, t *testing.T) {
	t.Helper()
	for _, c := range caches {
		l.awaitPods(ctx, t, c.label, func(pods []cluster.Pod) error { return nil })
	}
}

// awaitPods waits until each node has one pod with the label, all are ready, and f is content with them.
func (l *lab) awaitPods(ctx context.Context, t *testing.T, label string, f func([]cluster.Pod) error) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("not well again after 2 minutes: "+label))
	defer cancel()
	must(t, cluster.Poll(ctx, 200*time.Millisecond, func() error {
		pods, err := l.Pods(ctx, "kube-system", label)
		if err != nil {
			return err
		}
		if len(pods) != len(l.Nodes) {
			return fmt.Errorf("there are %d pods", len(pods))
		}
		for _, p := range pods {
			if !p.Ready || p.Deleted {
				return fmt.Errorf("%s is not ready", p.Name)
			}
		}
		return f(pods)
	}))
}

// prey is a process to be killed, with the state of its pod before that.
type prey struct {
	cluster.Process
	pod cluster.Pod
}

// processes finds the processes of a cache.
func (l *lab) processes(ctx context.Context, t *testing.T, cache string) []prey {
	t.Helper()
	pods, err := l.Pods(ctx, "kube-system", caches[cache].label)
	must(t, err)
	var all []prey
	for _, pod := range pods {
		node, err := l.Node(pod.Node)
		must(t, err)
		process, err := node.Process(pod.UID, caches[cache].program)
		must(t, err)
		all = append(all, prey{process, pod})
	}
	return all
}

// awaitRestart waits until each struck process was started again, having ended for this reason.
func (l *lab) awaitRestart(ctx context.Context, t *testing.T, cache, reason string, struck []prey) {
	t.Helper()
	before := make(map[string]int)
	for _, p := range struck {
		before[p.pod.Name] = p.pod.Restarts
	}
	l.awaitPods(ctx, t, caches[cache].label, func(pods []cluster.Pod) error {
		for _, p := range pods {
			if p.Restarts <= before[p.Name] {
				return fmt.Errorf("%s was not restarted", p.Name)
			}
			if p.Terminated != reason {
				return fmt.Errorf("%s ended because of %s, not %s", p.Name, p.Terminated, reason)
			}
		}
		return nil
	})
}

// strikeProcesses does something deadly to the processes of either cache on both nodes, and waits until each was
// started again.
func (l *lab) strikeProcesses(ctx context.Context, t *testing.T, reason string, strike func(cluster.Process) (since, until time.Time, err error)) map[string]died {
	t.Helper()
	deaths := make(map[string]died)
	for cache := range caches {
		struck := l.processes(ctx, t, cache)
		deaths[cache] = make(died)
		for _, p := range struck {
			since, until, err := strike(p.Process)
			must(t, err)
			deaths[cache][p.pod.Node] = struct{ since, until time.Time }{since, until}
		}
		l.awaitRestart(ctx, t, cache, reason, struck)
	}
	return deaths
}

func (l *lab) strikeKill(ctx context.Context, t *testing.T) map[string]died {
	return l.strikeProcesses(ctx, t, "Error", cluster.Process.Kill)
}

func (l *lab) strikeMemory(ctx context.Context, t *testing.T) map[string]died {
	return l.strikeProcesses(ctx, t, "OOMKilled", func(p cluster.Process) (since, until time.Time, err error) {
		return p.OutOfMemory(ctx, l.artifacts.probe, "fill")
	})
}

func (l *lab) strikeDelete(ctx context.Context, t *testing.T) map[string]died {
	for _, c := range caches {
		_, err := l.Kubectl(ctx, "-n", "kube-system", "delete", "pod", "-l", c.label)
		must(t, err)
	}
	l.awaitOldPodsGone(ctx, t)
	return nil
}

func (l *lab) strikeCorefile(ctx context.Context, t *testing.T) map[string]died {
	const failures, versions = "coredns_reload_failed_total", "coredns_reload_version_info"
	both := []struct {
		configMap, corefile string
		port                int
	}{{"localcache", l.corefile(t), 9253}, {"plain", l.plainCorefile(t), 9353}}

	// The present values of the metrics are those that must not be reported then.
	old := make(map[string]bool)
	remember := func(metric string) {
		for _, o := range both {
			for _, n := range l.Nodes {
				lines, err := l.metric(ctx, n, o.port, metric)
				must(t, err)
				old[fmt.Sprint(o.port, n.Name, lines)] = true
			}
		}
	}
	awaitNew := func(metric string) {
		for _, o := range both {
			must(t, l.awaitMetric(ctx, o.port, metric, func(node, lines string) bool { return !old[fmt.Sprint(o.port, node, lines)] }))
		}
	}
	remember(failures)
	for _, o := range both {
		must(t, l.setCorefile(ctx, o.configMap, o.corefile+"\nbroken {\n    no_such_directive\n}\n"))
	}
	awaitNew(failures)
	remember(versions)
	for _, o := range both {
		mended := strings.Replace(o.corefile, "denial 9984 5", "denial 9984 6", 1)
		if mended == o.corefile {
			t.Fatal("the Corefile has no word to change")
		}
		must(t, l.setCorefile(ctx, o.configMap, mended))
	}
	awaitNew(versions)
	return nil
}

func (l *lab) strikeKubeDNS(ctx context.Context, t *testing.T) map[string]died {
	for _, args := range [][]string{
		{"scale", "deployment/coredns", "--replicas=3"},
		{"scale", "deployment/coredns", "--replicas=2"},
		{"rollout", "restart", "deployment/coredns"},
	} {
		_, err := l.Kubectl(ctx, append([]string{"-n", "kube-system"}, args...)...)
		must(t, err)
		must(t, l.Rolled(ctx, "deployment/coredns"))
	}
	l.awaitKubeDNS(ctx, t)
	return nil
}

// awaitKubeDNS waits until there are exactly two replicas.
func (l *lab) awaitKubeDNS(ctx context.Context, t *testing.T) {
	t.Helper()
	l.awaitPods(ctx, t, "k8s-app=kube-dns", func([]cluster.Pod) error { return nil })
}

func (l *lab) strikeReplica(ctx context.Context, t *testing.T) map[string]died {
	pods, err := l.Pods(ctx, "kube-system", "k8s-app=kube-dns")
	must(t, err)
	node, err := l.Node(pods[0].Node)
	must(t, err)
	process, err := node.Process(pods[0].UID, "coredns")
	must(t, err)
	_, _, err = process.Kill()
	must(t, err)
	l.awaitPods(ctx, t, "k8s-app=kube-dns", func(now []cluster.Pod) error {
		for _, p := range now {
			if p.Name == pods[0].Name && p.Restarts == pods[0].Restarts {
				return errors.New(p.Name + " was not restarted")
			}
		}
		return nil
	})
	return nil
}

func (l *lab) strikeAPI(ctx context.Context, t *testing.T) map[string]died {
	must(t, l.StopAPI())
	time.Sleep(30 * time.Second)
	must(t, l.StartAPI(ctx))
	return nil
}

// strikeBlind kills the processes while the API server is away: the kubelets start them again without it, and the
// fallback must come from what the previous process left in the kernel.
func (l *lab) strikeBlind(ctx context.Context, t *testing.T) map[string]died {
	deaths, struck := make(map[string]died), make(map[string][]prey)
	for cache := range caches {
		deaths[cache], struck[cache] = make(died), l.processes(ctx, t, cache)
	}
	must(t, l.StopAPI())
	time.Sleep(3 * time.Second)
	for cache, all := range struck {
		for _, p := range all {
			since, until, err := p.Kill()
			must(t, err)
			deaths[cache][p.pod.Node] = struct{ since, until time.Time }{since, until}
		}
	}
	time.Sleep(10 * time.Second)
	must(t, l.StartAPI(ctx))
	for cache := range caches {
		l.awaitRestart(ctx, t, cache, "Error", struck[cache])
	}
	return deaths
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// webAddress is the address of the Service web of manifests/clients.yaml.
const webAddress = "10.96.100.80"

// stub is a stub resolver: a program of the image probe that answers questions through it.
type stub string

const (
	golang stub = "Go"
	glibc  stub = "glibc"
	musl   stub = "musl"
)

func (s stub) command() []string {
	switch s {
	case glibc:
		return []string{"/lookup-glibc"}
	case musl:
		return []string{"/lookup-musl"}
	}
	return []string{"/probe", "lookup"}
}

// startClients starts the pods that ask and those that are asked for, and waits for them.
func (l *lab) startClients(ctx context.Context, t *testing.T) {
	t.Helper()
	l.apply(ctx, t, "clients.yaml")
	l.awaitReady(ctx, t, "tests=client", 3*len(l.Nodes))
	l.awaitReady(ctx, t, "app=web", len(l.Nodes))
	l.awaitReady(ctx, t, "app=db", 2)
	progress("the pods of the tests are ready")
}

// restartClients replaces the pods that ask, so that they get the kubelet's present resolv.conf.
func (l *lab) restartClients(ctx context.Context) error {
	_, err := l.Kubectl(ctx, "rollout", "restart", "daemonset", "-l", "tests=client")
	for _, name := range []string{"client", "client-host", "client-tcp"} {
		if err == nil {
			_, err = l.Kubectl(ctx, "rollout", "status", "daemonset/"+name, "--timeout=2m")
		}
	}
	return err
}

// awaitReady waits for n ready pods with a label in the namespace default.
func (l *lab) awaitReady(ctx context.Context, t *testing.T, label string, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, errors.New("pods are not ready after 2 minutes"))
	defer cancel()
	must(t, cluster.Poll(ctx, 200*time.Millisecond, func() error {
		pods, err := l.Pods(ctx, "default", label)
		if err != nil {
			return err
		}
		ready := slices.DeleteFunc(pods, func(p cluster.Pod) bool { return !p.Ready || p.Deleted })
		if len(ready) != n {
			return fmt.Errorf("%d of %d pods with %s are ready", len(ready), n, label)
		}
		return nil
	}))
}

// clients are the pods that ask, of all nodes and kinds.
func (l *lab) clients(ctx context.Context, t *testing.T) []cluster.Pod {
	t.Helper()
	pods, err := l.Pods(ctx, "default", "tests=client")
	must(t, err)
	pods = slices.DeleteFunc(pods, func(p cluster.Pod) bool { return p.Deleted })
	if len(pods) != 3*len(l.Nodes) {
		t.Fatalf("there are %d clients", len(pods))
	}
	return pods
}

// lookup has a pod answer questions through a stub resolver: answers by question.
func (l *lab) lookup(ctx context.Context, pod string, s stub, questions ...string) (map[string]string, error) {
	out, err := l.Exec(ctx, pod, append(s.command(), questions...)...)
	answers := make(map[string]string)
	for line := range strings.Lines(out) {
		question, answer, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		answers[question] = answer
	}
	return answers, err
}

// expectation is an answer that stub resolvers must get. Questions are those of probe/lookup.go.
type expectation struct {
	question, want string
	// except are resolvers that cannot, and why.
	except map[stub]string
}

// require asks from a pod, through each of the resolvers.
func (l *lab) require(ctx context.Context, t *testing.T, pod string, stubs []stub, list []expectation) {
	t.Helper()
	for _, s := range stubs {
		var questions []string
		for _, e := range list {
			if e.except[s] == "" {
				questions = append(questions, e.question)
			}
		}
		got, err := l.lookup(ctx, pod, s, questions...)
		if err != nil {
			t.Errorf("%s, %s: %v", pod, s, err)
		}
		for _, e := range list {
			if e.except[s] == "" && got[e.question] != e.want {
				t.Errorf("%s, %s: %s is %q, want %q", pod, s, e.question, got[e.question], e.want)
			}
		}
	}
}

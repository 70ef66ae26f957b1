package netns

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// fault is a fault that affects one lookup of a pod, and what localcache should report about it, by resolver.
type fault struct {
	name   string
	losses []lab.Loss
	lookup string                   // the looked-up name; the resolver's name is put before one that begins with a dot
	want   map[string]string        // see clientCounts.String
	least  map[string]time.Duration // least duration of the lookup, which shows that the fault occurred
}

// The name that pods resolve when messages get lost. It has addresses of both families.
const faultyName = "web.default.svc.cluster.local."

// slowAnswer is longer than any resolver waits before it asks again.
const slowAnswer = 6 * time.Second

var afterOneTimeout = map[string]time.Duration{glibc: 4900 * time.Millisecond, goNet: 4900 * time.Millisecond, musl: 2400 * time.Millisecond}

// half loses one message of the pair, AAAA; whole both.
func half(replies bool) []lab.Loss {
	return []lab.Loss{{Replies: replies, Name: faultyName, Type: dns.TypeAAAA, First: 1}}
}

func whole(replies bool) []lab.Loss {
	return append(half(replies), lab.Loss{Replies: replies, Name: faultyName, Type: dns.TypeA, First: 1})
}

// losses and slow upstreams.
var waits = []fault{
	{
		// One half of the pair arrives alone, from a client that asks for both. glibc then sends both from the same
		// port; musl and Go send the other one, as does a program that asks for one after the other.
		name: "a query is lost", losses: half(false), lookup: faultyName, least: afterOneTimeout,
		want: map[string]string{glibc: "glibc query_lost 1", goNet: "suspected query_lost 1", musl: "suspected query_lost 1"},
	},
	{
		// Nothing arrived, and then a pair that looks like any other.
		name: "both queries are lost", losses: whole(false), lookup: faultyName, least: afterOneTimeout,
		want: map[string]string{glibc: "none", goNet: "none", musl: "none"},
	},
	{
		name: "a reply is lost", losses: half(true), lookup: faultyName, least: afterOneTimeout,
		want: map[string]string{glibc: "glibc reply_lost 1", goNet: "go reply_lost 1", musl: "musl reply_lost 1"},
	},
	{
		// Go asks for both again, from new ports with new IDs, as does a program that polls.
		name: "both replies are lost", losses: whole(true), lookup: faultyName, least: afterOneTimeout,
		want: map[string]string{glibc: "glibc reply_lost 1", goNet: "suspected reply_lost 1", musl: "musl reply_lost 1"},
	},
	{
		name: "the upstream is slow", lookup: ".slow." + lab.AnyExternalName, least: afterOneTimeout,
		want: map[string]string{glibc: "glibc slow_upstream 1", goNet: "go slow_upstream 1", musl: "musl slow_upstream 1"},
	},
}

// Answers that are failures. glibc and musl ask again, some of them at once with the same ID from the same port,
// and musl after its timeout too; but they were answered in time, and nothing was lost.
var none = map[string]string{glibc: "none", goNet: "none", musl: "none"}

var failures = []fault{
	{name: "kube-dns fails", lookup: ".fails." + lab.AnyClusterName, want: none},
	{
		name: "the upstream is silent", lookup: ".silent." + lab.AnyExternalName, want: none,
		least: map[string]time.Duration{glibc: 2 * time.Second, goNet: 2 * time.Second, musl: 2 * time.Second},
	},
}

// TestResolvers makes glibc, Go and musl resolve in pods under faults, all at the same time, and checks what
// localcache counts.
//
// localcache recognizes resolvers by their timers, with tolerances of 90 ms (Go) and 300 ms. A machine that stalls
// for longer distorts these times: after a detected stall, and only then, the test is repeated.
func TestResolvers(t *testing.T) {
	t.Run("normal traffic", func(t *testing.T) {
		t.Parallel()
		normalTraffic(t)
	})
	for _, scene := range []resolverScene{
		{
			name: "waiting in vain", faults: waits,
			// Without this, localcache answers clients with a failure before they ask again.
			corefile: edit(t, string(localcache.CorefileExample), `(?m)forward \. __PILLAR__UPSTREAM__SERVERS__$`,
				"forward . __PILLAR__UPSTREAM__SERVERS__ {\n        read_timeout 8s\n    }"),
			spoil: func(l *lab.Lab) error { return l.Upstream.Break(lab.Fault{Delay: slowAnswer}) },
		},
		{
			name: "answered with a failure", faults: failures,
			spoil: func(l *lab.Lab) error {
				errs := []error{l.Upstream.Break(lab.Fault{Drop: 1})}
				for _, s := range l.KubeDNS {
					errs = append(errs, s.Break(lab.Fault{Rcode: dns.RcodeServerFailure}))
				}
				return errors.Join(errs...)
			},
		},
	} {
		t.Run(scene.name, func(t *testing.T) {
			t.Parallel()
			for attempt := 1; ; attempt++ {
				watch := watchStalls()
				wrong := scene.play(t)
				stall := watch.end()
				if len(wrong) == 0 {
					return
				}
				text := fmt.Sprintf("attempt %d, longest stall of the machine %v:\n%s", attempt, stall, strings.Join(wrong, "\n"))
				if stall < 50*time.Millisecond || attempt == 3 {
					t.Fatal(text)
				}
				t.Log(text)
			}
		})
	}
}

// resolverScene is a lab in which each resolver meets each fault, in a pod of its own.
type resolverScene struct {
	name     string
	faults   []fault
	corefile string
	spoil    func(*lab.Lab) error // makes the servers misbehave
}

// settled is how long localcache may take to decide: polling would show by a third question within 7.5 s.
const settled = 8 * time.Second

func (scene *resolverScene) play(t *testing.T) (wrong []string) {
	l := lab.Start(t, lab.Config{Pods: len(scene.faults) * len(stubResolverNames)})
	built := buildStubs(t, l.Path(""))
	d := start(t, l, serveOptions{Corefile: scene.corefile, Env: []string{"LOCALCACHE_SOCKET=" + diagSocket(l)}})
	// Clients are known by their usual questions: both families.
	var pods []*faultyPod
	for _, f := range scene.faults {
		for _, resolver := range stubResolverNames {
			p := &faultyPod{fault: f, resolver: resolver, host: l.Pods[len(pods)]}
			p.stub = built.start(t, p.host, resolver)
			pods = append(pods, p)
		}
	}
	if err := together(pods, func(p *faultyPod) error {
		for i := range 8 {
			if _, problem, err := p.stub.lookup(fmt.Sprintf("before-%d.%s", i, lab.AnyExternalName)); problem != "" || err != nil {
				return fmt.Errorf("before the fault: %s %w", problem, err)
			}
		}
		return l.Lose(p.host, p.losses...)
	}); err != nil {
		t.Fatal(err)
	}
	if err := scene.spoil(l); err != nil {
		t.Fatal(err)
	}
	if err := together(pods, (*faultyPod).suffer); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settled)
	for _, p := range pods {
		c, err := d.countsOf(t.Context(), p.host.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		queries, replies, err := l.Lost(p.host)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%s: %s: %v", p.name, p.resolver, c)
		if got := c.String(); got != p.want[p.resolver] {
			wrong = append(wrong, fmt.Sprintf("%s, want %s", line, p.want[p.resolver]))
		}
		if queries+replies != len(p.losses) {
			t.Errorf("%s: %d queries and %d replies were lost, want %d messages", line, queries, replies, len(p.losses))
		}
		if p.took < p.least[p.resolver] {
			t.Errorf("%s: the lookup took %v, so the resolver did not wait in vain", line, p.took)
		}
		t.Logf("%s (the lookup took %v)", line, p.took)
	}
	return wrong
}

// faultyPod is a pod with a resolver and a fault.
type faultyPod struct {
	fault
	resolver string
	host     *lab.Host
	stub     *stub
	took     time.Duration
}

// suffer makes the lookup that the fault affects. Whether it succeeds depends on the resolver.
func (p *faultyPod) suffer() (err error) {
	name := p.lookup
	if strings.HasPrefix(name, ".") {
		name = p.resolver + name
	}
	p.took, _, err = p.stub.lookup(name)
	return err
}

// together runs f for all pods side by side.
func together(pods []*faultyPod, f func(*faultyPod) error) error {
	errs := make([]error, len(pods))
	var work sync.WaitGroup
	for i, p := range pods {
		work.Go(func() {
			if errs[i] = f(p); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %s: %w", p.name, p.resolver, errs[i])
			}
		})
	}
	work.Wait()
	return errors.Join(errs...)
}

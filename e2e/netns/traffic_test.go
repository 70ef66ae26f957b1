package netns

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// By default a program that polls every 5 s asks for each name three or four times: the second time looks like a
// retransmit, the third shows that it is polling.
var trafficFor = flag.Duration("traffic", 16*time.Second, "for how `long` TestResolvers looks for retransmits in normal traffic, where there are none")

// habit is how an application in a pod resolves names. f makes lookups until ctx ends, with as many stubs as the
// application has processes.
type habit struct {
	name  string
	stubs int
	f     func(ctx context.Context, i int, resolve func(name string) error) error
}

// every calls f at the beginning and then again after each interval.
func every(ctx context.Context, interval time.Duration, f func() error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if err := f(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// polling asks for the names of a process each interval, each at a different time.
func polling(interval time.Duration) func(context.Context, int, func(string) error) error {
	return func(ctx context.Context, i int, resolve func(string) error) error {
		// The pause separates the processes.
		if !rest(ctx, time.Duration(i)*interval/5) {
			return nil
		}
		return every(ctx, interval, func() error { return resolve(fmt.Sprintf("polled-%d.%s", i, lab.AnyExternalName)) })
	}
}

// rest is false where ctx ended first.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

var habits = []habit{
	{"polls each 5 s", 5, polling(5 * time.Second)},
	{"polls each 2.5 s", 5, polling(2500 * time.Millisecond)},
	{"polls 5 s after the last answer", 5, func(ctx context.Context, i int, resolve func(string) error) error {
		for rest(ctx, time.Duration(i%2)*time.Second) {
			if err := resolve("web.default.svc.cluster.local."); err != nil || !rest(ctx, 5*time.Second) {
				return err
			}
		}
		return nil
	}},
	{"at random, with the search path", 4, func(ctx context.Context, _ int, resolve func(string) error) error {
		names := []string{"web", "kubernetes.default", "db.default.svc", "v6only.shop", "alias", "absent", "www.example.org", "www.example.com", "absent.example.org", "mail.example.org."}
		for rest(ctx, time.Duration(rand.ExpFloat64()*float64(300*time.Millisecond))) {
			if err := resolve(names[rand.IntN(len(names))]); err != nil {
				return err
			}
		}
		return nil
	}},
	{"the same name again and again", 3, func(ctx context.Context, i int, resolve func(string) error) error {
		return every(ctx, time.Duration(20*(i+1))*time.Millisecond, func() error { return resolve("web.default.svc.cluster.local.") })
	}},
	{"names that nobody has asked for", 2, func(ctx context.Context, i int, resolve func(string) error) error {
		n := 0
		return every(ctx, 100*time.Millisecond, func() error {
			n++
			return resolve(fmt.Sprintf("new-%d-%d-%d.%s", i, n, rand.Uint32(), lab.AnyClusterName))
		})
	}},
}

// normalTraffic makes pods resolve with all habits and all resolvers, and expects that no retransmit is counted:
// nothing gets lost, and nothing is slow. A lookup that nevertheless took as long as a resolver waits may be counted.
// Suspected ones are logged, not judged.
//
// A machine that stalls can delay one half of a pair, which then looks like a retransmit. So after a stall of more
// than 90 ms, the smallest of the tolerances, one in a thousand lookups may be counted.
func normalTraffic(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1 + len(habits)*len(stubResolverNames)})
	built := buildStubs(t, l.Path(""))
	d := start(t, l, serveOptions{Env: []string{"LOCALCACHE_SOCKET=" + diagSocket(l)}})
	type client struct {
		habit
		resolver string
		host     *lab.Host
		stubs    []*stub
		lookups  atomic.Int64
		waited   atomic.Int64 // lookups that lasted as long as a resolver waits before it asks again
	}
	var clients []*client
	for _, h := range habits {
		for _, resolver := range stubResolverNames {
			c := &client{habit: h, resolver: resolver, host: l.Pods[1+len(clients)]} // the first one has asked before
			for range h.stubs {
				c.stubs = append(c.stubs, built.start(t, c.host, resolver))
			}
			clients = append(clients, c)
		}
	}
	watch := watchStalls()
	ctx, cancel := context.WithTimeout(t.Context(), *trafficFor)
	defer cancel()
	var work sync.WaitGroup
	errs := make([]error, len(clients))
	for n, c := range clients {
		work.Go(func() {
			var processes sync.WaitGroup
			problems := make([]error, len(c.stubs))
			for i, s := range c.stubs {
				processes.Go(func() {
					problems[i] = c.f(ctx, i, func(name string) error {
						c.lookups.Add(1)
						took, problem, err := s.lookup(name)
						if took >= 2400*time.Millisecond {
							c.waited.Add(1)
							t.Logf("%s: %s: %s took %v %s", c.name, c.resolver, name, took, problem)
						}
						return err
					})
				})
			}
			processes.Wait()
			errs[n] = errors.Join(problems...)
		})
	}
	work.Wait()
	stall := watch.end()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	time.Sleep(settled)

	var lookups int64
	var queries, counted, suspected, allowed uint64
	for _, c := range clients {
		n, err := d.countsOf(t.Context(), c.host.IPv4)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s: %d lookups, %d queries, retransmits: %v", c.name, c.resolver, c.lookups.Load(), n.Queries, n)
		lookups += c.lookups.Load()
		allowed += uint64(c.waited.Load())
		queries, counted, suspected = queries+n.Queries, counted+n.counted(), suspected+n.suspected()
	}
	t.Logf("%v of normal traffic: %d lookups, %d queries: %d retransmits counted, %d suspected (%.2f of 1,000 lookups); longest stall of the machine %v",
		*trafficFor, lookups, queries, counted, suspected, 1000*float64(suspected)/float64(lookups), stall)
	if stall > 90*time.Millisecond {
		allowed += uint64(lookups / 1000)
	}
	if counted > allowed {
		t.Errorf("%d retransmits were counted where there are none", counted)
	}
}

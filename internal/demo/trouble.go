package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/lab"
)

// The pods of the demo by their parts when things go wrong. The ones that floods and loses have asked nothing
// before.
const (
	podWell = iota
	podWaits
	podFloods
	podLoses
	demoPods
)

const (
	// floodedName is of the outside. With ndots:5 a resolver tries it below each search domain first.
	floodedName = "www.example.org"
	floodTimes  = 1000 // lookups, one after the other: 8 queries each
	steadyQPS   = 200
	// accountWithin bounds the wait until localcache has made up its mind about all that happened.
	accountWithin = 10 * time.Second
)

// trouble makes pods and the upstream misbehave, all at once, and reads what localcache reports about it.
func (d *demonstration) trouble(ctx context.Context) error {
	d.title("Three things go wrong at the same time, for some seconds")
	is := func(i int) string { return fmt.Sprintf("%s (%s)", d.lab.Pods[i].Name, d.lab.Pods[i].IPv4) }
	d.line("%s asks for %s %d times, along its search path", is(podFloods), floodedName, floodTimes)
	d.line("%s looks two names up, and a reply to each gets lost on the way", is(podLoses))
	d.line("the upstream (%s) goes silent, and %s asks for a name that only it knows", d.lab.Upstream.Host.IPv4, is(podWaits))
	d.line("%s has no problem", is(podWell))
	steady, err := d.round(ctx, floodTimes)
	if err != nil {
		return err
	}
	culprits := [...]netip.Addr{podFloods: d.lab.Pods[podFloods].IPv4, podLoses: d.lab.Pods[podLoses].IPv4, podWaits: d.lab.Pods[podWaits].IPv4}
	upstream := netip.AddrPortFrom(d.lab.Upstream.Host.IPv4, 53).String()
	remote, err := api.NewRemote(api.RemoteOptions{Socket: api.DefaultSocket})
	if err != nil {
		return err
	}
	var a *account
	named := func() (floods, loses, silent bool) {
		return len(a.wasteful) == 1 && a.wasteful[0].Name() == culprits[podFloods].String(),
			len(a.unheard) == 1 && a.unheard[0].Name() == culprits[podLoses].String(),
			len(a.silent) == 1 && a.silent[0].Upstream.Upstream == upstream && len(a.silent[0].waiting) == 1 && a.silent[0].waiting[0] == culprits[podWaits].String()
	}
	for deadline := time.Now().Add(accountWithin); ; {
		if a, err = readAccount(ctx, remote); err != nil {
			return err
		}
		if floods, loses, silent := named(); floods && loses && silent || time.Now().After(deadline) {
			break
		}
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return err
		}
	}
	d.title("What localcache tells about it (here it knows pods by their addresses)")
	for _, line := range a.lines() {
		d.line("%s", line)
	}
	floods, loses, silent := named()
	d.promise(floods, "it names the pod that floods, no other, and what that wastes")
	d.promise(loses, "it names the pod whose replies get lost, no other, and the cause")
	d.promise(silent, "it names the silent upstream, no other, and the clients that waited for it")
	failed := 0
	for rcode, n := range steady.Rcodes() {
		if rcode != 0 {
			failed += n
		}
	}
	d.promise(len(steady) > 0 && failed == 0 && len(steady.Lost()) == 0, "%s was answered all the time: %d queries, %d lost, %d answers with an error",
		d.lab.Pods[podWell].Name, len(steady), len(steady.Lost()), failed)
	return nil
}

// round causes each fault once, and repairs it. It returns the results of the healthy pod's queries.
func (d *demonstration) round(ctx context.Context, flood int) (steady lab.Samples, err error) {
	pods := d.lab.Pods
	outside := lab.Lookup{Name: floodedName, Times: 1}
	if _, err := pods[podFloods].Resolve(ctx, outside); err != nil { // while the upstream still answers
		return nil, err
	}
	s, err := lab.Stream{From: pods[podWell], QPS: steadyQPS, Timeout: patience, Name: func(i int) string {
		if i%10 == 0 {
			return floodedName + "."
		}
		return fmt.Sprintf("q%d.%s", i%50, lab.AnyClusterName)
	}}.Start()
	if err != nil {
		return nil, err
	}
	if err = d.lab.Upstream.Host.Isolate(); err == nil {
		var work sync.WaitGroup
		var errs [3]error
		work.Go(func() {
			outside.Times = flood
			_, errs[0] = pods[podFloods].Resolve(ctx, outside)
		})
		work.Go(func() { errs[1] = d.loseReplies(ctx) })
		work.Go(func() {
			d.asked++
			_, errs[2] = pods[podWaits].Resolve(ctx, lab.Lookup{Name: fmt.Sprintf("name-%d.%s", d.asked, lab.AnyExternalName)})
		})
		work.Wait()
		err = errors.Join(append(errs[:], d.lab.Upstream.Host.Rejoin())...)
	}
	steady, stopErr := s.Stop()
	return steady, errors.Join(err, stopErr)
}

// loseReplies makes a pod look up two names, and drops one of the two replies to each. glibc then waits 5 s, and so
// does Go's resolver, which is used if there is no glibc.
func (d *demonstration) loseReplies(ctx context.Context) error {
	pod := d.lab.Pods[podLoses]
	names := []string{"web.default.svc.cluster.local.", "kubernetes.default.svc.cluster.local."}
	var losses []lab.Loss
	for _, name := range names {
		losses = append(losses, lab.Loss{Replies: true, Name: name, Type: dns.TypeAAAA, First: 1})
	}
	if err := d.lab.Lose(pod, losses...); err != nil {
		return err
	}
	var work sync.WaitGroup
	errs := make([]error, len(names))
	for i, name := range names {
		work.Go(func() {
			_, err := pod.Getent(ctx, "ahosts", name)
			if errors.Is(err, lab.ErrNoGetent) {
				_, err = pod.Resolve(ctx, lab.Lookup{Name: name})
			}
			errs[i] = err
		})
	}
	work.Wait()
	return errors.Join(append(errs, d.lab.Lose(pod))...)
}

// goOn repeats the round until ctx ends, so that there is something to look at.
func (d *demonstration) goOn(ctx context.Context) error {
	for {
		if _, err := d.round(ctx, floodTimes/20); err != nil && ctx.Err() == nil {
			return err
		}
		if !cli.WaitFor(ctx, time.Second) {
			return nil
		}
	}
}

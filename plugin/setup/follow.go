package setup

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet/rule"
)

const (
	// settleTime is how long changes are collected before they become rules: the EndpointSlices of one rollout change
	// one after the other.
	settleTime = 100 * time.Millisecond
	// followGap is the least time between two changes of the rules, however often the endpoints change. Together with
	// settleTime it leaves most of a second for the change itself.
	followGap = 400 * time.Millisecond
	// followRetry is the pause after a change that did not come to its turn.
	followRetry = time.Second
)

// follower makes the fallback follow the endpoints of a Service. The Corefile in force names it; its watch survives a
// reload that names the same Service.
type follower struct {
	log     rule.Logger
	cluster func() (kube.Config, error)
	inForce func() []netip.AddrPort // the fallback now
	set     func(ctx context.Context, udp, tcp []netip.AddrPort) error
	wake    chan struct{} // capacity 1: a Commit has been made

	mu     sync.Mutex
	wanted kube.Service // of the state in force; the zero value for none
	watch  *kube.EndpointWatch
}

func newFollower(n *Node) *follower {
	return &follower{
		log:     n.log,
		cluster: func() (kube.Config, error) { return kube.InCluster(os.Getenv) },
		inForce: func() []netip.AddrPort { return n.keeper.Status().Fallback },
		set:     n.keeper.SetFallback,
		wake:    make(chan struct{}, 1),
	}
}

// want sets the Service to follow, and that rules were made from its Spec.
func (f *follower) want(s kube.Service) {
	f.mu.Lock()
	f.wanted = s
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// learnt are the endpoints of s that are known already.
func (f *follower) learnt(s kube.Service) (kube.Endpoints, bool) {
	f.mu.Lock()
	w := f.watch
	f.mu.Unlock()
	if w == nil || w.Service() != s {
		return kube.Endpoints{}, false
	}
	return w.Endpoints()
}

// current is the watch that runs, for metrics.
func (f *follower) current() (s kube.Service, w *kube.EndpointWatch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted, f.watch
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	stop := func() {}
	defer func() { stop() }()
	var following kube.Service
	var changed <-chan struct{}
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			f.mu.Lock()
			wanted := f.wanted
			f.mu.Unlock()
			if wanted != following {
				stop()
				following = wanted
				stop, changed = f.start(ctx, wanted)
			}
		case <-changed:
			if !pause(ctx, settleTime) {
				return
			}
		case <-retry:
		}
		retry = nil
		did, err := f.push(ctx)
		if err != nil && ctx.Err() == nil {
			f.log.Errorf("the fallback does not follow %s: %v; trying again", following, err)
			retry = time.After(followRetry)
		}
		if did && !pause(ctx, followGap) {
			return
		}
	}
}

// pause waits, and returns false if ctx ended.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// start begins to watch s. Where that cannot be, it says why, and the fallback stays as the Corefile has it:
// DNS does not depend on the API server.
func (f *follower) start(ctx context.Context, s kube.Service) (stop func(), changed <-chan struct{}) {
	set := func(w *kube.EndpointWatch) {
		f.mu.Lock()
		f.watch = w
		f.mu.Unlock()
	}
	set(nil)
	if s == (kube.Service{}) {
		return func() {}, nil
	}
	servers := "it has no server"
	if now := f.inForce(); len(now) > 0 {
		var texts []string
		for _, a := range now {
			texts = append(texts, a.String())
		}
		servers = "it is " + strings.Join(texts, ", ")
	}
	cfg, err := f.cluster()
	if err != nil {
		f.log.Errorf("the fallback does not follow the endpoints of %s, %s: %v", s, servers, err)
		return func() {}, nil
	}
	f.log.Infof("the fallback follows the endpoints of %s; until the API server at %s has answered, %s", s, cfg.Server, servers)
	// In the host's network the host's name is the node's, or close enough to distinguish nodes.
	seed, err := os.Hostname()
	if err != nil {
		f.log.Warningf("all nodes take the same endpoints: %v", err)
	}
	client := kube.NewClient(cfg)
	w := client.WatchEndpoints(s, seed, f.log)
	set(w)
	watching, cancel := context.WithCancel(ctx)
	var owned sync.WaitGroup
	owned.Go(func() { w.Run(watching) })
	return func() {
		cancel()
		owned.Wait()
		client.Close()
	}, w.Changed()
}

// push makes the known endpoints the fallback, and reports whether there was anything to do.
func (f *follower) push(ctx context.Context) (did bool, err error) {
	f.mu.Lock()
	w, wanted := f.watch, f.wanted
	f.mu.Unlock()
	if w == nil || w.Service() != wanted {
		return false, nil
	}
	e, known := w.Endpoints()
	if !known {
		return false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return true, f.set(ctx, e.UDP, e.TCP)
}

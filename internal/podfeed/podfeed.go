// Package podfeed keeps the pods of this node, by address, up to date with the Kubernetes API server.
package podfeed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"localcache.dev/localcache/internal/kube"
	podtable "localcache.dev/localcache/internal/pods"
)

// NodeVariable names this node as Kubernetes does; the DaemonSet fills it in from spec.nodeName.
const NodeVariable = "NODE_NAME"

// podsComponent is the kustomize component that gives the process a token and the right to read pods.
const podsComponent = "deploy/components/pods"

const (
	// feedLook is how often the state of the watch is checked, to report it. Changes of pods do not wait for it.
	feedLook = time.Second
	// feedAddresses is how often the node's own addresses are read if the pods do not change.
	feedAddresses = 30 * time.Second
)

// Feed keeps a Directory of the pods of this node up to date with the API server, while it is wanted. Without access
// it says why. Known pods stay when the API server is away, with a remark that they may be out of date.
type Feed struct {
	podtable.Directory
	node    string
	cluster func() (kube.Config, error)
	forget  func(addr netip.Addr, before time.Time) // drops what was counted under the address until then
	addrs   func() ([]netip.Addr, error)            // of the node
	log     kube.Logger
	wake    chan struct{} // capacity 1: wanted has changed

	mu     sync.Mutex
	wanted bool
}

// New returns a Feed; call Run to start it.
func New(forget func(netip.Addr, time.Time), log kube.Logger) *Feed {
	f := &Feed{
		node:    os.Getenv(NodeVariable),
		cluster: func() (kube.Config, error) { return kube.InCluster(os.Getenv) },
		forget:  forget, addrs: interfaceAddrs, log: log, wake: make(chan struct{}, 1),
	}
	f.Store(podtable.Unknown("they have not been asked for yet"))
	return f
}

// interfaceAddrs returns the addresses of this machine, loopback included.
func interfaceAddrs() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	addrs := make([]netip.Addr, 0, len(list))
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			addrs = append(addrs, p.Addr())
		}
	}
	return addrs, nil
}

// Want says whether the pods are wanted. It does not block.
func (f *Feed) Want(on bool) {
	f.mu.Lock()
	f.wanted = on
	f.mu.Unlock()
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

func (f *Feed) isWanted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.wanted
}

// Run follows the pods while they are wanted, until ctx ends. Call it once.
func (f *Feed) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		if f.isWanted() {
			f.follow(ctx)
		}
	}
}

// access returns how to reach the API server, or why that is not possible and what to do.
func (f *Feed) access() (kube.Config, error) {
	cfg, err := f.cluster()
	switch {
	case errors.Is(err, kube.ErrNotInCluster):
		return cfg, fmt.Errorf("this process is not in a pod of a cluster: %w", err)
	case err != nil:
		return cfg, err
	case f.node == "":
		return cfg, fmt.Errorf("%s is not set, by which the pods of this node are asked for: take it from spec.nodeName (downward API), as the DaemonSet of deploy/ does", NodeVariable)
	}
	if err := cfg.Check(); err != nil {
		return cfg, fmt.Errorf("%w; %s adds it, and the right to read pods", err, podsComponent)
	}
	return cfg, nil
}

// follow returns when the pods are not wanted any more, or ctx ends.
func (f *Feed) follow(ctx context.Context) {
	// The time until the next start is unknown, so the old pods cannot be used then.
	defer f.Store(podtable.Unknown("they are not asked for"))
	cfg, err := f.access()
	if err != nil {
		f.Store(podtable.Unknown(err.Error()))
		f.log.Infof("clients are shown by IP address: %v", err)
		for f.isWanted() && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-f.wake:
			}
		}
		return
	}
	client := kube.NewClient(cfg)
	defer client.Close()
	w := client.WatchPods(f.node, f.log)
	watching, cancel := context.WithCancel(ctx)
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()
	owned.Go(func() { w.Run(watching) })

	look := time.NewTicker(feedLook)
	defer look.Stop()
	waiting := fmt.Sprintf("the API server at %s has not answered yet", cfg.Server)
	var state feedState
	for {
		f.show(w, waiting, &state)
		select {
		case <-ctx.Done():
			return
		case <-w.Changed():
			state.changed = true
		case <-look.C:
		case <-f.wake:
			if !f.isWanted() {
				return
			}
		}
	}
}

// feedState is the state of a watch.
type feedState struct {
	changed bool      // there are other pods than those in the Table
	built   time.Time // the Table; zero before the first
	said    string    // why there is none, or the remark
	moaned  bool      // about addresses that cannot be read
}

// show stores a Table of what the watch knows.
func (f *Feed) show(w *kube.PodWatch, waiting string, s *feedState) {
	list, known := w.Pods()
	state := w.State()
	if !known {
		reason := waiting
		if state.LastError != "" {
			reason = state.LastError + advice(state)
		}
		if reason != s.said {
			f.Store(podtable.Unknown(reason))
			s.said = reason
		}
		return
	}
	remark := remarkOn(state)
	now := time.Now()
	if !s.changed && !s.built.IsZero() && now.Sub(s.built) < feedAddresses {
		if remark != s.said {
			f.Store(f.Table().WithRemark(remark))
			s.said = remark
		}
		return
	}
	addrs, err := f.addrs()
	if err != nil && !s.moaned {
		s.moaned = true
		f.log.Warningf("which addresses are the node's own: %v; its clients are shown by IP address", err)
	}
	f.Turn(tableOf(list), addrs, now, f.forget)
	if remark != "" {
		f.Store(f.Table().WithRemark(remark))
	}
	s.changed, s.built, s.said = false, now, remark
}

// advice returns what else may help against a failure: a missing right is already named there.
func advice(s kube.State) string {
	if s.Forbidden {
		return "; " + podsComponent + " has them"
	}
	return ""
}

// remarkOn says that the pods are not kept up to date, or not complete.
func remarkOn(s kube.State) string {
	switch {
	case !s.Connected && s.LastError != "":
		return fmt.Sprintf("as the API server said at %s; since then: %s%s", s.LastSync.Format(time.TimeOnly), s.LastError, advice(s))
	case s.Dropped > 0:
		return fmt.Sprintf("only %d are kept, there are more on this node", s.Objects)
	}
	return ""
}

// tableOf is a list of pods as the diagnostics have it.
func tableOf(list []kube.Pod) []podtable.Pod {
	pods := make([]podtable.Pod, len(list))
	for i, p := range list {
		pods[i] = podtable.Pod{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, WorkloadKind: p.Workload.Kind, WorkloadName: p.Workload.Name,
			IPs: p.IPs, HostNetwork: p.HostNetwork, Started: p.Started,
		}
	}
	return pods
}

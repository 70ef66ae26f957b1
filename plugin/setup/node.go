package setup

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// directive is the word in the Corefile.
const directive = "setup"

// stepTimeout bounds each step that touches the kernel. It is longer than the wait for the xtables
// lock, so that the lock's own message is the one that is seen.
const stepTimeout = 20 * time.Second

// Node ties the node's network to the life of the DNS server. The network belongs to the process and not to an
// instance of the server: a reload prepares the new state beside the one in force, and only a successful reload
// replaces it.
type Node struct {
	flags  Flags
	log    rule.Logger
	keeper *nodenet.Keeper
	follow *follower

	mu      sync.Mutex
	pending *Config      // the directive of the Corefile that is being executed
	service kube.Service // that it follows, from prepare on
	active  bool         // a Spec is in force
	serving *caddy.Instance
	reload  bool // the turn is taken
	addrs   []netip.Addr
	err     error // of the last Commit; see Err

	turn         chan struct{} // one token; see beginReload
	configErrors atomic.Uint64
}

// New returns a Node for the given flags. It changes nothing before a Corefile is started.
func New(f Flags) (*Node, error) {
	log := clog.NewWithPlugin(directive)
	k, err := nodenet.NewKeeper(nodenet.KeeperConfig{Log: log})
	if err != nil {
		return nil, err
	}
	n := &Node{flags: f, log: log, keeper: k, turn: make(chan struct{}, 1)}
	n.follow = newFollower(n)
	n.turn <- struct{}{}
	return n, nil
}

// Register registers the directive with CoreDNS and hooks n into each start and reload. CoreDNS keeps both in
// registries of the process: call it once.
func (n *Node) Register() {
	plugin.Register(directive, n.setup)
	caddy.RegisterParsingCallback("dns", directive, n.prepare)
	caddy.RegisterEventHook(directive, n.onEvent)
}

// setup reads the directive of one block. The block's own plugins are not concerned.
func (n *Node) setup(c *caddy.Controller) error {
	cfg, err := parseSetup(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.pending != nil {
		return plugin.Error(directive, c.Errf("setup may occur only once in the Corefile: the other one is at %s", n.pending.Where))
	}
	n.pending = cfg
	return nil
}

// prepare runs once for a start or reload, after the setup directives of all blocks and before any other directive:
// bind may name the interface, and health may listen on the address.
func (n *Node) prepare(caddy.Context) error {
	n.mu.Lock()
	cfg := n.pending
	n.pending = nil
	n.mu.Unlock()

	// The callback gets no instance. The one being started is the last of the list, and starts do not
	// overlap: see beginReload.
	all := caddy.Instances()
	inst := all[len(all)-1]
	inst.OnRestart = append(inst.OnRestart, func() error { n.beginReload(inst); return nil })
	inst.OnRestartFailed = append(inst.OnRestartFailed, n.reloadFailed)

	listen, err := readListening(inst.Caddyfile(), n.flags.Port)
	if err != nil {
		return err
	}
	spec, err := specOf(n.flags, cfg, listen, linkOf)
	if errors.Is(err, errNothing) {
		if n.inForce() {
			n.log.Warningf("the Corefile asks for no setup any more: interface and rules stay as they are; 'localcache teardown' removes them when this process has ended")
		}
		return nil
	}
	if err != nil {
		return err
	}
	var service kube.Service
	if cfg != nil {
		service = cfg.Follow
	}
	spec.KeepFallback = service != kube.Service{}
	// Known endpoints of the Service stay in use across a reload.
	if e, known := n.follow.learnt(service); known {
		spec = spec.WithFallback(e.UDP, e.TCP)
	}
	if !listen.wildcard && len(listen.bound) == 0 {
		n.log.Warningf("no server block listens on port %d of a local address, so the rules have no effect; set -dns.port if the blocks use another port", spec.Port)
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	if err := n.keeper.Prepare(ctx, spec); err != nil {
		return fmt.Errorf("the node's network: %w", err)
	}
	n.mu.Lock()
	n.active, n.addrs, n.service = true, spec.Addresses, service
	n.mu.Unlock()
	return nil
}

// beginReload makes reloads exclude each other. The reload directive has its own goroutine, a signal may ask for a
// reload at the same time, and caddy lets both replace the same instance: the second one fails because of the first
// one's sockets, and reverts what the first one prepared. The second caller finds that inst does not serve any more,
// and ends its goroutine: an error would make caddy restore the dead instance's endpoints.
func (n *Node) beginReload(inst *caddy.Instance) {
	<-n.turn
	n.mu.Lock()
	n.reload = n.serving == inst
	stale := !n.reload
	n.mu.Unlock()
	if stale {
		n.turn <- struct{}{}
		runtime.Goexit()
	}
}

// endReload releases the turn, if a reload holds it.
func (n *Node) endReload() {
	n.mu.Lock()
	had := n.reload
	n.reload = false
	n.mu.Unlock()
	if had {
		n.turn <- struct{}{}
	}
}

func (n *Node) reloadFailed() error {
	defer n.endReload()
	return n.Rollback()
}

// onEvent puts the rules in force as soon as the sockets of an instance are open.
func (n *Node) onEvent(event caddy.EventName, info any) error {
	if event != caddy.InstanceStartupEvent {
		return nil
	}
	defer n.endReload()
	if inst, ok := info.(*caddy.Instance); ok {
		n.mu.Lock()
		n.serving = inst
		n.mu.Unlock()
	}
	if !n.inForce() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	err := n.keeper.Commit(ctx)
	if errors.Is(err, rule.ErrLocked) {
		// The lock will be free again, and the keeper retries: serving without rules for a moment is better than not
		// serving.
		n.log.Warningf("the rules are not in place yet: %v", err)
		err = nil
	} else if err != nil {
		n.log.Errorf("the rules are not in place: %v", err)
	}
	n.mu.Lock()
	n.err = err
	service := n.service
	n.mu.Unlock()
	n.follow.want(service)
	return err
}

func (n *Node) inForce() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.active
}

// Err returns what prevented the rules from being put in place at the last start or reload, except for a held xtables
// lock. CoreDNS cannot pass it on from the event that puts them in place.
func (n *Node) Err() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.err
}

// Rollback undoes the preparation of a start or reload that failed.
func (n *Node) Rollback() error {
	n.mu.Lock()
	n.pending = nil
	n.service, _ = n.follow.current()
	active := n.active
	n.mu.Unlock()
	if !active {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTimeout)
	defer cancel()
	return n.keeper.Rollback(ctx)
}

// Run maintains the network, and makes the fallback follow the endpoints of its Service, until ctx ends.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var owned sync.WaitGroup
	owned.Go(func() { n.follow.run(ctx) })
	defer owned.Wait()
	defer cancel()
	return n.keeper.Run(ctx)
}

// Drain sends new queries elsewhere before this process's sockets close. Call it while they still answer.
func (n *Node) Drain(ctx context.Context) error {
	if !n.inForce() {
		return nil
	}
	return n.keeper.Drain(ctx)
}

// Close does what on_exit says. Call it when the sockets are closed and Run has returned.
func (n *Node) Close(ctx context.Context) error {
	if !n.inForce() {
		return nil
	}
	return n.keeper.Close(ctx)
}

// Addresses are the local addresses of the last start or reload that got as far as to need them.
func (n *Node) Addresses() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.addrs)
}

// Serving returns the instance whose sockets are open; nil before the first start is complete.
func (n *Node) Serving() *caddy.Instance {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.serving
}

// Status returns the current state of the network; ok is false if no network was requested.
func (n *Node) Status() (s status.Status, ok bool) {
	if !n.inForce() {
		return status.Status{}, false
	}
	return n.keeper.Status(), true
}

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/nodenet/conntrack"
	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// KeeperConfig is what a Keeper depends on.
type KeeperConfig struct {
	Log rule.Logger

	// Detect chooses the backend; nil is DetectBackend.
	Detect func(ctx context.Context, choice Choice, owner string, log rule.Logger) (fw rule.Backend, why string, err error)
	// All returns every usable backend, to find rules that an earlier choice of backend left; nil means AllBackends.
	All func(ctx context.Context, owner string) []rule.Backend
	// Go starts a goroutine of Run; nil means the go statement. A program with several network namespaces, such as a
	// test, passes a function that enters the right one.
	Go func(func())
}

// Keeper brings the node's network into the state that a Spec describes and keeps it so while the process lives. Its
// calls follow the life of the DNS server's sockets:
//
//	Prepare   before they open: creates the addresses that they bind to
//	Commit    when they are open: puts the rules in place
//	Run       maintains link and rules in the background
//	Drain     before they close: sends new queries to the fallback
//	Close     when they are closed
//
// A reload is another Prepare and Commit, or Rollback if it fails. Each step takes the other localcache processes of
// the node into account; see package process.
//
// Every method acts in the network namespace of the calling thread. All methods but Status and Run exclude each
// other.
type Keeper struct {
	cfg      KeeperConfig
	board    *status.Board
	interest atomic.Pointer[link.Interest]

	// turn holds one token. Its holder may change rules and talk to other processes, which can take as long as
	// another program holds the xtables lock.
	turn     chan struct{}
	presence *process.Presence // under turn; nil before the first Prepare
	looked   bool              // under turn: found is known
	found    bool              // under turn: rules of the owner were there before the first that this process made
	placed   bool              // under turn: whether this process keeps the rules was found out, and logged

	// mu guards the fields below and changes of the link. It is held for netlink requests only, so that a deleted
	// link does not wait for a slow rule. Lock order: turn, then mu.
	mu        sync.Mutex
	link      *link.Link
	port      uint16 // of the last Prepare that reached the link
	committed *desiredState
	prepared  *desiredState
	made      link.Changes // by Prepare, and not yet part of a Commit that succeeded
	mine      []netip.Addr // every address that this process added to the link
	applied   bool         // a Commit, or a later attempt at it, has succeeded
	draining  bool
	closed    bool
	lastWoe   map[problemKind]string
	lastHeld  string // the last log line about addresses that other processes hold

	wakeRules chan struct{} // capacity 1: the committed state has changed
	wakeLink  chan struct{}
	wakeFlows chan struct{} // capacity 1: rules were put in place

	flows     conntrack.Table
	flowsRest time.Duration // flowsRest but in tests
}

// NewKeeper returns a Keeper. It changes nothing yet.
func NewKeeper(cfg KeeperConfig) (*Keeper, error) {
	if cfg.Log == nil {
		return nil, errors.New("nodenet: a Keeper needs a Logger")
	}
	if cfg.Detect == nil {
		cfg.Detect = DetectBackend
	}
	if cfg.All == nil {
		cfg.All = AllBackends
	}
	if cfg.Go == nil {
		cfg.Go = func(f func()) { go f() }
	}
	k := &Keeper{
		cfg:       cfg,
		board:     status.NewBoard(),
		turn:      make(chan struct{}, 1),
		lastWoe:   map[problemKind]string{},
		wakeRules: make(chan struct{}, 1),
		wakeLink:  make(chan struct{}, 1),
		wakeFlows: make(chan struct{}, 1),
		flows:     conntrack.Kernel(),
		flowsRest: flowsRest,
	}
	k.turn <- struct{}{}
	return k, nil
}

// Status is a snapshot, for any goroutine at any time.
func (k *Keeper) Status() status.Status { return k.board.Snapshot() }

var errClosed = errors.New("the keeper of the node's network is closed")

// enter waits for the turn. The caller calls leave to return it.
func (k *Keeper) enter(ctx context.Context) (leave func(), err error) {
	select {
	case <-k.turn:
		return func() { k.turn <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another change of the node's network is still under way: %w", ctx.Err())
	}
}

// lockPeers takes the lock among localcache processes, if it can: a change without the lock is better than no change.
func (k *Keeper) lockPeers(ctx context.Context) (unlock func()) {
	unlock, err := k.presence.Lock(ctx)
	if err != nil {
		k.cfg.Log.Warningf("going on without the lock among localcache processes: %v", k.board.Failed(err))
	}
	return unlock
}

// Prepare does everything that must happen before sockets open: it chooses the backend and creates the interface with
// the addresses of spec, in addition to those already in force. On an error it removes what this call created.
func (k *Keeper) Prepare(ctx context.Context, spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if k.closed {
		return errClosed
	}
	if k.presence != nil && k.presence.Owner != spec.Interface {
		return fmt.Errorf("the interface cannot become %s while the process runs, because sockets are open on %s: restart it",
			spec.Interface, k.presence.Owner)
	}
	if k.presence == nil {
		p := &process.Presence{Owner: spec.Interface}
		if err := p.Join(); err != nil {
			// Others will not see this process. That matters only when there are others.
			k.cfg.Log.Warningf("other localcache processes cannot see this one: %v", k.board.Failed(err))
		}
		k.presence = p
	}
	defer k.lockPeers(ctx)()

	w := &desiredState{spec: spec}
	err = k.settle(ctx, w)
	if errors.Is(err, rule.ErrLocked) {
		// The lock is a matter of time: Commit, and Run after it, try again.
		k.cfg.Log.Warningf("how rules can be put in place is not known yet: %v", k.board.Failed(err))
		err = nil
	}
	var made link.Changes
	if err == nil {
		made, err = k.prepareLink(w)
	}
	if err != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		err = k.board.Failed(errors.Join(err, k.undo(made)))
		if k.committed == nil && k.prepared == nil {
			err = errors.Join(err, k.leaveOthers())
		}
		return err
	}
	k.showState(w)
	return nil
}

// prepareLink creates the interface and stores w as the prepared state.
func (k *Keeper) prepareLink(w *desiredState) (link.Changes, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.link == nil {
		k.link = link.New(w.spec.Interface, k.cfg.Log)
	}
	k.port = w.spec.Port
	if !w.spec.ManageInterface {
		missing, err := link.MissingAnywhere(w.spec.Addresses)
		if err != nil {
			return link.Changes{}, err
		}
		for _, a := range missing {
			k.cfg.Log.Warningf("address %s is on no interface of this node, and -setupinterface=false leaves that to others", a)
		}
		k.prepared = w
		return link.Changes{}, nil
	}
	if err := k.link.CheckForeign(w.spec.Addresses); err != nil {
		return link.Changes{}, err
	}
	want := union(k.wanted(), w.spec.Addresses)
	s, made, err := k.link.Ensure(want, k.mine)
	k.mine = union(k.mine, made.Added)
	if err != nil {
		return made, err
	}
	k.made.Created = k.made.Created || made.Created
	k.made.Added = union(k.made.Added, made.Added)
	k.prepared = w
	k.watch(s, want)
	if made.Created {
		k.cfg.Log.Infof("interface %s of kind %s was made", k.link.Name, s.Kind())
	}
	if len(made.Added) > 0 {
		k.cfg.Log.Infof("interface %s carries %s", k.link.Name, join(made.Added))
	}
	return made, nil
}

// wanted is every address that is in force or prepared. mu is held.
func (k *Keeper) wanted() []netip.Addr {
	var addrs []netip.Addr
	for _, w := range []*desiredState{k.committed, k.prepared} {
		if w != nil && w.spec.ManageInterface {
			addrs = union(addrs, w.spec.Addresses)
		}
	}
	return addrs
}

// unheld returns those of addrs on which no other process has a socket, and logs once which ones are held. node-cache
// takes no names and is found only in this way. mu is held.
func (k *Keeper) unheld(addrs []netip.Addr) (free []netip.Addr, err error) {
	holders, err := process.HoldersOf(addrs, k.port, process.DNSPort)
	text := process.DescribeHolders(holders)
	if text != "" && text != k.lastHeld {
		k.cfg.Log.Warningf("not removed, because another process uses it: %s", text)
	}
	if err != nil {
		return nil, err
	}
	k.lastHeld = text
	return without(addrs, process.HeldAddrs(holders)), nil
}

// undo reverts made, except for what is still wanted, unless another process is present that may need it. A link that
// was set up stays up: setting it down would remove the IPv6 addresses of others. mu is held.
func (k *Keeper) undo(made link.Changes) error {
	if !made.Any() {
		return nil
	}
	if peers, err := k.presence.Others(); err != nil || len(peers) > 0 {
		k.cfg.Log.Infof("interface %s stays as it is for other localcache processes", k.link.Name)
		return err
	}
	still := k.wanted()
	might := without(made.Added, still)
	if made.Created && len(still) == 0 {
		all, err := k.link.Ours(k.mine)
		if err != nil {
			return err
		}
		might = all
	}
	free, err := k.unheld(might)
	if err != nil {
		return err
	}
	still = union(still, without(might, free))
	if made.Created && len(still) == 0 {
		removed, stays, err := k.link.Remove(k.mine)
		k.logRemoved(removed, stays)
		return err
	}
	gone, err := k.link.RemoveAddresses(without(made.Added, still))
	if len(gone) > 0 {
		k.cfg.Log.Infof("removed again from interface %s: %s", k.link.Name, join(gone))
	}
	return err
}

func (k *Keeper) logRemoved(removed []string, stays string) {
	if len(removed) > 0 {
		k.cfg.Log.Infof("removed: %s", strings.Join(removed, ", "))
	}
	if stays != "" {
		k.cfg.Log.Infof("interface %s stays: %s", k.link.Name, stays)
	}
}

// leaveOthers ends the presence of a process that has nothing prepared or in force any more.
func (k *Keeper) leaveOthers() error {
	err := k.presence.Leave()
	k.presence, k.link, k.made, k.mine = nil, nil, link.Changes{}, nil
	k.placed = false
	k.interest.Store(nil)
	return err
}

// Rollback drops the prepared state because the server could not start with it: the state in force stays, and what
// Prepare added is removed. It does nothing if nothing is prepared.
func (k *Keeper) Rollback(ctx context.Context) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return k.rollback(ctx)
}

func (k *Keeper) rollback(ctx context.Context) error {
	k.mu.Lock()
	idle := k.prepared == nil
	k.mu.Unlock()
	if idle {
		return nil
	}
	defer k.lockPeers(ctx)()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.prepared = nil
	err := k.board.Failed(k.undo(k.made))
	if k.committed == nil {
		return errors.Join(err, k.leaveOthers())
	}
	if k.applied { // otherwise Close still has to undo the start
		k.made = link.Changes{}
	}
	k.showState(k.committed)
	nudge(k.wakeLink) // the set of watched addresses has changed
	return err
}

func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func union(a, b []netip.Addr) []netip.Addr { return append(slices.Clone(a), without(b, a)...) }

func without(a, b []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(a), func(x netip.Addr) bool { return slices.Contains(b, x) })
}

func join(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, ", ")
}

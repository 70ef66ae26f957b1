package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// stepTimeout bounds each step of a teardown. It is longer than the wait for the xtables lock.
const stepTimeout = 10 * time.Second

// TeardownConfig says what Teardown removes.
type TeardownConfig struct {
	// Interfaces lists the owners; empty means DefaultOwners.
	Interfaces []string
	// Addresses are removed from an interface of the name that may not be deleted. Where the interface
	// is localcache's own they need not be named.
	Addresses []netip.Addr
	// Force removes state even if a running localcache process uses it. That process puts it back, unless it is about
	// to end.
	Force bool
	Log   rule.Logger
	// All lists the backends; nil is AllBackends.
	All func(ctx context.Context, owner string) []rule.Backend
}

// Item is the result of one step of a teardown.
type Item struct {
	Owner   string
	Where   string   // a backend's name, "interface", or "processes"
	Removed []string // what existed and was removed
	Note    string   // why something was left on purpose
	Err     error    // why something could not be removed
}

func (i Item) String() string {
	var parts []string
	if len(i.Removed) > 0 {
		parts = append(parts, "removed "+strings.Join(i.Removed, ", "))
	}
	if i.Note != "" {
		parts = append(parts, "left in place: "+i.Note)
	}
	if i.Err != nil {
		parts = append(parts, "failed: "+i.Err.Error())
	}
	if len(parts) == 0 {
		parts = []string{"nothing to remove"}
	}
	return fmt.Sprintf("%s: %s: %s", i.Owner, i.Where, strings.Join(parts, "; "))
}

// Report lists what a teardown did, in order.
type Report struct{ Items []Item }

// Err joins the failures; nil means that nothing of localcache is left, except for what a Note says.
func (r Report) Err() error {
	var errs []error
	for _, i := range r.Items {
		if i.Err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", i.Owner, i.Where, i.Err))
		}
	}
	return errors.Join(errs...)
}

// Removed reports whether anything existed and was removed.
func (r Report) Removed() bool {
	for _, i := range r.Items {
		if len(i.Removed) > 0 {
			return true
		}
	}
	return false
}

// InUseError reports that a running process uses the network that should be removed: a localcache process, or one
// with sockets on its addresses, such as node-cache.
type InUseError struct{ Processes string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("in use by %s: end it first, or force the removal", e.Processes)
}

// Teardown removes everything that any version of localcache, or node-cache before it, created for the given owners:
// the rules in every backend, then the interface. It continues after a failure, bounds each step, and reports all of
// them. The interface stays if rules stay, unless Force is set.
func Teardown(ctx context.Context, cfg TeardownConfig) Report {
	if cfg.All == nil {
		cfg.All = AllBackends
	}
	owners := cfg.Interfaces
	if len(owners) == 0 {
		owners = rule.DefaultOwners()
	}
	var r Report
	if tables := unseenLegacyTables(ctx); len(tables) > 0 {
		r.Items = append(r.Items, Item{Owner: "every owner", Where: rule.IPTablesLegacy,
			Note: fmt.Sprintf("the tables %s, in which there may be rules of node-cache: iptables-legacy is not in PATH to look into them", strings.Join(tables, ", "))})
	}
	for _, owner := range owners {
		if err := checkInterfaceName(owner); err != nil {
			r.Items = append(r.Items, Item{Owner: owner, Where: "interface", Err: err})
			continue
		}
		r.Items = append(r.Items, teardownOwner(ctx, cfg, owner)...)
	}
	return r
}

func teardownOwner(ctx context.Context, cfg TeardownConfig, owner string) []Item {
	var items []Item
	others := Item{Owner: owner, Where: "processes"}
	// Teardown does not announce itself: it does not need what it removes. A starting process waits for the lock.
	p := &process.Presence{Owner: owner}
	unlock, err := p.Lock(ctx)
	defer unlock()
	if strange := (*process.StrangerLockError)(nil); errors.As(err, &strange) {
		cfg.Log.Warningf("%s: going on without the lock among localcache processes: %v", owner, err)
		err = nil
	}
	if err != nil && !cfg.Force {
		others.Err = err
		return append(items, others)
	}
	l := link.New(owner, cfg.Log)
	switch peers, err := p.Others(); {
	case cfg.Force:
	case err != nil:
		others.Err = fmt.Errorf("%w: whether it is in use is not known; force the removal where it is not", err)
		return append(items, others)
	case len(peers) > 0:
		others.Err = &InUseError{Processes: process.DescribePeers("/proc", peers)}
		return append(items, others)
	default:
		if others.Err = checkUnused(l, cfg.Addresses); others.Err != nil {
			return append(items, others)
		}
	}

	// The rules go first: without rules the address still answers; rules without the address break queries to it.
	rulesGone := true
	for _, fw := range allWithin(ctx, cfg, owner) {
		i := Item{Owner: owner, Where: fw.Name()}
		stepCtx, cancel := context.WithTimeout(ctx, stepTimeout)
		var errs [2]error
		var nodeCache []string
		i.Removed, errs[0] = fw.Remove(stepCtx)
		nodeCache, errs[1] = fw.RemoveNodeCache(stepCtx)
		i.Removed, i.Err = append(i.Removed, nodeCache...), errors.Join(errs[:]...)
		cancel()
		rulesGone = rulesGone && i.Err == nil
		items = append(items, i)
	}
	i := Item{Owner: owner, Where: "interface"}
	switch {
	case ctx.Err() != nil:
		i.Err = ctx.Err()
	case !rulesGone && !cfg.Force:
		i.Note = "the rules that could not be removed keep queries to its addresses from going anywhere else; try again, or force the removal"
	default:
		i.Removed, i.Note, i.Err = l.Remove(cfg.Addresses)
	}
	return append(items, i)
}

// checkUnused returns an InUseError if another process has a socket on an address that would be removed. A process
// that announces no name, such as node-cache, is found only in this way.
func checkUnused(l *link.Link, known []netip.Addr) error {
	addrs, err := l.Ours(known)
	if err != nil {
		return err
	}
	holders, err := process.HoldersOf(addrs, process.DNSPort)
	if len(holders) > 0 {
		return &InUseError{Processes: process.DescribeHolders(holders)}
	}
	if err != nil {
		return fmt.Errorf("%w: whether it is in use is not known; force the removal where it is not", err)
	}
	return nil
}

func allWithin(ctx context.Context, cfg TeardownConfig, owner string) []rule.Backend {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	return cfg.All(ctx, owner)
}

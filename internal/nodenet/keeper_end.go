package nodenet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/sockets"
	"localcache.dev/localcache/internal/nodenet/status"
)

// Drain sends new queries elsewhere while this process answers the ones that it has, so that closing its sockets
// loses none: to another localcache process if one serves, else to the fallback. It does nothing if there is neither.
func (k *Keeper) Drain(ctx context.Context) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	k.mu.Lock()
	w, ready := k.committed, k.applied && !k.closed
	k.mu.Unlock()
	if w == nil || !ready {
		return nil
	}
	defer k.lockPeers(ctx)()
	peers, err := k.presence.Others()
	if err != nil {
		// Unknown: a rule for a process that may be there is not changed.
		return k.board.Failed(err)
	}
	if serving := serving(peers); len(serving) > 0 {
		k.cfg.Log.Infof("queries are left to another localcache process, %s", process.DescribePeers("/proc", serving))
		k.leave(w, true)
		return nil
	}
	if len(w.fallback()) == 0 {
		return nil
	}
	if err := k.apply(ctx, w, true); err != nil {
		return k.board.Failed(err)
	}
	k.mu.Lock()
	k.draining = true
	k.mu.Unlock()
	k.board.Update(func(s *status.Status) { s.Draining = true })
	k.leave(w, false)
	k.cfg.Log.Infof("new queries go to the fallback")
	return nil
}

// leave makes the sockets take no more queries. It includes TCP only if another process has listeners: the kernel
// then sends new connections to those, whereas closing a listener resets the connections that it has not accepted.
func (k *Keeper) leave(w *desiredState, tcp bool) {
	n, err := sockets.LeaveUDP(w.spec.Addresses, w.spec.Port, w.spec.Wildcard)
	if err == nil && n == 0 {
		err = fmt.Errorf("no UDP socket of this process is bound to %s", join(w.spec.Addresses))
	}
	if tcp {
		// CoreDNS logs these accept errors as failures.
		k.cfg.Log.Infof("new connections are left to it too: the errors of accept that follow, if any, come from that")
		_, tcpErr := sockets.LeaveTCP(w.spec.Addresses, w.spec.Port, w.spec.Wildcard)
		err = errors.Join(err, tcpErr)
	}
	if err != nil {
		// Some of the queries that come in the next moment may be lost; the end must not wait for that.
		k.cfg.Log.Warningf("new queries are not led away from the open sockets: %v", err)
	}
}

// serving returns the peers whose sockets are open.
func serving(peers []process.Peer) []process.Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p process.Peer) bool { return p.Role != process.RoleKeeper })
}

// Close ends the keeping as on_exit says, once the sockets are closed: it removes the rules and then the interface,
// or leaves both in the state that serves best without a process. What another process uses is left in place. The
// interface stays if its rules could not be removed; while another program holds the xtables lock, removal is retried
// until ctx ends. A start that never put its rules in place is undone. Run should have returned. Close may be
// repeated.
func (k *Keeper) Close(ctx context.Context) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if k.presence == nil || k.closed {
		k.mu.Lock()
		k.closed = true
		k.mu.Unlock()
		return nil
	}
	err = k.rollback(ctx)
	k.mu.Lock()
	k.closed = true
	w, applied, draining := k.committed, k.applied, k.draining
	k.mu.Unlock()
	if k.presence == nil { // nothing else is in force
		return err
	}
	defer k.lockPeers(ctx)()
	peers, peersErr := k.presence.Others()
	errs := []error{err, peersErr}
	switch {
	case len(peers) > 0:
		k.cfg.Log.Infof("interface %s and the rules are left to another localcache process, %s",
			k.presence.Owner, process.DescribePeers("/proc", peers))
		if draining && len(serving(peers)) == 0 {
			// It has not put its own rules in place yet, and may never do so.
			errs = append(errs, k.apply(ctx, w, false))
		}
	case peersErr != nil:
		k.cfg.Log.Warningf("interface %s and the rules stay, because another localcache process may use them", k.presence.Owner)
	case !applied:
		// Rules of an earlier process may be the only path of queries to the fallback.
		rules := w.spec.OnExit == ExitRemove || k.looked && !k.found
		errs = append(errs, k.takeDown(ctx, w, rules, k.undoStart))
	case w.spec.OnExit == ExitRemove:
		errs = append(errs, k.takeDown(ctx, w, true, func() error { return k.removeLink(w) }))
	default:
		if draining {
			errs = append(errs, k.apply(ctx, w, false))
		}
		k.cfg.Log.Infof("interface %s and the rules stay", k.presence.Owner)
	}
	// Other processes look for this one under the lock, so it gives up the name under the lock too.
	errs = append(errs, k.presence.Leave())
	k.board.Update(func(s *status.Status) { s.Keeper, s.Draining = false, false })
	return k.board.Failed(errors.Join(errs...))
}

// takeDown removes the rules (if rules is true) and then the link. Everything stays if another process has sockets on
// an address. The link stays if its rules stay: they keep packets to the addresses out of connection tracking, and so
// out of a Service's DNAT, which would be needed once the addresses are gone.
func (k *Keeper) takeDown(ctx context.Context, w *desiredState, rules bool, link func() error) error {
	held, err := k.heldAtEnd(w)
	if held || err != nil {
		k.cfg.Log.Warningf("interface %s and the rules stay, because another process uses them or may do so; once it has ended, `localcache teardown` removes them",
			k.presence.Owner)
		k.mu.Lock()
		draining := k.draining
		k.mu.Unlock()
		if draining {
			err = errors.Join(err, k.apply(ctx, w, false))
		}
		return err
	}
	if rules {
		err = k.removeRules(ctx, w)
	}
	if err != nil {
		return fmt.Errorf("rules are left, and therefore interface %s stays as it is; `localcache teardown` on this node removes both: %w",
			k.presence.Owner, err)
	}
	return link()
}

// heldAtEnd reports whether another process has a socket on an address that would be removed or that rules lead to.
func (k *Keeper) heldAtEnd(w *desiredState) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	addrs := w.spec.Addresses
	if w.spec.ManageInterface {
		ours, err := k.link.Ours(union(k.mine, addrs))
		if err != nil {
			return false, err
		}
		addrs = union(addrs, ours)
	}
	free, err := k.unheld(addrs)
	return len(free) < len(addrs), err
}

const (
	// removeWait bounds the attempts to remove the rules at the end where the caller sets no bound.
	removeWait = 30 * time.Second
	// removePause is the pause between two attempts. Each attempt waits for the xtables lock itself.
	removePause = 200 * time.Millisecond
)

// removeRules removes the owner's rules, and retries while another program holds the xtables lock.
func (k *Keeper) removeRules(ctx context.Context, w *desiredState) error {
	ctx, cancel := context.WithTimeout(ctx, removeWait)
	defer cancel()
	for said := false; ; said = true {
		err := k.removeRulesOnce(ctx, w)
		if !errors.Is(err, rule.ErrLocked) {
			return err
		}
		if !said {
			k.cfg.Log.Warningf("the rules are not removed yet: %v; trying again", err)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(removePause):
		}
	}
}

// removeRulesOnce removes the rules from every backend, starting with the one in use.
func (k *Keeper) removeRulesOnce(ctx context.Context, w *desiredState) error {
	if w.off() {
		return nil
	}
	var firewalls []rule.Backend
	if w.fw != nil {
		firewalls = append(firewalls, w.fw)
	}
	for _, fw := range k.cfg.All(ctx, w.spec.Interface) {
		if w.fw == nil || fw.Name() != w.fw.Name() {
			firewalls = append(firewalls, fw)
		}
	}
	var errs []error
	for _, fw := range firewalls {
		removed, err := fw.Remove(ctx)
		if len(removed) > 0 {
			k.cfg.Log.Infof("removed with %s: %s", fw.Name(), few(removed))
		}
		errs = append(errs, status.RulesError(fw.Name(), err))
	}
	err := errors.Join(errs...)
	k.board.Update(func(s *status.Status) { s.RulesInPlace = false })
	return err
}

func (k *Keeper) removeLink(w *desiredState) error {
	if !w.spec.ManageInterface {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	removed, stays, err := k.link.Remove(union(k.mine, w.spec.Addresses))
	k.logRemoved(removed, stays)
	if err == nil && stays == "" {
		k.board.Update(func(s *status.Status) { s.Kind, s.Up, s.AddressesMissing = "", false, w.spec.Addresses })
	}
	return err
}

// undoStart removes what Prepare created for a first Commit that failed.
func (k *Keeper) undoStart() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.committed = nil // no longer wanted
	return k.undo(k.made)
}

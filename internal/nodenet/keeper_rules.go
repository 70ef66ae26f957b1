package nodenet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// few words a list for a log line.
func few(lines []string) string {
	const most = 3
	if len(lines) <= most {
		return strings.Join(lines, "; ")
	}
	return fmt.Sprintf("%s; and %d more", strings.Join(lines[:most], "; "), len(lines)-most)
}

// Commit puts the rules of the prepared state in force, now that sockets are open, and reads them back. It removes
// addresses and rules of the previous state. If nothing is prepared it does the same for the state in force.
//
// The new state is in force whatever Commit returns, because the sockets are open: Run retries. An error that wraps
// ErrLocked is temporary. If a newer localcache process is the keeper, the rules are left to it.
func (k *Keeper) Commit(ctx context.Context) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()

	k.mu.Lock()
	if k.closed || k.prepared == nil && k.committed == nil {
		closed := k.closed
		k.mu.Unlock()
		if closed {
			return errClosed
		}
		return errors.New("nothing was prepared that could be put in force")
	}
	if k.prepared != nil {
		if was := k.committed; was != nil && k.prepared.spec.KeepFallback && !k.prepared.spec.hasFallback() {
			k.prepared.spec = k.prepared.spec.WithFallback(was.spec.Fallback, was.spec.FallbackTCP)
		}
		k.committed, k.prepared = k.prepared, nil
	}
	w := k.committed
	k.draining = false
	k.mu.Unlock()
	k.board.Update(func(s *status.Status) { s.Draining = false })
	defer nudge(k.wakeRules)
	defer nudge(k.wakeLink)

	defer k.lockPeers(ctx)()
	if err := k.presence.Keep(); err != nil {
		k.cfg.Log.Warningf("other localcache processes cannot see that this one keeps the rules: %v", k.board.Failed(err))
	}
	k.showState(w)
	linkErr := k.checkLink()
	err = k.bringIn(ctx, w)
	return errors.Join(linkErr, k.board.Failed(err))
}

// bringIn applies w where this process keeps the rules, and clears up after earlier wishes. The lock
// among processes is held.
func (k *Keeper) bringIn(ctx context.Context, w *desiredState) error {
	if !k.keeps() {
		k.succeeded(w)
		return nil
	}
	k.mu.Lock()
	draining := k.draining
	k.mu.Unlock()
	err := k.apply(ctx, w, draining)
	k.showState(w)
	k.board.Update(func(s *status.Status) { s.RulesInPlace = err == nil })
	w.applied = err == nil
	if err != nil {
		return err
	}
	k.succeeded(w)
	if w.fw != nil {
		k.cfg.Log.Infof("rules are in place with %s (%s)", w.fw.Name(), w.why)
		nudge(k.wakeFlows)
	}
	return errors.Join(k.clean(ctx, w), k.dropSurplus())
}

// succeeded notes that the committed state is in place, put there by this process or by a newer one.
func (k *Keeper) succeeded(w *desiredState) {
	w.applied = true
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applied = true
	k.made = link.Changes{}
}

// keeps reports whether this process is the keeper, and logs a change. If other processes cannot be found it is the
// keeper: rules that two processes repair are better than rules that none repairs.
func (k *Keeper) keeps() bool {
	peers, err := k.presence.Others()
	k.complain(woePresence, k.board.Failed(err))
	newer, older := k.presence.Newer(peers)
	was := k.board.Snapshot().Keeper
	if !k.placed || was == older { // new or changed
		k.placed = true
		if older {
			k.cfg.Log.Infof("the rules are left to a newer localcache process, %s", process.DescribePeers("/proc", []process.Peer{newer}))
		} else {
			k.cfg.Log.Infof("this process keeps the rules of %s", k.presence.Owner)
		}
		k.board.Update(func(s *status.Status) { s.Keeper = !older })
	}
	return !older
}

// clean removes the owner's rules from backends that are not in use: they would act beside the rules of the one in
// use.
func (k *Keeper) clean(ctx context.Context, w *desiredState) error {
	if w.cleaned {
		return nil
	}
	var errs []error
	for _, fw := range k.cfg.All(ctx, w.spec.Interface) {
		if w.fw != nil && fw.Name() == w.fw.Name() {
			continue
		}
		// Check comes first: it changes nothing, and usually there is nothing to remove.
		found, err := fw.Check(ctx, nil)
		var removed []string
		if err == nil && len(found) > 0 {
			removed, err = fw.Remove(ctx)
		}
		if len(removed) > 0 {
			k.cfg.Log.Infof("removed what an earlier process had left with %s: %s", fw.Name(), few(removed))
			k.board.Repaired(status.RepairLeftovers)
		}
		if err != nil {
			errs = append(errs, status.RulesError(fw.Name(), fmt.Errorf("look for what earlier processes left with %s: %w", fw.Name(), err)))
		}
	}
	err := errors.Join(errs...)
	// A held lock is retried; any other error would repeat.
	w.cleaned = !errors.Is(err, rule.ErrLocked)
	if w.off() && err != nil && w.cleaned {
		// Without rules the process may lack the rights to look, and does not need them.
		k.cfg.Log.Infof("cannot check for rules of earlier processes: %v", err)
		return nil
	}
	if err != nil && w.cleaned {
		k.cfg.Log.Warningf("cannot check for rules of earlier processes: %v", k.board.Failed(err))
		return nil
	}
	return err
}

// dropSurplus removes addresses from the link that no process wants. It runs with the lock among processes held, so
// that no process is about to want one.
func (k *Keeper) dropSurplus() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.committed == nil || !k.committed.spec.ManageInterface {
		return nil
	}
	s, err := k.link.Read(k.wanted(), k.mine)
	if err != nil || len(s.Surplus) == 0 {
		return err
	}
	if peers, err := k.presence.Others(); err != nil || len(peers) > 0 {
		return err
	}
	free, err := k.unheld(s.Surplus)
	if err != nil {
		return err
	}
	gone, err := k.link.RemoveAddresses(free)
	if len(gone) > 0 {
		k.cfg.Log.Infof("removed from interface %s, because nothing asks for them: %s", k.link.Name, join(gone))
		k.board.Repaired(status.RepairSurplus)
	}
	return err
}

// checkRules reads the rules back, repairs them, and does what was put off until a check.
func (k *Keeper) checkRules(ctx context.Context) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	k.mu.Lock()
	w, draining, closed := k.committed, k.draining, k.closed
	k.mu.Unlock()
	if w == nil || closed {
		return nil
	}
	was := k.board.Snapshot().Keeper
	keeps := k.keeps()
	if !w.applied || keeps && !was { // not yet applied, or a newer process left its rules
		defer k.lockPeers(ctx)()
		return k.board.Failed(k.bringIn(ctx, w))
	}
	var errs []error
	if w.fw != nil {
		diffs, err := w.fw.Check(ctx, w.rules(draining))
		inPlace := err == nil && len(diffs) == 0
		err = status.RulesError(w.fw.Name(), err)
		if err == nil && !inPlace && keeps {
			inPlace, err = k.mend(ctx, w, draining, diffs)
		}
		k.board.Update(func(s *status.Status) {
			if inPlace && !s.RulesInPlace {
				nudge(k.wakeFlows)
			}
			s.RulesInPlace = inPlace
		})
		errs = append(errs, err)
	}
	if keeps {
		errs = append(errs, k.late(ctx, w))
	}
	return k.board.Failed(errors.Join(errs...))
}

// mend puts back rules that were found to differ, unless a newer process has come in the meantime.
func (k *Keeper) mend(ctx context.Context, w *desiredState, draining bool, diffs []string) (inPlace bool, err error) {
	defer k.lockPeers(ctx)()
	if !k.keeps() {
		return false, nil
	}
	if err := k.apply(ctx, w, draining); err != nil {
		return false, err
	}
	k.board.Repaired(status.RepairRules)
	nudge(k.wakeFlows) // packets that arrived while they were missing were tracked
	k.cfg.Log.Warningf("rules of %s had been changed by another program and were put back: %s", w.fw.Name(), few(diffs))
	return true, nil
}

// late does what Commit put off: leftovers behind a held lock, and addresses that an older process still used.
func (k *Keeper) late(ctx context.Context, w *desiredState) error {
	k.mu.Lock()
	var surplus bool
	if w.spec.ManageInterface {
		s, err := k.link.Read(k.wanted(), k.mine)
		if err != nil {
			k.mu.Unlock()
			return err
		}
		free, err := k.unheld(s.Surplus)
		if err != nil {
			k.mu.Unlock()
			return err
		}
		surplus = len(free) > 0
	}
	k.mu.Unlock()
	if w.cleaned && !surplus {
		return nil
	}
	if surplus {
		// Most often an older process is still there, which is no reason to hold up others each time.
		if peers, err := k.presence.Others(); err != nil || len(peers) > 0 {
			return err
		}
	}
	defer k.lockPeers(ctx)()
	return errors.Join(k.clean(ctx, w), k.dropSurplus())
}

// problemKind names a source of problems. A problem is logged when it changes, not each time it occurs.
type problemKind string

const (
	woeRules    problemKind = "rules"
	woeLink     problemKind = "link"
	woePresence problemKind = "presence"
	woeEvents   problemKind = "events"
)

// complain logs err if it differs from the last one of this kind, and logs the recovery if err is nil. It does not
// count errors: that happens where they occur.
func (k *Keeper) complain(from problemKind, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.complainLocked(from, text)
}

func (k *Keeper) complainLocked(from problemKind, text string) {
	was := k.lastWoe[from]
	if was == text {
		return
	}
	k.lastWoe[from] = text
	if text != "" {
		k.cfg.Log.Errorf("the node's network (%s): %s; trying again", from, text)
	} else {
		k.cfg.Log.Infof("the node's network (%s): in order again", from)
	}
}

// retryFirst is the pause before a failed attempt is repeated; it doubles up to the Spec's Check. An xtables lock is
// usually released within seconds, and rules should not be missing much longer.
const retryFirst = time.Second

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

// Commit puts the rules of what was prepared in force, now that sockets are open, and reads them back.
// Addresses and rules of what was in force before are removed. Without anything prepared it does the
// same for what is in force.
//
// The new wishes are in force whatever is returned, as the sockets are: Run goes on trying. An error
// that wraps ErrLocked is a matter of time. Where a newer localcache process keeps the rules, they are
// left to it.
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
	k.showWish(w)
	linkErr := k.checkLink()
	err = k.bringIn(ctx, w)
	return errors.Join(linkErr, k.board.Failed(err))
}

// bringIn applies w where this process keeps the rules, and clears up after earlier wishes. The lock
// among processes is held.
func (k *Keeper) bringIn(ctx context.Context, w *wish) error {
	if !k.keeps() {
		k.succeeded(w)
		return nil
	}
	k.mu.Lock()
	draining := k.draining
	k.mu.Unlock()
	err := k.apply(ctx, w, draining)
	k.showWish(w)
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

// succeeded notes that what is committed is in place, here or by a newer process: from now on it is no
// longer half made.
func (k *Keeper) succeeded(w *wish) {
	w.applied = true
	k.mu.Lock()
	defer k.mu.Unlock()
	k.applied = true
	k.made = link.Changes{}
}

// keeps tells whether this process is the one that keeps the rules, and says so when that changes.
// Where others cannot be looked for it is: rules that two processes repair are better than rules that
// nobody does.
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

// clean removes what the owner has in front ends that are not in use: it would go on acting beside the
// rules of the one that is.
func (k *Keeper) clean(ctx context.Context, w *wish) error {
	if w.cleaned {
		return nil
	}
	var errs []error
	for _, fw := range k.cfg.All(ctx, w.spec.Interface) {
		if w.fw != nil && fw.Name() == w.fw.Name() {
			continue
		}
		// A look comes first: it changes nothing where there is nothing of ours, which is the rule.
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
	// A lock is waited for; anything else would fail in the same way every time.
	w.cleaned = !errors.Is(err, rule.ErrLocked)
	if w.off() && err != nil && w.cleaned {
		// Without rules the process may well lack the rights to look. Nobody asked for more.
		k.cfg.Log.Infof("whether earlier processes left rules behind is not known: %v", err)
		return nil
	}
	if err != nil && w.cleaned {
		k.cfg.Log.Warningf("whether earlier processes left rules behind is not known: %v", k.board.Failed(err))
		return nil
	}
	return err
}

// dropSurplus takes addresses off the link that no process wants any more. The lock among processes is
// held, so that nobody is about to want one.
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

// checkRules reads the rules back and mends them, and does the rest of what can wait for a check.
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
	if !w.applied || keeps && !was { // not yet, or a newer process has left what it had
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
func (k *Keeper) mend(ctx context.Context, w *wish, draining bool, diffs []string) (inPlace bool, err error) {
	defer k.lockPeers(ctx)()
	if !k.keeps() {
		return false, nil
	}
	if err := k.apply(ctx, w, draining); err != nil {
		return false, err
	}
	k.board.Repaired(status.RepairRules)
	nudge(k.wakeFlows) // what came while they were missing was tracked
	k.cfg.Log.Warningf("rules of %s had been changed by another program and were put back: %s", w.fw.Name(), few(diffs))
	return true, nil
}

// late does what Commit had to leave: leftovers that were locked, addresses that an older process
// still needed.
func (k *Keeper) late(ctx context.Context, w *wish) error {
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

// woe is a source of trouble that is reported when it changes and not each time it is met.
type woe string

const (
	woeRules    woe = "rules"
	woeLink     woe = "link"
	woePresence woe = "presence"
	woeEvents   woe = "events"
)

// complain logs err where it is not what that source said last, and that the trouble is over where
// there is none any more. It does not count: that is done where the error arises.
func (k *Keeper) complain(from woe, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.complainLocked(from, text)
}

func (k *Keeper) complainLocked(from woe, text string) {
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

// retryFirst is the pause before a failed attempt is repeated; it doubles up to the Spec's Check. A
// held xtables lock is given back within seconds, and rules should not be missing much longer.
const retryFirst = time.Second

package nodenet

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"localcache.dev/localcache/internal/nodenet/status"
)

// SetFallback makes udp and tcp (or udp for both, where tcp is empty) the fallback servers of what is in
// force, in place of those before: as one change of the rules, at each moment of which a packet meets the old
// ones or the new. Flows that were translated already stay with their server. Servers that cannot be a fallback
// are left out.
//
// Before the first Commit, with notrack off and for servers that are those already, it does nothing. After an
// error of the rules the new servers are in force all the same, and Run goes on trying; one that says that
// another change is under way, or that the Keeper is closed, has changed nothing.
func (k *Keeper) SetFallback(ctx context.Context, udp, tcp []netip.AddrPort) error {
	leave, err := k.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	k.mu.Lock()
	w, draining, closed := k.committed, k.draining, k.closed
	k.mu.Unlock()
	if closed {
		return errClosed
	}
	if w == nil || w.off() {
		return nil
	}
	next := *w
	next.spec = w.spec.WithFallback(udp, tcp)
	if slices.Equal(next.spec.Fallback, w.spec.Fallback) && slices.Equal(next.spec.FallbackTCP, w.spec.FallbackTCP) {
		return nil
	}
	next.applied = false
	k.mu.Lock()
	k.committed = &next
	k.mu.Unlock()
	defer nudge(k.wakeRules)
	if !w.applied {
		k.showWish(&next)
		return nil // Run is about to put the rules in place
	}
	defer k.lockPeers(ctx)()
	if !k.keeps() {
		next.applied = true
		k.showWish(&next)
		return nil
	}
	err = k.apply(ctx, &next, draining)
	k.showWish(&next)
	k.board.Update(func(s *status.Status) { s.RulesInPlace = err == nil })
	next.applied = err == nil
	if err != nil {
		return k.board.Failed(err)
	}
	if servers := next.fallback(); len(servers) > 0 {
		var texts []string
		for _, s := range servers {
			texts = append(texts, s.String())
		}
		k.cfg.Log.Infof("fallback: %s", strings.Join(texts, ", "))
	} else {
		k.cfg.Log.Infof("fallback: none")
	}
	return nil
}

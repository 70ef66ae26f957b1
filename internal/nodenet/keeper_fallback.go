package nodenet

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	"localcache.dev/localcache/internal/nodenet/status"
)

// SetFallback replaces the fallback servers in force by udp and tcp (udp for both if tcp is empty), in one change of
// the rules: each packet meets either the old or the new ones. Flows that are already translated keep their server.
// Servers that cannot be a fallback are left out.
//
// It does nothing before the first Commit, with notrack off, and if the servers are the same. After an error of the
// rules the new servers count as in force and Run retries. An error which says that another change is under way, or
// that the Keeper is closed, means that nothing changed.
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
		k.showState(&next)
		return nil // Run will put the rules in place
	}
	defer k.lockPeers(ctx)()
	if !k.keeps() {
		next.applied = true
		k.showState(&next)
		return nil
	}
	err = k.apply(ctx, &next, draining)
	k.showState(&next)
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

package nodenet

import (
	"context"
	"fmt"
	"net/netip"

	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// adopt gives w the fallback servers that the rules in the kernel already use, if w keeps the servers in force and
// names none itself: an earlier process has learned them, and this process does not know them yet.
func (k *Keeper) adopt(ctx context.Context, w *desiredState) error {
	if !w.spec.KeepFallback || w.spec.hasFallback() {
		return nil
	}
	var found [2][]netip.AddrPort
	for i, p := range []rule.Proto{rule.UDP, rule.TCP} {
		for _, a := range w.spec.Addresses {
			servers, err := w.fw.Fallback(ctx, fallbackRule(a, w.spec.Port, p, nil))
			if err != nil {
				return status.RulesError(w.fw.Name(), fmt.Errorf("read the fallback that is in place: %w", err))
			}
			found[i] = append(found[i], servers...)
		}
	}
	spec := w.spec.WithFallback(found[0], found[1])
	k.mu.Lock() // the goroutine that maintains the link reads the addresses concurrently
	w.spec = spec
	k.mu.Unlock()
	if spec.hasFallback() {
		k.cfg.Log.Infof("the fallback stays what an earlier process made it, until more is known")
	}
	return nil
}

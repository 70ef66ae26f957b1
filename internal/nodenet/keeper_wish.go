package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// wish is a Spec and how it is carried out.
type wish struct {
	spec Spec
	fw   rule.Backend // nil with notrack off, and as long as a held lock keeps it from being chosen
	why  string       // it is that front end

	probed   bool  // noSocket is known
	noSocket error // why the front end cannot ask for an open socket; nil where it can
	warned   bool  // about noSocket

	applied bool // its rules have been put in place, if this process keeps them
	cleaned bool // leftovers in other front ends were looked for
}

func (w *wish) off() bool { return w.spec.Notrack == ChoiceOff }

// settle finds out what is not known of w yet: the front end, and whether it can ask for an open socket.
// Both can take another attempt, where the xtables lock is held.
func (k *Keeper) settle(ctx context.Context, w *wish) error {
	if w.off() || w.probed {
		return nil
	}
	if w.fw == nil {
		fw, why, err := k.cfg.Detect(ctx, w.spec.Notrack, w.spec.Interface, k.cfg.Log)
		if err != nil {
			return status.RulesError(string(w.spec.Notrack), err)
		}
		w.fw, w.why = fw, why
	}
	err := w.fw.SocketMatch(ctx, w.spec.Addresses)
	if err != nil && (errors.Is(err, rule.ErrLocked) || ctx.Err() != nil) {
		return status.RulesError(w.fw.Name(), err)
	}
	w.probed, w.noSocket = true, err
	k.warnNoSocket(w)
	return nil
}

// warnNoSocket says once that the socket match is missing.
func (k *Keeper) warnNoSocket(w *wish) {
	if w.noSocket == nil || w.warned {
		return
	}
	w.warned = true
	if c := k.committed; c != nil && c != w && c.noSocket != nil && c.noSocket.Error() == w.noSocket.Error() {
		return
	}
	consequence := "queries are kept out of connection tracking even while this process is dead"
	if w.spec.hasFallback() {
		consequence += ", and the fallback is off"
	}
	k.cfg.Log.Warningf("%s cannot ask for an open socket here, so that %s: %v", w.fw.Name(), consequence, w.noSocket)
}

func (w *wish) rules(draining bool) []rule.Rule {
	return w.spec.Plan(PlanOptions{NoSocketMatch: w.noSocket != nil, Draining: draining})
}

// fallback lists the servers that rules lead to: those of a family that has an address.
func (w *wish) fallback() []netip.AddrPort {
	if w.fw == nil || !w.probed || w.noSocket != nil {
		return nil
	}
	var servers []netip.AddrPort
	for _, a := range w.spec.Addresses {
		for _, p := range []rule.Proto{rule.UDP, rule.TCP} {
			for _, s := range w.spec.fallbackFor(a, p) {
				if !slices.Contains(servers, s) {
					servers = append(servers, s)
				}
			}
		}
	}
	return servers
}

// apply puts the rules of w in place and reads them back.
func (k *Keeper) apply(ctx context.Context, w *wish, draining bool) error {
	if err := k.settle(ctx, w); err != nil || w.off() {
		return err
	}
	if !k.looked {
		diffs, err := w.fw.Check(ctx, nil)
		if err != nil {
			return status.RulesError(w.fw.Name(), err)
		}
		k.looked, k.found = true, len(diffs) > 0
		if err := k.adopt(ctx, w); err != nil {
			// What it was is not known for a while; to serve matters more.
			k.cfg.Log.Warningf("the fallback of an earlier process is lost: %v", k.board.Failed(err))
		}
	}
	rules := w.rules(draining)
	if err := w.fw.Apply(ctx, rules); err != nil {
		return status.RulesError(w.fw.Name(), err)
	}
	diffs, err := w.fw.Check(ctx, rules)
	if err == nil && len(diffs) > 0 {
		err = fmt.Errorf("%s took the rules, but they are not in place: %s", w.fw.Name(), few(diffs))
	}
	return status.RulesError(w.fw.Name(), err)
}

// showWish puts what w says into the Status.
func (k *Keeper) showWish(w *wish) {
	k.board.Update(func(s *status.Status) {
		s.Interface = w.spec.Interface
		s.Backend, s.Why = "", w.why
		s.SocketMatch, s.NoSocketMatch = false, ""
		if w.off() {
			s.Backend = string(ChoiceOff)
		}
		if w.fw != nil {
			s.Backend = w.fw.Name()
			s.SocketMatch = w.probed && w.noSocket == nil
			if w.noSocket != nil {
				s.NoSocketMatch = w.noSocket.Error()
			}
		}
		s.Fallback = w.fallback()
	})
}

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

// desiredState is a Spec with the decisions about how to carry it out.
type desiredState struct {
	spec Spec
	fw   rule.Backend // nil with notrack off, and as long as a held lock keeps it from being chosen
	why  string       // it is that backend

	probed   bool  // noSocket is known
	noSocket error // why the backend cannot match an open socket; nil if it can
	warned   bool  // about noSocket

	applied bool // its rules have been put in place, if this process is the keeper
	cleaned bool // leftovers in other backends were looked for
}

func (w *desiredState) off() bool { return w.spec.Notrack == ChoiceOff }

// settle finds out what is still unknown about w: the backend, and whether it can match an open socket. Both may need
// another attempt while the xtables lock is held.
func (k *Keeper) settle(ctx context.Context, w *desiredState) error {
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
func (k *Keeper) warnNoSocket(w *desiredState) {
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

func (w *desiredState) rules(draining bool) []rule.Rule {
	return w.spec.Plan(PlanOptions{NoSocketMatch: w.noSocket != nil, Draining: draining})
}

// fallback lists the servers that rules lead to: those of a family that has an address.
func (w *desiredState) fallback() []netip.AddrPort {
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
func (k *Keeper) apply(ctx context.Context, w *desiredState, draining bool) error {
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
			// The previous fallback is unknown for a while; serving is more important.
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

// showState copies the state of w into the Status.
func (k *Keeper) showState(w *desiredState) {
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

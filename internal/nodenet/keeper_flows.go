package nodenet

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/conntrack"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/sockets"
	"localcache.dev/localcache/internal/nodenet/status"
)

// A flow that the fallback carried leaves an entry in connection tracking when sockets open: from then on the
// client's packets are not tracked, and the kernel does not see the flow end. A TCP connection's entry stays
// ESTABLISHED for up to five days (nf_conntrack_tcp_timeout_established) until its server closes it. CoreDNS does so
// after 10 s; a server that vanished never does. If this process dies and a client reuses the port, the kernel takes
// the SYN for a packet of the old connection (net/netfilter/nf_conntrack_proto_tcp.c ignores it), does not translate
// it anew, and sends it to the old server. A UDP entry lives for 30 s or 2 min, and a socket that keeps sending keeps
// it alive. Therefore this process deletes the entries once it answers. Entries from a moment without rules, which
// lead nowhere, are deleted in the same way.
//
// Limits: a process that lives less than flowsRest deletes nothing; and while no process lives, nothing deletes the
// entries of a server that ends.

const (
	// flowsRest is the time between opening the sockets and the deletion. A fallback reply that is still on its way
	// needs its entry to be translated back. It is the default wait of a stub resolver (RES_TIMEOUT, resolv.conf(5)):
	// no client waits longer for a reply. It is also the minimum time between two deletions.
	flowsRest = 5 * time.Second
	// flowsTimeout bounds one reading of the table. A kernel that cannot filter hands out some 500,000 entries a second.
	flowsTimeout = 10 * time.Second
	// flowsTurn bounds the deletion, which others wait for: a reload, or the end.
	flowsTurn = time.Second
)

// forgetOld deletes old entries: flowsRest after rules were last put in place, by the first Commit, a reload or a
// repair. It does so at no other time, so that the table is read only a few times in the life of a process.
func (k *Keeper) forgetOld(ctx context.Context) {
	said := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wakeFlows:
		}
		if !k.rest(ctx) {
			return
		}
		n, more, err := k.forgetOldOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if n > 0 {
			k.cfg.Log.Infof("connection tracking has forgotten %d flows that the fallback had carried", n)
		}
		if more {
			nudge(k.wakeFlows)
		}
		text := ""
		if err = k.board.Failed(err); err != nil {
			text = err.Error()
		}
		if text != "" && text != said {
			k.cfg.Log.Warningf("connection tracking entries of the fallback could not be deleted: a later fallback may send the same clients to the same servers, even if those are gone: %s", text)
		}
		said = text
	}
}

// rest waits until no rules were put in place for flowsRest. It returns false when ctx ends.
func (k *Keeper) rest(ctx context.Context) bool {
	timer := time.NewTimer(k.flowsRest)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-k.wakeFlows:
			timer.Reset(k.flowsRest)
		case <-timer.C:
			return true
		}
	}
}

// forgetOldOnce reads the table, which blocks nothing else, and deletes what it finds. more is true if entries may be
// left.
func (k *Keeper) forgetOldOnce(ctx context.Context) (n int, more bool, err error) {
	defer func() {
		if err != nil {
			err = &status.SetupError{Type: status.ErrorConntrack, Err: err}
		}
	}()
	ours, err := k.untracked()
	if err != nil || len(ours) == 0 {
		return 0, false, err
	}
	readCtx, cancel := context.WithTimeout(ctx, flowsTimeout)
	defer cancel()
	flows, err := k.flows.Find(readCtx, ours)
	if err != nil || len(flows) == 0 {
		return 0, false, err
	}
	leave, err := k.enter(ctx)
	if err != nil {
		return 0, false, err
	}
	defer leave()
	// A fallback that started meanwhile may use some of the entries. While this goroutine holds the turn, only the
	// death of this process can start one.
	again, err := k.untracked()
	if err != nil || !slices.Equal(ours, again) || !k.keeps() {
		return 0, false, err
	}
	// Nor must another program's damage have had the fallback take them up: it is found out at a check, and mended there.
	if !k.undamaged(ctx) {
		return 0, true, nil
	}
	deleteCtx, cancel := context.WithTimeout(ctx, flowsTurn)
	defer cancel()
	n, err = k.flows.Forget(deleteCtx, flows)
	if n > 0 && errors.Is(err, context.DeadlineExceeded) {
		return n, true, nil
	}
	return n, err == nil && len(flows) >= conntrack.MaxFlows, err
}

// undamaged reports whether the rules are in place and were not just put back. A failure to read them is left to the
// check to report.
func (k *Keeper) undamaged(ctx context.Context) bool {
	k.mu.Lock()
	w, draining := k.committed, k.draining
	k.mu.Unlock()
	if w == nil || w.fw == nil || len(k.wakeFlows) > 0 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	diffs, err := w.fw.Check(ctx, w.rules(draining))
	return err == nil && len(diffs) == 0
}

// untracked returns the services whose packets are not tracked because this process answers: rules with a socket
// match are in place, nothing is draining, and the match finds a socket of this process. Neither the fallback nor,
// for a Service address, kube-proxy then carries these services. An address that no server block binds is not
// included: the fallback carries its queries all the time.
func (k *Keeper) untracked() ([]conntrack.Service, error) {
	k.mu.Lock()
	w, draining, closed := k.committed, k.draining, k.closed
	k.mu.Unlock()
	if w == nil || draining || closed {
		return nil, nil
	}
	// A newer process, if there is one, does this for both.
	if s := k.Status(); !s.RulesInPlace || !s.SocketMatch || !s.Keeper {
		return nil, nil
	}
	return openServices(w.spec.Addresses, w.spec.Port, w.spec.Wildcard)
}

// openServices returns the services that a socket of this process accepts new queries for.
func openServices(addrs []netip.Addr, port uint16, wildcard bool) ([]conntrack.Service, error) {
	open := make(map[conntrack.Service]bool)
	add := func(proto rule.Proto, fd int, at netip.AddrPort) {
		for _, a := range addrs {
			if at.Addr() == a || at.Addr().IsUnspecified() && takes(fd, at.Addr(), a) {
				open[conntrack.Service{Proto: proto, At: netip.AddrPortFrom(a, port)}] = true
			}
		}
	}
	err := sockets.EachSocket(unix.SOCK_DGRAM, addrs, port, wildcard, func(fd int, at netip.AddrPort, _ unix.Sockaddr) error {
		// One with a peer has been left; see leaveUDP.
		if _, err := unix.Getpeername(fd); err != nil {
			add(rule.UDP, fd, at)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = sockets.EachSocket(unix.SOCK_STREAM, addrs, port, wildcard, func(fd int, at netip.AddrPort, _ unix.Sockaddr) error {
		if listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err == nil && listens != 0 {
			add(rule.TCP, fd, at)
		}
		return nil
	})
	var list []conntrack.Service
	for _, a := range addrs {
		for _, p := range []rule.Proto{rule.UDP, rule.TCP} {
			if s := (conntrack.Service{Proto: p, At: netip.AddrPortFrom(a, port)}); open[s] {
				list = append(list, s)
			}
		}
	}
	return list, err
}

// takes reports whether a socket bound to an unspecified address receives packets to a.
func takes(fd int, unspecified, a netip.Addr) bool {
	if unspecified.Is4() || a.Is6() {
		return unspecified.Is4() == a.Is4()
	}
	only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && only == 0
}

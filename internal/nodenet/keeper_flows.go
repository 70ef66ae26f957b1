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

// A flow that the fallback carried leaves its entry in connection tracking behind when sockets open: from then on
// what the client sends is not tracked, so that the kernel does not see the flow end. A TCP connection's entry stays
// ESTABLISHED, for as long as five days (nf_conntrack_tcp_timeout_established), until its server closes, for
// which CoreDNS waits 10 s; a server that is gone without a word never does. When the process dies again and the
// client's port comes back, the SYN is taken for a packet of that connection (net/netfilter/nf_conntrack_proto_tcp.c
// ignores it), is not translated anew, and goes to that server. A UDP flow's entry lives for 30 s or 2 min, and
// a socket that goes on asking keeps it alive. So the entries are deleted once this process answers. It is the
// same with those from a moment without rules, which lead nowhere.
//
// What remains: a process that lives less than flowsRest deletes nothing, and for the time that no process lives
// nobody is there to delete the entries of a server that ends then.

const (
	// flowsRest is the time between the sockets' opening and the deletion. An answer of the fallback that is on its
	// way needs its entry to be translated back. It is what a stub resolver waits by default (RES_TIMEOUT,
	// resolv.conf(5)): a later answer has nobody who waits for it. At the same time it is the least time between two
	// deletions.
	flowsRest = 5 * time.Second
	// flowsTimeout bounds one reading of the table. A kernel that cannot filter hands out some 500,000 entries a second.
	flowsTimeout = 10 * time.Second
	// flowsTurn bounds the deletion, which others wait for: a reload, or the end.
	flowsTurn = time.Second
)

// forgetOld deletes the entries whenever they have become old: flowsRest after rules were put in place the last time,
// as they are by the first Commit, a reload or a repair. It is not done at any other time, so that the table is read
// a few times in the life of a process.
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
			k.cfg.Log.Warningf("flows that the fallback had carried are not forgotten, so that a later fallback may lead the same clients to the same servers, even when those are gone: %s", text)
		}
		said = text
	}
}

// rest waits until nothing was put in place for flowsRest. It is false when ctx has ended.
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

// forgetOldOnce reads the table, which holds nobody up, and deletes what it finds. more tells that there may be more.
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
	// A fallback that has begun since may have taken up some of them. While the turn is ours none begins, but by the
	// death of this process.
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

// undamaged reports whether the rules are in place at this moment and were not put back just now. What cannot be read
// is a check's to report.
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

// untracked lists the services whose packets are not tracked because this process answers: rules that ask for a
// socket are in place, nothing is drained, and a socket of this process is what they find. A fallback of one of
// them is not in use then, nor is kube-proxy, where the address is a Service's. Of an address that no server block
// is bound to none is listed: its queries are the fallback's all the time.
func (k *Keeper) untracked() ([]conntrack.Service, error) {
	k.mu.Lock()
	w, draining, closed := k.committed, k.draining, k.closed
	k.mu.Unlock()
	if w == nil || draining || closed {
		return nil, nil
	}
	// A newer process, if there is one, does it for both.
	if s := k.Status(); !s.RulesInPlace || !s.SocketMatch || !s.Keeper {
		return nil, nil
	}
	return openServices(w.spec.Addresses, w.spec.Port, w.spec.Wildcard)
}

// openServices lists those that a socket of this process takes new queries of.
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

// takes tells whether a socket that is bound to an unspecified address takes packets to a.
func takes(fd int, unspecified, a netip.Addr) bool {
	if unspecified.Is4() || a.Is6() {
		return unspecified.Is4() == a.Is4()
	}
	only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY)
	return err == nil && only == 0
}

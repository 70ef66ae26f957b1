package forward

import (
	"context"
	"net"
	"net/netip"
	"time"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/dnstap"
	"github.com/coredns/coredns/plugin/dnstap/msg"
	"github.com/coredns/coredns/request"
	tap "github.com/dnstap/golang-dnstap"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/upstream"
)

// taps are the dnstap directives of a block. Each exchange is told to them as FORWARDER_QUERY, and as
// FORWARDER_RESPONSE where an answer came.
type taps []*dnstap.Dnstap

// tapsOf finds them. Several directives of a block are chained to one another.
func tapsOf(block *dnsserver.Config) taps {
	var ts taps
	for h := block.Handler("dnstap"); h != nil; {
		t, ok := h.(*dnstap.Dnstap)
		if !ok {
			break
		}
		ts = append(ts, t)
		h = t.Next
	}
	return ts
}

// report tells of every attempt for one question. Of those without an answer neither our end nor the
// time is kept: their queries bear the time of the question's end less their duration.
func (ts taps) report(ctx context.Context, state request.Request, r upstream.Report, answer *upstream.Answer) {
	var query, reply []byte
	for _, t := range ts {
		if !t.IncludeRawMessage {
			continue
		}
		// What cannot be packed has not been exchanged either.
		query, _ = state.Req.Pack()
		if answer != nil {
			reply, _ = answer.Msg.Pack()
		}
		break
	}
	end := time.Now()
	answered := false
	for _, a := range r.Attempts {
		if answer != nil && !answered && isExchange(a, answer.Exchange) {
			answered = true // told below, with all that is known
			continue
		}
		ts.send(ctx, state, query, nil, func() *tap.Message {
			return newTapped(tap.Message_FORWARDER_QUERY, end.Add(-a.Duration), netip.AddrPort{}, a.Upstream, a.Proto)
		})
	}
	if answer == nil {
		return
	}
	e := answer.Exchange
	ts.send(ctx, state, query, nil, func() *tap.Message {
		return newTapped(tap.Message_FORWARDER_QUERY, e.Start, e.Local, e.Upstream, e.Proto)
	})
	ts.send(ctx, state, nil, reply, func() *tap.Message {
		m := newTapped(tap.Message_FORWARDER_RESPONSE, e.Start, e.Local, e.Upstream, e.Proto)
		msg.SetResponseTime(m, e.Start.Add(e.Duration))
		return m
	})
}

// isExchange tells whether a is the attempt that e tells more about.
func isExchange(a upstream.Attempt, e observe.Exchange) bool {
	return a.Outcome == e.Outcome && a.Upstream == e.Upstream && a.Proto == e.Proto && a.Duration == e.Duration
}

// send makes a message for each tap, which keeps it.
func (ts taps) send(ctx context.Context, state request.Request, query, reply []byte, make func() *tap.Message) {
	for _, t := range ts {
		m := make()
		if t.IncludeRawMessage {
			m.QueryMessage, m.ResponseMessage = query, reply
		}
		t.TapMessageWithMetadata(ctx, m, state)
	}
}

func newTapped(kind tap.Message_Type, start time.Time, local netip.AddrPort, to string, proto observe.Proto) *tap.Message {
	m := new(tap.Message)
	msg.SetType(m, kind)
	msg.SetQueryTime(m, start)
	// Both setters fail for a type of address only that is neither UDP's nor TCP's.
	if local.IsValid() {
		_ = msg.SetQueryAddress(m, netAddr(local, proto))
	}
	if ap, err := netip.ParseAddrPort(to); err == nil {
		_ = msg.SetResponseAddress(m, netAddr(ap, proto))
	}
	return m
}

func netAddr(ap netip.AddrPort, proto observe.Proto) net.Addr {
	if proto == observe.UDP {
		return net.UDPAddrFromAddrPort(ap)
	}
	return net.TCPAddrFromAddrPort(ap)
}

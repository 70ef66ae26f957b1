package forward

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/upstream"
)

// handler is a stanza's place in one chain.
type handler struct {
	*forward
	next plugin.Handler
}

// Name implements plugin.Handler.
func (*handler) Name() string { return directive }

// ServeDNS implements plugin.Handler. A question without an answer is returned as an error and not
// written: cache may still have a stale answer.
func (h *handler) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	if !h.config.matchesAll() && !h.config.matches(state.Name()) {
		return plugin.NextOrFailure(h.Name(), h.next, ctx, w, r)
	}
	if t := state.QType(); t == dns.TypeAXFR || t == dns.TypeIXFR {
		return refuseTransfer(t)
	}
	h.used.set()
	q := upstream.Query{Msg: r, Proto: observe.UDP}
	if state.Proto() != "udp" {
		q.Proto = observe.TCP
	}
	var answer upstream.Answer
	trace := observe.TraceFrom(ctx)
	var start time.Time
	if trace != nil {
		start = time.Now()
	}
	err := h.group.ExchangeInto(ctx, q, &answer)
	if trace != nil {
		trace.Wait(time.Since(start))
	}
	if err != nil {
		return h.fail(ctx, &state, err)
	}
	h.report(ctx, &state, &answer.Report, &answer)
	if h.leadsOn(answer.Msg) {
		return plugin.NextOrFailure(h.Name(), h.next, ctx, w, r)
	}
	return dns.RcodeSuccess, w.WriteMsg(answer.Msg)
}

// refuseTransfer ends a question for a zone. A transfer takes as many messages as it likes (RFC 5936, section 2.2),
// and on a connection that others share nobody can tell which one is the last: those after the first would be
// answers that nobody waits for, and close it for all. No other upstream or stanza could do better.
func refuseTransfer(qtype uint16) (int, error) {
	return dns.RcodeNotImplemented, &failure{
		code:  dns.ExtendedErrorCodeNotSupported,
		text:  "zone transfers are not forwarded",
		cause: fmt.Errorf("%s: zone transfers are not forwarded", dns.TypeToString[qtype]),
	}
}

// fail gives the rcode that CoreDNS documents for each kind of failure.
func (h *handler) fail(ctx context.Context, state *request.Request, err error) (int, error) {
	var e *upstream.Error
	if !errors.As(err, &e) {
		return dns.RcodeServerFailure, err
	}
	h.report(ctx, state, &e.Report, nil)
	code, text := e.ExtendedError()
	f := &failure{code: code, text: text, cause: err}
	switch {
	case errors.Is(err, upstream.ErrOverloaded):
		h.plugin.metrics.rejects.Inc()
		return dns.RcodeRefused, f
	case errors.Is(err, upstream.ErrInvalidQuery):
		return dns.RcodeFormatError, f
	}
	return dns.RcodeServerFailure, f
}

// report publishes what is known about the exchanges of one question. answer is nil where none came.
func (h *handler) report(ctx context.Context, state *request.Request, r *upstream.Report, answer *upstream.Answer) {
	if r.AllDown {
		h.plugin.metrics.broken.Inc()
	}
	to := ""
	if answer != nil {
		to = answer.Exchange.Upstream
	} else if n := len(r.Attempts); n > 0 {
		to = r.Attempts[n-1].Upstream
	}
	if to != "" && metadata.ValueFuncs(ctx) != nil {
		setUpstream(ctx, to)
	}
	tell(observe.TraceFrom(ctx), r, answer)
	// Exchanges that were shared have been reported with the question that began them.
	if len(h.taps) > 0 && !r.Shared {
		h.taps.report(ctx, *state, *r, answer)
	}
}

// tell adds the exchanges of a question to the story of the query.
func tell(t *observe.Trace, r *upstream.Report, answer *upstream.Answer) {
	if t == nil {
		return
	}
	for i := range r.Attempts {
		a := &r.Attempts[i]
		t.Add(observe.Step{Start: a.Start, Upstream: a.Upstream, Proto: a.Proto, Outcome: a.Outcome, Rcode: a.Rcode, Duration: a.Duration, Hedge: a.Hedge, Reused: a.Reused, Shared: r.Shared, Overtaken: a.Overtaken, Err: a.Err})
	}
	if len(r.Attempts) == 0 && answer != nil {
		e := &answer.Exchange
		t.Add(observe.Step{Start: e.Start, Upstream: e.Upstream, Proto: e.Proto, Outcome: e.Outcome, Rcode: e.Rcode, Duration: e.Duration, Hedge: e.Hedge, Reused: e.Reused, Shared: r.Shared})
	}
}

// setUpstream is apart because the function that it makes costs an allocation, which only those pay who
// have metadata on.
func setUpstream(ctx context.Context, to string) {
	metadata.SetValueFunc(ctx, "forward/upstream", func() string { return to })
}

// leadsOn tells whether the answer is one after which the next stanza of the block is to be asked.
func (h *handler) leadsOn(m *dns.Msg) bool {
	if _, ok := h.next.(*handler); !ok {
		return false
	}
	return slices.Contains(h.config.Next, m.Rcode) ||
		h.config.NextOnNodata && m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0
}

// matchesAll tells whether every name is the stanza's to forward.
func (c *Config) matchesAll() bool { return c.From == "." && len(c.Except) == 0 }

// matches tells whether a name, in lower case and fully qualified, is the stanza's to forward. FROM
// itself always is, even where except names it.
func (c *Config) matches(name string) bool {
	if name == c.From {
		return true
	}
	if !plugin.Name(c.From).Matches(name) {
		return false
	}
	for _, e := range c.Except {
		if plugin.Name(e).Matches(name) {
			return false
		}
	}
	return true
}

// latch is set by many queries and looked at rarely: those that find it set do not write.
type latch struct{ v atomic.Bool }

func (l *latch) set() {
	if !l.v.Load() {
		l.v.Store(true)
	}
}

// clear reports whether it was set.
func (l *latch) clear() bool { return l.v.Swap(false) }

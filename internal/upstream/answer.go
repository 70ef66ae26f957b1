package upstream

import (
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// answerFor fills in the answer for one client from the flight's result. The leader, which does not share, gets the
// message that was unpacked on arrival.
func (f *flight) answerFor(query Query, shared bool, answer *Answer) error {
	if f.err != nil {
		if !shared {
			return f.err
		}
		err := *f.err
		err.Shared = true
		return &err
	}
	msg := f.msg
	if shared {
		msg = new(dns.Msg)
		// It was unpacked before, by the leader; a truncated one may have failed in its end.
		if err := msg.Unpack(f.answer.reply); err != nil {
			msg.Truncated = true
		}
	}
	if f.q.shareable {
		restore(msg, query.Msg)
	} else {
		msg.Id = query.Msg.Id
	}
	answer.Msg, answer.Exchange, answer.Report = msg, f.answer.record, f.report
	answer.Exchange.Rcode = msg.Rcode
	answer.Shared = shared
	return nil
}

// restore sets the client's ID, question and flags in an answer. Owner names equal to the question also get its
// letter case: the answer has that of the first client.
func restore(msg, query *dns.Msg) {
	asked := query.Question[0]
	same := len(msg.Question) == 1 && msg.Question[0] == asked
	if len(msg.Question) == 1 && msg.Question[0].Name != asked.Name {
		theirs := msg.Question[0].Name
		for _, rr := range msg.Answer {
			if h := rr.Header(); h.Name == theirs || strings.EqualFold(h.Name, asked.Name) {
				h.Name = asked.Name
			}
		}
	}
	msg.Id = query.Id
	msg.Response = true
	msg.Opcode = query.Opcode
	msg.RecursionDesired = query.RecursionDesired
	msg.CheckingDisabled = query.CheckingDisabled
	if !same {
		msg.Question = []dns.Question{asked}
	}
	if opt := query.IsEdns0(); opt != nil {
		if msg.IsEdns0() == nil {
			msg.SetEdns0(ednsSize, opt.Do()) // the upstream does not know EDNS, but this server does (RFC 6891, section 6.1.1)
		}
		return
	}
	// No OPT for a client that sent none (RFC 6891, section 7), and therefore no RCODE above 15.
	msg.Extra = slices.DeleteFunc(msg.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if msg.Rcode > 15 {
		msg.Rcode = dns.RcodeServerFailure
	}
}

// summary lists the attempts. The usual case, one that answered, needs no list.
func (f *flight) summary(now time.Time, answered bool) Report {
	r := Report{AllDown: f.allDown}
	if len(f.calls) == 1 && f.calls[0].handled && f.calls[0].outcome.Answer() {
		return r
	}
	for _, c := range f.calls {
		a := Attempt{Start: c.start, Upstream: c.path.server.name, Proto: c.path.proto, Hedge: c.hedge}
		if c.handled {
			a.Outcome, a.Duration, a.Reused = c.outcome, c.end.Sub(c.start), c.reused
			if c.outcome.Answer() {
				a.Rcode = c.rcode()
			} else if c.err != nil {
				a.Err = c.err.Error()
			}
		} else {
			a.Outcome, a.Duration, a.Overtaken = observe.Timeout, now.Sub(c.start), answered
		}
		r.Attempts = append(r.Attempts, a)
	}
	return r
}

package upstream

import (
	"slices"
	"strings"

	"github.com/miekg/dns"
)

// answerFor makes the end of the flight out for one client. msg is the unpacked answer that nobody
// else has, or nil.
func (f *flight) answerFor(query Query, msg *dns.Msg, shared bool) (Answer, error) {
	if f.err != nil {
		if !shared {
			return Answer{}, f.err
		}
		err := *f.err
		err.Shared = true
		return Answer{}, &err
	}
	if msg == nil {
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
	a := Answer{Msg: msg, Exchange: f.answer.record, Report: f.report}
	a.Exchange.Rcode = msg.Rcode
	a.Shared = shared
	return a, nil
}

// restore gives an answer the client's ID, question and flags. Names of the answer that are the
// question's get its letters, too: they were those of the client that came first.
func restore(msg, query *dns.Msg) {
	asked := query.Question[0]
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
	msg.Question = []dns.Question{asked}
	if opt := query.IsEdns0(); opt != nil {
		if msg.IsEdns0() == nil {
			msg.SetEdns0(ednsSize, opt.Do()) // the upstream has none, but we have (RFC 6891, section 6.1.1)
		}
		return
	}
	// No OPT for who sent none (RFC 6891, section 7), and so no RCODE above 15 either.
	msg.Extra = slices.DeleteFunc(msg.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	if msg.Rcode > 15 {
		msg.Rcode = dns.RcodeServerFailure
	}
}

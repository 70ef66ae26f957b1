package answers

import (
	"strings"

	"github.com/miekg/dns"
)

// HasSOA tells whether a response says for how long a denial of it holds (RFC 2308, section 5).
func HasSOA(m *dns.Msg) bool {
	for _, rr := range m.Ns {
		if rr.Header().Rrtype == dns.TypeSOA {
			return true
		}
	}
	return false
}

// Answered tells whether a NOERROR response has what was asked for: a record of the type at the end of the
// CNAMEs that begin at the question's name (RFC 1034, section 3.6.2). A name with two targets (RFC 2181, section 10.1), and
// CNAMEs that go round, have no end.
func Answered(m *dns.Msg) bool {
	if m.Rcode != dns.RcodeSuccess || len(m.Question) == 0 || len(m.Answer) == 0 {
		return false
	}
	q := &m.Question[0]
	if q.Qtype == dns.TypeANY {
		return has(m.Answer, q.Name, dns.TypeANY, q.Qclass)
	}
	name := q.Name
	// There are no more steps to an end than there are records.
	for range len(m.Answer) + 1 {
		target, ok := alias(m.Answer, name, q.Qclass)
		switch {
		case !ok:
			return false
		case q.Qtype == dns.TypeCNAME:
			return target != ""
		case target == "":
			return has(m.Answer, name, q.Qtype, q.Qclass)
		}
		name = target
	}
	return false
}

// alias is what a CNAME says name stands for; empty where none does. It is not ok where two say different things.
func alias(rrs []dns.RR, name string, class uint16) (target string, ok bool) {
	for _, rr := range rrs {
		c, is := rr.(*dns.CNAME)
		if !is || !classMatches(c.Hdr.Class, class) || !strings.EqualFold(c.Hdr.Name, name) {
			continue
		}
		if target != "" && !strings.EqualFold(target, c.Target) {
			return "", false
		}
		target = c.Target
	}
	return target, true
}

// has tells whether there is a record of the type at name.
func has(rrs []dns.RR, name string, qtype, class uint16) bool {
	for _, rr := range rrs {
		h := rr.Header()
		if (qtype == dns.TypeANY || h.Rrtype == qtype) && classMatches(h.Class, class) && strings.EqualFold(h.Name, name) {
			return true
		}
	}
	return false
}

func classMatches(class, asked uint16) bool { return asked == dns.ClassANY || class == asked }

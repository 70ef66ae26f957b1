package fastpath

import (
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire"
)

// unpack makes x.req of q as the library would. It is false, and nothing is changed, where the name has other octets
// than letters, digits, hyphens and underscores, which may need an escape.
func (x *exchange) unpack(q *wire.Query) bool {
	var room [dns.MinMsgSize / 2]byte // above 254, the longest name without escapes
	name, ok := appendName(room[:0], q.Question())
	if !ok {
		return false
	}
	x.question[0] = dns.Question{Name: string(name), Qtype: q.Type(), Qclass: q.Class()}
	m := &x.req
	m.Question = x.question[:]
	m.Id = q.ID()
	m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled = q.RD(), q.AD(), q.CD()
	if q.EDNS() {
		opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: q.Size()}}
		if q.DO() {
			opt.SetDo()
		}
		m.Extra = []dns.RR{opt}
	}
	return true
}

// appendName appends the name at the beginning of a question section, which is well-formed, in presentation form.
func appendName(dst, question []byte) ([]byte, bool) {
	for n := int(question[0]); n > 0; n = int(question[0]) {
		for _, b := range question[1 : 1+n] {
			if !simple[b] {
				return nil, false
			}
		}
		dst = append(append(dst, question[1:1+n]...), '.')
		question = question[1+n:]
	}
	if len(dst) == 0 {
		dst = append(dst, '.')
	}
	return dst, true
}

// simple are the octets that stand for themselves in presentation form, but for some that are rare.
var simple = func() (set [256]bool) {
	for _, b := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") {
		set[b] = true
	}
	return set
}()

package cache

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// entry is an answer that is kept. What is not atomic does not change once it can be found.
type entry struct {
	answers.Answer

	qtype, qclass uint16
	do, cd        bool
	answering     bool   // it has what was asked for, and is no error or referral
	name          string // of the question, in its sender's letters
	// message is the response as it is sent, with the TTL that it was stored with in every record. Where there are
	// no pointers the garbage collector has nothing to follow.
	message []byte
	more    *more // nil for most

	refreshing atomic.Bool
	recheck    atomic.Int64 // no refresh before; in nanoseconds since it was stored
}

// more is what few entries have.
type more struct {
	wildcard string // the name that it was synthesized from
	lastGood *entry // what answered the question before this one, which does not
}

// buffers are for packing.
var buffers = sync.Pool{New: func() any { b := make([]byte, dns.DefaultMsgSize); return &b }}

// newEntry keeps m, whose records all have the TTL ttl and are no OPT. It fails where m cannot be sent.
func newEntry(m *dns.Msg, q *answers.Question, now time.Time, ttl uint32) (*entry, error) {
	header := *m
	header.Compress = true
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	packed, err := header.PackBuffer(*buf)
	if err != nil {
		return nil, err
	}
	return &entry{
		Answer:    answers.Answer{TTL: ttl, Stored: now},
		name:      m.Question[0].Name,
		qtype:     m.Question[0].Qtype,
		qclass:    m.Question[0].Qclass,
		do:        q.DO,
		cd:        q.CD,
		answering: answers.Answered(m),
		message:   append(make([]byte, 0, len(packed)), packed...),
	}, nil
}

// reply makes a reply to r of e, with this TTL in every record.
func (e *entry) reply(r *dns.Msg, ttl uint32, ad bool) (*dns.Msg, error) {
	m := new(dns.Msg)
	if err := m.Unpack(e.message); err != nil {
		return nil, err
	}
	// A cache is no more of an authority than who it has the answer from, and no less (RFC 1035, section 4.1.1).
	m.MsgHdr = dns.MsgHdr{
		Id: r.Id, Response: true, Opcode: r.Opcode, RecursionDesired: r.RecursionDesired, CheckingDisabled: r.CheckingDisabled,
		Rcode: m.Rcode, Authoritative: m.Authoritative, RecursionAvailable: m.RecursionAvailable,
		AuthenticatedData: m.AuthenticatedData && ad,
	}
	m.Question = append(m.Question[:0], r.Question[:min(1, len(r.Question))]...)
	for _, section := range [...][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			rr.Header().Ttl = ttl
		}
	}
	return m, nil
}

// lastGood is what answers the question: e, or what did before it.
func (e *entry) lastGood() *entry {
	switch {
	case e.answering:
		return e
	case e.more != nil:
		return e.more.lastGood
	}
	return nil
}

// beginRefresh reports whether the caller is to refresh e, and end it with endRefresh: nobody else does, and the last
// one that failed was long enough ago.
func (e *entry) beginRefresh(now time.Time, recheck time.Duration) bool {
	if recheck > 0 && int64(now.Sub(e.Stored)) < e.recheck.Load() {
		return false
	}
	return e.refreshing.CompareAndSwap(false, true)
}

// endRefresh ends what beginRefresh began.
func (e *entry) endRefresh(now time.Time, recheck time.Duration, refreshed bool) {
	next := int64(0)
	if recheck > 0 && !refreshed {
		next = int64(now.Sub(e.Stored) + recheck)
	}
	e.recheck.Store(next) // before another may begin
	e.refreshing.Store(false)
}

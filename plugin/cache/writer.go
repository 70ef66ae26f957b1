package cache

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// keeper is the writer, and the request, of a query that goes on to the handlers behind a cache: it keeps what they say
// where that is fit for it.
type keeper struct {
	dns.ResponseWriter // nil where no client waits
	cache              *Cache
	counted            *series
	ctx                context.Context
	question           answers.Question
	ad                 bool // the client wants to know whether the data are authentic (RFC 6840, section 5.7)
	silent             bool // replies are kept and not sent

	wrote bool
	last  *dns.Msg // what was written last, as it was or would have been sent
	kept  *entry   // and what was kept of it

	request dns.Msg
	asked   [1]dns.Question
}

// ask makes the request that goes on: r, which stays its sender's, with the AD flag. What is kept is for all clients,
// and who does not want to know does not see it.
func (k *keeper) ask(r *dns.Msg) *dns.Msg {
	k.request = *r
	k.request.AuthenticatedData = true
	k.request.Question = questions(&k.asked, r.Question)
	for _, section := range [...]*[]dns.RR{&k.request.Answer, &k.request.Ns, &k.request.Extra} {
		if len(*section) > 0 {
			*section = slices.Clone(*section)
			for i, rr := range *section {
				(*section)[i] = dns.Copy(rr)
			}
		}
	}
	return &k.request
}

// WriteMsg implements dns.ResponseWriter. What is sent has the TTL that is kept, so that it does not jump from the
// authority's to a lower one with the next reply.
func (k *keeper) WriteMsg(res *dns.Msg) error {
	if res == nil {
		return errors.New("cache: there is no message to write")
	}
	m := k.store(res)
	k.wrote, k.last = true, m
	if !k.question.DO && !k.ad {
		m.AuthenticatedData = false
	}
	if k.silent {
		return nil
	}
	return k.ResponseWriter.WriteMsg(m)
}

// store keeps res if it is fit for it, and returns a copy with the TTL that it is kept for and without OPT, which is
// between neighbours (RFC 6891, section 6.1.1).
func (k *keeper) store(res *dns.Msg) *dns.Msg {
	now := k.cache.now()
	kind := kindOf(res, now)
	life := k.cache.config.lifetime(res, kind)
	m := copyOf(res, uint32(life/time.Second))
	k.kept = nil
	switch {
	case life <= 0 || !keepable(res, kind):
	case !k.matches(m):
		k.counted.drops.Inc()
	default:
		k.put(m, kind, now, uint32(life/time.Second))
	}
	return m
}

// matches tells whether m is a response to the question.
func (k *keeper) matches(m *dns.Msg) bool {
	if len(m.Question) != 1 || !m.Response {
		return false
	}
	q := &m.Question[0]
	return strings.ToLower(q.Name) == k.question.Name && q.Qtype == k.question.Type && q.Qclass == k.question.Class
}

// put keeps m for a time greater than 0.
func (k *keeper) put(m *dns.Msg, kind response.Type, now time.Time, ttl uint32) {
	c := k.cache
	store, except := storeOf(negative(kind)), c.config.Success.Except
	if store == negatives {
		except = c.config.Denial.Except
	}
	if plugin.Zones(except).Contains(m.Question[0].Name) {
		return
	}
	e, err := newEntry(m, &k.question, now, ttl)
	if err != nil {
		k.counted.drops.Inc() // nor can it be sent
		return
	}
	var rare more
	if wildcard := metadata.ValueFunc(k.ctx, wildcardLabel); wildcard != nil {
		rare.wildcard = wildcard()
	}
	key := c.key(&k.question)
	policy := c.config.Stale.PreferPositive
	if policy && store == positives && !e.answering {
		if before := c.entry(positives, key, &k.question); before != nil {
			rare.lastGood = before.lastGood()
		}
	}
	if rare != (more{}) {
		e.more = &more{rare.wildcard, rare.lastGood} // rare itself is on the stack
	}
	if c.stores[store].Add(key, e) {
		k.counted.evictions[store].Inc()
	}
	k.kept = e
	// What was refreshed is the newest that is known. A client's own query leaves a negative answer to its TTL.
	if store == positives && (!policy && k.silent || policy && e.answering) {
		c.stores[negatives].Remove(key)
	}
}

// copyOf copies m, without OPT and with this TTL in every record. Handlers before cache may change what they are given,
// and those behind it may still have what they gave.
func copyOf(m *dns.Msg, ttl uint32) *dns.Msg {
	both := &struct {
		dns.Msg
		question [1]dns.Question
	}{Msg: dns.Msg{MsgHdr: m.MsgHdr, Compress: m.Compress}}
	both.Question = questions(&both.question, m.Question)
	all := make([]dns.RR, 0, len(m.Answer)+len(m.Ns)+len(m.Extra))
	section := func(rrs []dns.RR) []dns.RR {
		from := len(all)
		for _, rr := range rrs {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			rr = dns.Copy(rr)
			rr.Header().Ttl = ttl
			all = append(all, rr)
		}
		return all[from:len(all):len(all)]
	}
	both.Answer, both.Ns, both.Extra = section(m.Answer), section(m.Ns), section(m.Extra)
	return &both.Msg
}

// questions copies a question section, which has one question but for odd messages, to room where it can.
func questions(room *[1]dns.Question, section []dns.Question) []dns.Question {
	if len(section) > 1 {
		return slices.Clone(section)
	}
	return room[:copy(room[:], section)]
}

// Write implements dns.ResponseWriter. What was packed by another handler is not looked into.
func (k *keeper) Write(packed []byte) (int, error) {
	log.Warning("A handler behind cache wrote a packed message: it is not kept")
	if k.silent {
		return 0, nil
	}
	return k.ResponseWriter.Write(packed)
}

// nobody is the client of a query that the cache makes by itself. That it comes over TCP lets answers be as long as
// they are.
var nobody = &net.TCPAddr{}

// alone tells whether no client waits; the methods below then stand for its connection.
func (k *keeper) alone() bool { return k.ResponseWriter == nil }

// RemoteAddr implements dns.ResponseWriter.
func (k *keeper) RemoteAddr() net.Addr {
	if k.alone() {
		return nobody
	}
	return k.ResponseWriter.RemoteAddr()
}

// LocalAddr implements dns.ResponseWriter.
func (k *keeper) LocalAddr() net.Addr {
	if k.alone() {
		return nobody
	}
	return k.ResponseWriter.LocalAddr()
}

// Close implements dns.ResponseWriter.
func (k *keeper) Close() error {
	if k.alone() {
		return nil
	}
	return k.ResponseWriter.Close()
}

// TsigStatus implements dns.ResponseWriter.
func (k *keeper) TsigStatus() error {
	if k.alone() {
		return nil
	}
	return k.ResponseWriter.TsigStatus()
}

// TsigTimersOnly implements dns.ResponseWriter.
func (k *keeper) TsigTimersOnly(b bool) {
	if !k.alone() {
		k.ResponseWriter.TsigTimersOnly(b)
	}
}

// Hijack implements dns.ResponseWriter.
func (k *keeper) Hijack() {
	if !k.alone() {
		k.ResponseWriter.Hijack()
	}
}

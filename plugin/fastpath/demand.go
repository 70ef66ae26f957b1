package fastpath

import (
	"math"
	"strings"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/cacheitem"
	"localcache.dev/localcache/internal/replay"
)

// cache prefetches an answer when it is asked for in the last percentage of its TTL, if it was asked for often
// enough before, with no gap of a duration. It counts its hits for that, and most of them it does not see any more.
// So the store counts replays in the same way, and all hits in the last percentage go to the chain. Before the first
// of them does, cache's count is credited with the replays (credit), so that it decides as it would have.
//
// Where cache is not the one that is known, the first hits go to the chain until cache has counted enough, and
// then one now and then, so that it sees no gap where there is none (passNowAndThen).

// lasts decides whether the reply m, whose records all have this TTL, may be replayed at all with a view to its
// age, and if so sets from when on not any more.
func (x *exchange) lasts(b *block, m *dns.Msg, denial bool, ttl uint32) bool {
	// It may be a stale answer, which cache would have tried to refresh.
	suspect := b.options.staleTTL != 0 && ttl == b.options.staleTTL
	if b.options.prefetch == 0 && !suspect {
		return true
	}
	if b.items == nil {
		return !suspect
	}
	it, ok := b.items.find(denial, x.cacheKey())
	if !ok || it.ttl < ttl {
		return false
	}
	if !b.items.exact || b.options.prefetch > replay.MaxUses {
		return !suspect && x.passNowAndThen(b, &it, ttl)
	}
	// The chain read its clock between then and now: the item is the one that the reply came from if it had this
	// TTL then, and it is not stale if it has some left.
	now := clock(x.socket.plugin.now())
	if int64(ttl) > it.left(x.received) || int64(ttl) < it.left(now) || it.left(now) <= 0 {
		return false
	}
	if b.options.prefetch == 0 {
		return true
	}
	x.pass = it.stored + (int64(it.ttl)-b.threshold(it.ttl))*second
	x.uses = b.options.prefetch
	return x.pass > x.received
}

// threshold is the TTL from which on cache prefetches (plugin/cache, shouldPrefetch), at least 1.
func (b *block) threshold(ttl uint32) int64 {
	return int64(math.Ceil(float64(b.options.percentage) / 100 * float64(ttl)))
}

// passNowAndThen is for a cache that cannot be credited.
func (x *exchange) passNowAndThen(b *block, it *item, ttl uint32) bool {
	if it.freq.Hits() < b.options.prefetch {
		return false
	}
	// TTLs are whole seconds of another beginning: the last one may be shorter.
	window := int64(ttl) - b.threshold(it.ttl) - 1
	if window <= 0 {
		return false
	}
	x.pass = x.received + min(window*second, max(int64(b.options.duration)/4, second))
	return true
}

// credit tells cache how often its answer was replayed, when that is over and a query comes to the chain. It adds
// no more than cache would have counted: the replays follow each other, and the query them, with no gap, and
// all of them came after the item did.
func (x *exchange) credit() {
	if !x.own.plain {
		return
	}
	u := x.socket.store.TakeUses(&x.own.query, x.received)
	if u.Count == 0 {
		return
	}
	c := x.socket.count.classes.get(classNumber(u.Class))
	if c.block.items == nil {
		return
	}
	it, ok := c.block.items.find(c.denial, x.cacheKey())
	if !ok || it.stored > u.Stored {
		return
	}
	now := x.socket.plugin.now()
	if u.Unbroken {
		// Nor was there a gap after the hit from which the answer was learnt, which cache has counted. To cache it
		// may look like one.
		it.freq.Reset(now, it.freq.Hits()+u.Count)
		return
	}
	for range u.Count {
		it.freq.Update(c.block.options.duration, now)
	}
}

// cacheKey is what cache has the question under.
func (x *exchange) cacheKey() uint64 {
	q := &x.req.Question[0]
	return cacheitem.Key(strings.ToLower(q.Name), q.Qtype, q.Qclass, x.own.query.DO(), x.req.CheckingDisabled)
}

package fastpath

import (
	"math"

	"localcache.dev/localcache/internal/answers"
)

// cache prefetches an answer when it is asked for in the last percentage of its TTL, if it was asked for often
// enough before, with no gap of a duration. It counts its hits for that, and most of them it does not see any more.
// So the store counts replays in the same way, and all hits in the last percentage go to the chain. Before the first
// of them does, cache's count is credited with the replays (credit), so that it decides as it would have.
//
// Where it takes more hits than the store counts, the first of them go to the chain until cache has counted enough, and
// then one now and then, so that it sees no gap where there is none (passNowAndThen).

// lasts decides whether a reply from cache's memory, whose records all have this TTL, may be replayed at all with a
// view to prefetches, and if so sets from when on not any more.
func (x *exchange) lasts(b *block, denial bool, ttl uint32) bool {
	if b.options.Prefetch == 0 {
		return true
	}
	a := b.cache.Find(answers.QuestionOf(&x.req), denial)
	if a == nil || a.TTL < ttl {
		return false
	}
	if b.options.Prefetch > x.socket.plugin.maxUses {
		return x.passNowAndThen(b, a, ttl)
	}
	// The chain read its clock between then and now: the answer is the one that the reply came from if it had this
	// TTL then.
	stored, now := clock(a.Stored), clock(x.socket.plugin.now())
	if int64(ttl) > left(a, stored, x.received) || int64(ttl) < left(a, stored, now) {
		return false
	}
	x.pass = stored + (int64(a.TTL)-b.threshold(a.TTL))*second
	x.uses = b.options.Prefetch
	return x.pass > x.received
}

// left is an answer's TTL at a time, as cache reckons it.
func left(a *answers.Answer, stored, now int64) int64 {
	return int64(a.TTL) - max(now-stored, 0)/second
}

// threshold is the TTL from which on cache prefetches (plugin/cache, popular), at least 1.
func (b *block) threshold(ttl uint32) int64 {
	return int64(math.Ceil(float64(b.options.Percentage) / 100 * float64(ttl)))
}

// passNowAndThen is for a cache that cannot be credited.
func (x *exchange) passNowAndThen(b *block, a *answers.Answer, ttl uint32) bool {
	if a.Uses() < b.options.Prefetch {
		return false
	}
	// TTLs are whole seconds of another beginning: the last one may be shorter.
	window := int64(ttl) - b.threshold(a.TTL) - 1
	if window <= 0 {
		return false
	}
	x.pass = x.received + min(window*second, max(int64(b.options.Gap)/4, second))
	return true
}

// credit tells cache how often its answer was replayed, when that is over and a query comes to the chain. It adds
// no more than cache would have counted: the replays follow each other, and the query them, with no gap, and
// all of them came after the item did.
func (x *exchange) credit() {
	if x.own.form != plainForm {
		return
	}
	u := x.socket.store.TakeUses(&x.own.query, x.received)
	if u.Count == 0 {
		return
	}
	c := x.socket.count.classes.get(classNumber(u.Class))
	a := c.block.cache.Find(answers.QuestionOf(&x.req), c.denial)
	if a == nil || clock(a.Stored) > u.Stored {
		return
	}
	now := x.socket.plugin.now()
	if u.Unbroken {
		// Nor was there a gap after the hit from which the answer was learnt, which cache has counted. To cache it
		// may look like one.
		a.SetUses(a.Uses()+u.Count, now)
		return
	}
	for range u.Count {
		a.Use(c.block.options.Gap, now)
	}
}

package replay

import (
	"math"
	"time"

	"localcache.dev/localcache/internal/wire"
)

// Who fetches an answer anew before it expires wants to know whether somebody asks for it: so many times, with
// no gap of so long. The store counts that for entries whose PutOptions say so, as a cache behind it would have,
// and hands it over when the entry is for use no more.
//
// The count, a mark and the time of the last use are one word, so that a reader needs no lock. It is
// written for the first uses only, up to the limit, and then a few times in each gap: readers of a hot entry
// do not take its cache line from each other. What readers lose to each other counts too little, never too
// much.

const (
	// MaxUses bounds PutOptions.Uses.
	MaxUses = 1<<15 - 1
	// broken marks that there was a gap since the entry was stored.
	broken = 1 << 15
	// tickBits says what a tick of the last use's time is: 2^16 ns. The count and the mark take as many bits.
	tickBits = 16
	// refreshes is how many times in a gap the time of the last use is written once the limit is reached. A gap that
	// is shorter by this part may count as one.
	refreshes = 16
)

const millisecond = int64(time.Millisecond)

// Uses are those of one entry.
type Uses struct {
	// Count is how many there were without a gap up to now, and no more than PutOptions.Uses.
	Count int
	// Unbroken tells that there was no gap since the entry was stored, at Stored: not before the first of Count
	// either.
	Unbroken bool
	Stored   int64
	// Class is the entry's.
	Class uint32
}

// countUses has the uses of e counted where o says so.
func (e *Entry) countUses(minTTL uint32, o PutOptions) {
	if o.Uses <= 0 || o.PassAfter == 0 {
		return
	}
	e.limit = uint16(min(o.Uses, MaxUses))
	e.gap = uint32(min(max(int64(o.Gap)/millisecond, 0), math.MaxUint32))
	end := o.Now + int64(minTTL)*second
	e.linger = uint16(min(max((end-e.until+second-1)/second, 0), math.MaxUint16))
	e.uses.Store(tick(o.Now) << tickBits)
}

func tick(now int64) uint64 { return uint64(max(now, 0)) >> tickBits }

// done reports whether e is of no use any more, not even for its uses.
func (e *Entry) done(now int64) bool { return now > e.until+int64(e.linger)*second }

// gapped reports whether there may be a gap between two ticks: their parts are not known.
func (e *Entry) gapped(last, now uint64) bool {
	return now > last && (now-last+1)<<tickBits > uint64(e.gap)*uint64(millisecond)
}

// use counts one.
func (e *Entry) use(now int64) {
	was, t := e.uses.Load(), tick(now)
	last, count, mark := was>>tickBits, was&MaxUses, was&broken
	full := count >= uint64(e.limit)
	if full && t <= last+uint64(e.gap)*uint64(millisecond)/refreshes>>tickBits {
		return
	}
	if e.gapped(last, t) {
		count, mark, full = 0, broken, false
	}
	if !full {
		count++
	}
	// Another one that came between keeps what it wrote: it may have taken the count.
	e.uses.CompareAndSwap(was, max(t, last)<<tickBits|mark|count)
}

// TakeUses returns the uses of the entry for q once that is past its time, and forgets them, so that they are
// taken once. Count is 0 where there are none, where they are not counted, and after a gap.
func (s *Store) TakeUses(q *wire.Query, now int64) Uses {
	e := s.shard(q.Hash()).find(q)
	if e == nil || e.limit == 0 || now <= e.until || e.done(now) || e.uses.Load()&MaxUses == 0 {
		return Uses{}
	}
	was := e.uses.Swap(broken)
	if e.gapped(was>>tickBits, tick(now)) {
		return Uses{}
	}
	return Uses{Count: int(was & MaxUses), Unbroken: was&broken == 0, Stored: e.stored, Class: e.class}
}

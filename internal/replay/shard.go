package replay

import (
	"sync"
	"sync/atomic"

	"localcache.dev/localcache/internal/wire"
)

const (
	// maxMark is how many rounds of the clock's hand an entry that was used often outlives unused. A bit
	// more than one round tells the hot from the lukewarm; more than three only delays the forgetting.
	maxMark = 3
	// maxSteps bounds a search for a victim, which takes some microseconds then. It is long enough to get past
	// names that became hot one after the other and lie side by side.
	maxSteps = 256
	// sweepSteps is how many entries a writer looks at to find some past their time: more than it adds.
	sweepSteps = 2
	// minHeads is the least size of a shard's table.
	minHeads = 8
)

// table is a hash table of chains. Its size is a power of two.
type table struct{ heads []atomic.Pointer[Entry] }

func (t *table) head(hash uint64) *atomic.Pointer[Entry] {
	return &t.heads[hash&uint64(len(t.heads)-1)]
}

// shard is a part of the store that writers lock. Readers only load table and what it leads to.
type shard struct {
	table atomic.Pointer[table]

	mu    sync.Mutex
	slots []*Entry // all entries, in no order but the hand's
	hand  int      // of the clock
	sweep int      // the hand that looks for entries past their time
	_     [64]byte // what writers change is on no cache line of the next shard's table
}

func (s *shard) find(q *wire.Query) *Entry {
	for e := s.table.Load().head(q.Hash()).Load(); e != nil; e = e.next.Load() {
		if e.is(q) {
			return e
		}
	}
	return nil
}

// All that follows is done under the lock.

func (s *shard) insert(e *Entry) {
	e.slot = int32(len(s.slots))
	s.slots = append(s.slots, e)
	s.link(e)
	if heads := len(s.table.Load().heads); len(s.slots) > heads {
		s.resize(2 * heads)
	}
}

// replace puts e in the place of old. A reader finds the one or the other.
func (s *shard) replace(old, e *Entry) {
	e.slot = old.slot
	s.slots[e.slot] = e
	s.link(e)
	s.unlink(old)
}

func (s *shard) remove(e *Entry) {
	s.unlink(e)
	last := len(s.slots) - 1
	moved := s.slots[last]
	moved.slot = e.slot
	s.slots[e.slot] = moved
	s.slots[last] = nil
	s.slots = s.slots[:last]
	if heads := len(s.table.Load().heads); heads > minHeads && last < heads/8 {
		s.slots = append(make([]*Entry, 0, heads/4), s.slots...)
		s.resize(heads / 4)
	}
}

func (s *shard) link(e *Entry) {
	head := s.table.Load().head(e.hash)
	e.next.Store(head.Load())
	head.Store(e)
}

// unlink takes e out of its chain. Its own link stays for the reader that stands on it.
func (s *shard) unlink(e *Entry) {
	link := s.table.Load().head(e.hash)
	for link.Load() != e {
		link = &link.Load().next
	}
	link.Store(e.next.Load())
}

// resize makes a table of another size. A reader on the way along an old chain may get into a new one and
// miss what it looks for, but it comes to an end: an entry that was moved leads only to such as were.
func (s *shard) resize(heads int) {
	t := &table{heads: make([]atomic.Pointer[Entry], heads)}
	for _, e := range s.slots {
		head := t.head(e.hash)
		e.next.Store(head.Load())
		head.Store(e)
	}
	s.table.Store(t)
}

// victim chooses the entry to evict, never spared, and nil where there is no other.
func (s *shard) victim(now int64, spared *Entry) *Entry {
	var least *Entry
	var leastMark uint32
	for range min(maxSteps, len(s.slots)) {
		if s.hand >= len(s.slots) {
			s.hand = 0
		}
		e := s.slots[s.hand]
		s.hand++
		if e == spared {
			continue
		}
		mark := e.mark.Load()
		if mark == 0 || e.done(now) {
			return e
		}
		e.mark.Store(mark - 1) // a reader's mark that is lost here is no loss
		if least == nil || mark < leastMark {
			least, leastMark = e, mark
		}
	}
	return least
}

// stale looks at the next entry and returns it if it is past its time.
func (s *shard) stale(now int64) *Entry {
	if len(s.slots) == 0 {
		return nil
	}
	if s.sweep >= len(s.slots) {
		s.sweep = 0
	}
	e := s.slots[s.sweep]
	if e.done(now) {
		return e // another one takes its slot, so the hand stays
	}
	s.sweep++
	return nil
}

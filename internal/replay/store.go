package replay

import (
	"math/bits"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/wire"
)

const (
	// maxShards is enough for the writers of a node: each is there for a microsecond, after a way through
	// the whole chain.
	maxShards = 16
	// shardEntries and shardBytes are the least share of a shard in a store of several. Who has to evict
	// finds enough to choose from in such a shard, and so much that the longest answer gets its room.
	shardEntries = 256
	shardBytes   = 128 << 10
)

// Store is a bounded store of wire answers. It is safe for concurrent use.
type Store struct {
	shards     []shard
	maxEntries int64
	maxBytes   int64

	entries, bytes                    atomic.Int64 // what is there and what is about to be
	stored, refused, evicted, expired atomic.Uint64
}

// PutOptions say how an answer is stored.
type PutOptions struct {
	// Now is a time at which, or before which, the chain read its clock for this answer: when the query was
	// received, for instance. A later one would let the answer live too long. It is in nanoseconds of the
	// clock that Get is given, which never goes back.
	Now int64
	// PassAfter, where it is not 0, is the time from which on Get has nothing, so that the chain sees who
	// asks and may fetch the answer anew. It is on the same clock.
	PassAfter int64
	// Uses, where it and PassAfter are not 0, has up to so many uses counted that follow each other with no gap
	// longer than Gap, a number of milliseconds, for [Store.TakeUses]. It is at most MaxUses. The entry is kept for
	// that beyond PassAfter until its TTL is over.
	Uses int
	Gap  time.Duration
	// Class is what Entry.Class says.
	Class uint32
	// Rotate has Entry.Append rotate the addresses of an RRset. An answer in which this is not
	// possible without touching more is refused.
	Rotate bool
}

// Stats is what a store has and has done.
type Stats struct {
	Entries int   // in the store
	Bytes   int64 // of memory that they take, about

	Stored  uint64 // answers taken
	Refused uint64 // answers not taken
	Evicted uint64 // entries that made room for others
	Expired uint64 // entries removed after their time
}

// New returns an empty store for so many entries that take so many octets of memory, keys and
// bookkeeping included. Memory is used as entries come. With less than 1 of either it stays empty.
func New(entries int, bytes int64) *Store {
	n := max(min(int64(entries)/shardEntries, bytes/shardBytes, maxShards), 1)
	n = 1 << (bits.Len64(uint64(n)) - 1)
	s := &Store{shards: make([]shard, n), maxEntries: int64(entries), maxBytes: bytes}
	for i := range s.shards {
		s.shards[i].resize(minHeads)
	}
	return s
}

// shard uses the upper bits of the hash, and the shard's table the lower ones.
func (s *Store) shard(hash uint64) *shard {
	return &s.shards[hash>>32&uint64(len(s.shards)-1)]
}

// Get returns the entry for q and nil where there is none for use at now, in nanoseconds of the caller's clock.
func (s *Store) Get(q *wire.Query, now int64) *Entry {
	e := s.shard(q.Hash()).find(q)
	if e == nil || now > e.until {
		return nil
	}
	if mark := e.mark.Load(); mark < maxMark {
		e.mark.Store(mark + 1) // of two at once one may be lost
	}
	if e.limit != 0 {
		e.use(now)
	}
	return e
}

// Put stores a copy of answer for those who ask what q asks, in place of what was stored for them, and
// reports whether it did. It takes what [wire.ParseAnswer] takes and answers q's question, if it can be
// replayed at all for its TTL and o. A refused answer leaves nothing stored for its question, because the
// chain has said another thing since.
func (s *Store) Put(q *wire.Query, answer []byte, o PutOptions) bool {
	a, err := wire.ParseAnswer(answer)
	if err != nil || !s.takes(q, answer, &a, o) {
		s.refused.Add(1)
		s.forget(q)
		return false
	}
	if !s.put(q, newEntry(q, answer, &a, o), o.Now) {
		s.refused.Add(1)
		return false
	}
	s.stored.Add(1)
	return true
}

func (s *Store) takes(q *wire.Query, answer []byte, a *wire.Answer, o PutOptions) bool {
	question := answer[headerSize : headerSize+a.Question]
	switch {
	case !q.Asks(question):
		return false
	case o.Rotate && !a.Rotatable:
		return false
	case a.Truncated && string(question) != string(q.Key()[:len(question)]):
		// Names are compressed less where the question's letters are others than the records', so an
		// answer to other letters might have had room.
		return false
	}
	return until(a.MinTTL, o) > o.Now
}

// put makes room for e and stores it.
func (s *Store) put(q *wire.Query, e *Entry, now int64) bool {
	sh := s.shard(e.hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for range sweepSteps {
		if gone := sh.stale(now); gone != nil {
			s.drop(sh, gone)
			s.expired.Add(1)
		}
	}
	old := sh.find(q)
	entries, bytes := int64(1), e.cost()
	if old != nil {
		entries, bytes = 0, bytes-old.cost()
	}
	// What is about to be stored is counted first, so that the bounds hold with several writers.
	over := s.entries.Add(entries) > s.maxEntries
	over = s.bytes.Add(bytes) > s.maxBytes || over
	for over {
		gone := sh.victim(now, old)
		if gone == nil {
			s.entries.Add(-entries)
			s.bytes.Add(-bytes)
			if old != nil {
				s.drop(sh, old)
			}
			return false
		}
		s.drop(sh, gone)
		if gone.done(now) {
			s.expired.Add(1)
		} else {
			s.evicted.Add(1)
		}
		over = s.entries.Load() > s.maxEntries || s.bytes.Load() > s.maxBytes
	}
	if old == nil {
		sh.insert(e)
		return true
	}
	e.mark.Store(old.mark.Load())
	if e.until == old.until && e.limit == old.limit {
		// Two queries at once learnt the same. A use that comes between is lost.
		e.uses.Store(old.uses.Load())
	}
	sh.replace(old, e)
	return true
}

// forget removes what is stored for q.
func (s *Store) forget(q *wire.Query) {
	sh := s.shard(q.Hash())
	if sh.find(q) == nil {
		return
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if e := sh.find(q); e != nil {
		s.drop(sh, e)
	}
}

// drop removes e, with the shard's lock held.
func (s *Store) drop(sh *shard, e *Entry) {
	sh.remove(e)
	s.entries.Add(-1)
	s.bytes.Add(-e.cost())
}

// Stats returns what s has and has done.
func (s *Store) Stats() Stats {
	return Stats{
		Entries: int(s.entries.Load()),
		Bytes:   s.bytes.Load(),
		Stored:  s.stored.Load(),
		Refused: s.refused.Load(),
		Evicted: s.evicted.Load(),
		Expired: s.expired.Load(),
	}
}

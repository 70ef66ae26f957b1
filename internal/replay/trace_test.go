package replay

import (
	"container/list"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"

	"localcache.dev/localcache/internal/wire"
)

// numbered makes queries and answers that differ by a number, faster than a packer.
type numbered struct {
	msg []byte
	q   wire.Query
}

// query is for a name as a service has in a cluster, 39 octets long.
func (n *numbered) query(i int) *wire.Query {
	n.msg = append(n.msg[:0], "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"+
		"\x08s0000000\x09namespace\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01"...)
	for at := headerSize + 8; i > 0; i /= 10 {
		n.msg[at] += byte(i % 10)
		at--
	}
	if !n.q.Parse(n.msg) {
		panic("no plain query")
	}
	return &n.q
}

// answer is the answer to the query that was made last: addresses that depend on its number and a version.
func (n *numbered) answer(i, version, addresses int, ttl uint32) []byte {
	msg := append([]byte(nil), n.msg...)
	msg[2], msg[3], msg[7] = 0x85, 0x80, byte(addresses)
	for j := range addresses {
		msg = append(msg, 0xc0, 12, 0, 1, 0, 1)
		msg = binary.BigEndian.AppendUint32(msg, ttl)
		msg = append(msg, 0, 4, byte(i>>8), byte(i), byte(version), byte(j))
	}
	return msg
}

// lru is the yardstick: it forgets what was used longest ago.
type lru struct {
	size  int
	order list.List
	items map[int]*list.Element
}

func newLRU(size int) *lru { return &lru{size: size, items: make(map[int]*list.Element)} }

// use reports whether i is there, and has it there.
func (l *lru) use(i int) bool {
	if e := l.items[i]; e != nil {
		l.order.MoveToFront(e)
		return true
	}
	if len(l.items) == l.size {
		delete(l.items, l.order.Remove(l.order.Back()).(int))
	}
	l.items[i] = l.order.PushFront(i)
	return false
}

// use asks for i, and stores it where it is not there.
func (n *numbered) use(s *Store, i int) bool {
	q := n.query(i)
	if s.Get(q, start) != nil {
		return true
	}
	s.Put(q, n.answer(i, 0, 1, 30), PutOptions{Now: start})
	return false
}

// On a trace in which few names are asked often and many seldom, the store forgets no worse than an LRU of as
// many entries, be the room short or ample.
func TestHitRatioOfZipfTrace(t *testing.T) {
	const names, length, distance = 50_000, 120_000, 0.005
	for _, c := range []struct {
		entries  int
		exponent float64
	}{{500, 1.01}, {2_000, 1.2}, {10_000, 1.01}, {50_000, 1.01}} {
		t.Run(fmt.Sprintf("%d entries, exponent %v", c.entries, c.exponent), func(t *testing.T) {
			zipf := rand.NewZipf(rand.New(rand.NewPCG(5, 6)), c.exponent, 1, names-1)
			s, l := New(c.entries, 1<<40), newLRU(c.entries)
			var n numbered
			hits, lruHits := 0, 0
			for i := range length {
				name := int(zipf.Uint64())
				hit, lruHit := n.use(s, name), l.use(name)
				if i < length/4 {
					continue // as long as there is room, all are alike
				}
				if hit {
					hits++
				}
				if lruHit {
					lruHits++
				}
			}
			ratio, ideal := float64(hits)/(length*3/4), float64(lruHits)/(length*3/4)
			t.Logf("hit ratio %.4f, LRU %.4f", ratio, ideal)
			if ratio < ideal-distance {
				t.Errorf("hit ratio %.4f, an LRU has %.4f", ratio, ideal)
			}
		})
	}
}

// A flood of names that are asked once does not push out those that are asked often, even while these
// are silent: an LRU has none of them left.
func TestScanResistance(t *testing.T) {
	const entries, hot = 4096, 1024
	s, l := New(entries, 1<<40), newLRU(entries)
	var n numbered
	for range 5 {
		for i := range hot {
			n.use(s, i)
			l.use(i)
		}
	}
	for i := range 2 * entries {
		n.use(s, hot+i)
		l.use(hot + i)
	}
	left, lruLeft := 0, 0
	for i := range hot {
		if s.Get(n.query(i), start) != nil {
			left++
		}
		if l.items[i] != nil {
			lruLeft++
		}
	}
	t.Logf("of %d hot names %d are left, %d in an LRU", hot, left, lruLeft)
	if left < hot*98/100 || lruLeft != 0 {
		t.Errorf("of %d hot names %d are left, and %d in an LRU", hot, left, lruLeft)
	}
}

func TestBounds(t *testing.T) {
	var n numbered
	for _, c := range []struct {
		entries int
		bytes   int64
	}{{1, 1 << 20}, {100, 1 << 20}, {5000, 1 << 40}, {1 << 20, 100_000}, {5000, 500_000}} {
		s := New(c.entries, c.bytes)
		most := Stats{}
		for i := range 6_000 {
			if !s.Put(n.query(i), n.answer(i, 0, 1+i%100, 30), PutOptions{Now: start}) {
				t.Fatalf("%+v: refused number %d", c, i)
			}
			if s.Get(n.query(i), start) == nil {
				t.Fatalf("%+v: number %d is not there", c, i)
			}
			st := s.Stats()
			most.Entries, most.Bytes = max(most.Entries, st.Entries), max(most.Bytes, st.Bytes)
		}
		if most.Entries > c.entries || most.Bytes > c.bytes {
			t.Errorf("%+v: up to %d entries, %d octets", c, most.Entries, most.Bytes)
		}
		// The one bound or the other is used up.
		if most.Entries < c.entries && most.Bytes < c.bytes*9/10 {
			t.Errorf("%+v: not more than %d entries, %d octets", c, most.Entries, most.Bytes)
		}
		checkStore(t, s)
	}
	for _, s := range []*Store{New(0, 1<<20), New(10, 0), New(-1, -1), New(10, 200)} {
		if s.Put(n.query(1), n.answer(1, 0, 1, 30), PutOptions{Now: start}) || s.Get(n.query(1), start) != nil {
			t.Error("stored where there is no room")
		}
		if st := s.Stats(); st.Entries != 0 || st.Bytes != 0 || st.Refused != 1 {
			t.Errorf("%+v", st)
		}
	}
}

// A longer answer may take the room of others, but not its own.
func TestReplaceByLonger(t *testing.T) {
	var n numbered
	s := New(100, 4000)
	for i := range 5 {
		s.Put(n.query(i), n.answer(i, 0, 1, 30), PutOptions{Now: start})
	}
	if !s.Put(n.query(2), n.answer(2, 1, 120, 30), PutOptions{Now: start}) || s.Get(n.query(2), start) == nil {
		t.Error("not replaced")
	}
	checkStore(t, s)
	s.Put(n.query(3), n.answer(3, 0, 1, 30), PutOptions{Now: start})
	// Longer than the bound: the old answer is not right any more, and the new has no room.
	if s.Put(n.query(3), n.answer(3, 1, 200, 30), PutOptions{Now: start}) || s.Get(n.query(3), start) != nil {
		t.Error("stored over the bound, or the old answer is left")
	}
	checkStore(t, s)
}

// checkStore compares a store's books with its entries.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	entries, bytes := 0, int64(0)
	for i := range s.shards {
		sh := &s.shards[i]
		heads := sh.table.Load().heads
		chained := 0
		for j := range heads {
			for e := heads[j].Load(); e != nil; e = e.next.Load() {
				chained++
				if sh.slots[e.slot] != e || s.shard(e.hash) != sh {
					t.Fatal("an entry is in the wrong place")
				}
				bytes += e.cost()
			}
		}
		if chained != len(sh.slots) {
			t.Fatalf("%d entries in chains, %d in slots", chained, len(sh.slots))
		}
		if len(heads) < chained || len(heads) > max(minHeads, 8*chained) || cap(sh.slots) > max(64, 4*len(heads)) {
			t.Errorf("%d heads and room for %d in %d slots", len(heads), cap(sh.slots), chained)
		}
		entries += chained
	}
	if st := s.Stats(); st.Entries != entries || st.Bytes != bytes {
		t.Errorf("%d entries of %d octets, said to be %+v", entries, bytes, st)
	}
}

// Entries past their time go when others come, without being asked for and without a bound being reached.
func TestExpiredEntriesGo(t *testing.T) {
	var n numbered
	s := New(10_000, 1<<40)
	for i := range 4000 {
		s.Put(n.query(i), n.answer(i, 0, 1, 5), PutOptions{Now: start})
	}
	const later = start + 10*second
	for i := range 4000 {
		s.Put(n.query(100_000+i), n.answer(i, 0, 1, 3600), PutOptions{Now: later})
	}
	if st := s.Stats(); st.Entries > 4400 || st.Evicted != 0 || st.Expired < 3600 {
		t.Errorf("%+v", st)
	}
	// The tables get smaller again.
	const muchLater = later + 4000*second
	for i := range 10_000 {
		s.Put(n.query(i%600), n.answer(i, 0, 1, 3600), PutOptions{Now: muchLater})
	}
	if st := s.Stats(); st.Entries > 600 {
		t.Errorf("%+v", st)
	}
	checkStore(t, s)
}

// Who has to evict takes one that is past its time before one that is of use, however often it was used.
func TestEvictsWhatIsPastItsTime(t *testing.T) {
	var n numbered
	s := New(20, 1<<20)
	for i := range 20 {
		ttl := uint32(3600)
		if i == 7 {
			ttl = 5
		}
		s.Put(n.query(i), n.answer(i, 0, 1, ttl), PutOptions{Now: start, Class: uint32(i)})
		for range maxMark {
			s.Get(n.query(i), start)
		}
	}
	if e := s.shards[0].victim(start+5*second, nil); e.Class() != 7 {
		t.Errorf("number %d is evicted", e.Class())
	}
}

// A name that is hot stays so when its answer is fetched anew.
func TestReplacedEntryKeepsItsMarks(t *testing.T) {
	var n numbered
	s := New(20, 1<<20)
	for version := range 2 {
		s.Put(n.query(1), n.answer(1, version, 1, 30), PutOptions{Now: start})
		if got, want := s.shard(n.q.Hash()).find(&n.q).mark.Load(), uint32(version*maxMark); got != want {
			t.Errorf("version %d has %d marks, want %d", version, got, want)
		}
		for range maxMark {
			s.Get(n.query(1), start)
		}
	}
}

// heap is what the heap has in use.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// An entry for a name of 39 octets with two addresses takes at most 350 octets of the heap beyond its answer,
// of which 46 are its key; the store's own count is right, and an empty store is small.
func TestMemory(t *testing.T) {
	const entries, most = 100_000, 350
	var n numbered
	before := heap()
	s := New(entries, 1<<40)
	if empty := heap() - before; empty > 16<<10 {
		t.Errorf("an empty store takes %d octets", empty)
	}
	size := 0
	for i := range entries {
		q, a := n.query(i), n.answer(i, 0, 2, 30)
		size = len(a)
		if !s.Put(q, a, PutOptions{Now: start, Rotate: true}) {
			t.Fatal("refused")
		}
	}
	each := (heap() - before) / entries
	counted := s.Stats().Bytes / entries
	t.Logf("an entry takes %d octets, %d beyond its answer; counted as %d", each, each-int64(size), counted)
	if each-int64(size) > most {
		t.Errorf("an entry takes %d octets beyond its answer of %d", each-int64(size), size)
	}
	if counted < each*9/10 || counted > each*11/10 {
		t.Errorf("an entry takes %d octets and is counted as %d", each, counted)
	}
	if st := s.Stats(); st.Entries != entries {
		t.Errorf("%+v", st)
	}
	runtime.KeepAlive(s)
}

package replay

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"localcache.dev/localcache/internal/wire"
)

// Readers and writers at once: every answer that a reader gets is a whole one, one that was stored for its
// question. Tables grow and shrink meanwhile, entries are replaced, evicted and swept.
func TestConcurrentUse(t *testing.T) {
	const names, readers, writers, rounds = 3000, 3, 2, 25_000
	s := New(1000, 1<<40)
	var clock atomic.Int64
	clock.Store(start)
	var done atomic.Int32
	done.Store(writers)
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			defer done.Add(-1)
			var n numbered
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for i := range rounds {
				// Now few names, now many: the tables follow, because entries are past their time soon.
				name := rnd.IntN(names)
				if i/5000%2 == 0 {
					name %= 50
				}
				if i%50 == 0 {
					clock.Add(second / 10)
				}
				q := n.query(name)
				o := PutOptions{Now: clock.Load(), Class: uint32(name), Rotate: i%2 == 0}
				if !s.Put(q, n.answer(name, i, 1+i%4, uint32(2+i%8)), o) {
					t.Error("refused")
					return
				}
			}
		})
	}
	var hits, torn atomic.Int64
	for r := range readers {
		wg.Go(func() {
			var n numbered
			var buf []byte
			rnd := rand.New(rand.NewPCG(uint64(r), 2))
			for done.Load() > 0 && torn.Load() == 0 {
				name := rnd.IntN(names)
				if rnd.IntN(2) == 0 {
					name %= 50
				}
				q := n.query(name)
				now := clock.Load()
				e := s.Get(q, now)
				if e == nil {
					continue
				}
				hits.Add(1)
				buf = e.Append(buf[:0], q, now)
				if err := n.check(name, buf); err != nil || e.Class() != uint32(name) {
					torn.Add(1)
					t.Errorf("class %d for %d: %v", e.Class(), name, err)
				}
			}
		})
	}
	wg.Wait()
	st := s.Stats()
	t.Logf("%d hits, %+v", hits.Load(), st)
	if hits.Load() == 0 || st.Evicted == 0 || st.Expired == 0 || st.Entries > 1000 {
		t.Errorf("%d hits, %+v", hits.Load(), st)
	}
	checkStore(t, s)
}

// check compares msg with the answer that has its version, its number of addresses and its TTL, which is one
// for all records, and its rotation.
func (n *numbered) check(name int, msg []byte) error {
	question := len(n.msg)
	if len(msg) < question+16 || msg[question+9] == 0 {
		return fmt.Errorf("no answer: %x", msg)
	}
	version, first := int(msg[question+14]), int(msg[question+15])
	count := (len(msg) - question) / 16
	want := n.answer(name, version, count, uint32(msg[question+9]))
	for i := range count {
		want[question+16*i+15] = byte((first + i) % count)
	}
	if !bytes.Equal(want, msg) {
		return fmt.Errorf("got %x, want %x", msg, want)
	}
	return nil
}

// The bounds hold with several writers at every moment.
func TestConcurrentBounds(t *testing.T) {
	const entries, room = 2000, 300_000
	s := New(entries, room)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			var n numbered
			for i := range 5000 {
				name := w*100_000 + i
				q := n.query(name)
				s.Put(q, n.answer(name, 0, 1+i%20, 30), PutOptions{Now: start})
			}
		})
	}
	wg.Wait()
	if st := s.Stats(); st.Entries > entries || st.Bytes > room || st.Bytes < room*9/10 {
		t.Errorf("%+v", st)
	}
	checkStore(t, s)
}

// BenchmarkHit is all that this package and wire do for a hit.
func BenchmarkHit(b *testing.B) {
	for _, c := range []struct {
		name      string
		names     int
		addresses int
		age       int64
		rotate    bool
	}{
		{"one", 1, 1, 0, false},
		{"one,aged", 1, 1, 3 * second, false},
		{"one,4 addresses,aged,rotated", 1, 4, 3 * second, true},
		{"1000,2 addresses,aged,rotated", 1000, 2, 3 * second, true},
		{"16000,2 addresses,aged,rotated", 16000, 2, 3 * second, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			s := New(c.names, 1<<40)
			var n numbered
			msgs := make([][]byte, c.names)
			for i := range msgs {
				q := n.query(i)
				msgs[i] = bytes.Clone(n.msg)
				s.Put(q, n.answer(i, 0, c.addresses, 30), PutOptions{Now: start, Rotate: c.rotate})
			}
			rand.New(rand.NewPCG(1, 1)).Shuffle(len(msgs), func(i, j int) { msgs[i], msgs[j] = msgs[j], msgs[i] })
			buf := make([]byte, 0, 512)
			var q wire.Query
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				if !q.Parse(msgs[i]) {
					b.Fatal("no plain query")
				}
				e := s.Get(&q, start+c.age)
				if e == nil {
					b.Fatal("no entry")
				}
				buf = e.Append(buf[:0], &q, start+c.age)
				if i++; i == len(msgs) {
					i = 0
				}
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	s := New(10_000, 1<<40)
	var n numbered
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		q := n.query(i)
		s.Put(q, n.answer(i, 0, 2, 30), PutOptions{Now: start, Rotate: true})
		i++
	}
}

// BenchmarkReaders shows that readers of one name do not wait for each other.
func BenchmarkReaders(b *testing.B) {
	s := New(10, 1<<20)
	var n numbered
	q := n.query(1)
	s.Put(q, n.answer(1, 0, 2, 30), PutOptions{Now: start, Rotate: true})
	b.RunParallel(func(pb *testing.PB) {
		var n numbered
		n.query(1)
		var q wire.Query
		buf := make([]byte, 0, 512)
		for pb.Next() {
			q.Parse(n.msg)
			buf = s.Get(&q, start).Append(buf[:0], &q, start)
		}
	})
}

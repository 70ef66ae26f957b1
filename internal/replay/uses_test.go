package replay

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire"
)

// counted stores an answer with TTL 300 that passes after 270 s, whose uses are counted.
func counted(t testing.TB, uses int, gap time.Duration) (*Store, *wire.Query) {
	t.Helper()
	const name = "www.example.org."
	q := parsed(t, name, dns.TypeA, nil)
	s := New(10, 1<<20)
	o := PutOptions{Now: start, PassAfter: start + 270*second, Uses: uses, Gap: gap, Class: 7}
	if !s.Put(q, reply(t, name, dns.TypeA, nil, name+" 300 A 192.0.2.1"), o) {
		t.Fatal("refused")
	}
	return s, q
}

func TestUses(t *testing.T) {
	const never = -1
	for name, c := range map[string]struct {
		at       []int64 // seconds
		take     int64
		count    int
		unbroken bool
	}{
		"none":                             {nil, 270, 0, false},
		"before its end":                   {[]int64{10, 20}, 269, never, false},
		"each one":                         {[]int64{10, 20, 70}, 271, 0, false},
		"up to the end":                    {[]int64{220, 230, 240}, 270, 3, false},
		"all the time":                     {[]int64{40, 80, 120, 160, 200, 240}, 275, 5, true},
		"the limit":                        {[]int64{240, 241, 242, 243, 244, 245, 246, 247}, 270, 5, false},
		"after a gap":                      {[]int64{10, 20, 30, 200, 250}, 270, 2, false},
		"a gap before the first":           {[]int64{61, 100, 150, 200, 250}, 270, 5, false},
		"a gap after the last":             {[]int64{200, 201, 202}, 264, never, false},
		"a gap after the last, at the end": {[]int64{200, 201, 202}, 270, 0, false},
		"past the answer's TTL":            {[]int64{250, 260, 269}, 302, 0, false},
		"the last moment":                  {[]int64{250, 260, 269}, 299, 3, false},
	} {
		s, q := counted(t, 5, time.Minute)
		for _, at := range c.at {
			if s.Get(q, start+at*second) == nil {
				t.Fatalf("%s: no entry at %d", name, at)
			}
		}
		got := s.TakeUses(q, start+c.take*second)
		if c.count == never {
			if got.Count != 0 {
				t.Errorf("%s: %+v", name, got)
			}
			// What was not taken is there later, if it was too early.
			continue
		}
		if got.Count != c.count || got.Count > 0 && (got.Unbroken != c.unbroken || got.Stored != start || got.Class != 7) {
			t.Errorf("%s: %+v", name, got)
		}
		if again := s.TakeUses(q, start+c.take*second); again.Count != 0 {
			t.Errorf("%s: taken twice: %+v", name, again)
		}
	}
}

// The uses are what a counter that knows each use says, or less where a gap was nearly one.
func TestUsesAsCounted(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	equal, some := 0, 0
	for range 3000 {
		const limit = 4
		gap := time.Duration(1+rng.IntN(60)) * time.Second
		s, q := counted(t, limit, gap)
		now, last := start, start
		exact, unbroken := 0, true
		for {
			now += rng.Int64N(int64(gap)*int64(1+rng.IntN(4))/3 + 1)
			if now-last > int64(gap) {
				exact, unbroken = 0, false
			}
			if now >= start+270*second {
				break
			}
			s.Get(q, now)
			last = now
			exact = min(exact+1, limit)
		}
		if now >= start+300*second {
			continue
		}
		got := s.TakeUses(q, now)
		if got.Count > exact || got.Count > 0 && got.Unbroken && !unbroken {
			t.Fatalf("gap %v: %+v where %d were counted, unbroken %t", gap, got, exact, unbroken)
		}
		if exact > 0 {
			some++
			if got.Count == exact {
				equal++
			}
		}
	}
	t.Logf("%d of %d equal", equal, some)
	if some < 1000 || equal*10 < some*8 {
		t.Errorf("the uses are those that were counted in %d of %d cases", equal, some)
	}
}

// An answer that is learnt twice at once keeps the uses of the first, and one that is learnt anew has none.
func TestUsesOfTheNext(t *testing.T) {
	s, q := counted(t, 5, time.Minute)
	s.Get(q, start+230*second)
	s.Get(q, start+240*second)
	answer := reply(t, "www.example.org.", dns.TypeA, nil, "www.example.org. 60 A 192.0.2.1")
	o := PutOptions{Now: start + 241*second, PassAfter: start + 270*second, Uses: 5, Gap: time.Minute}
	s.Put(q, answer, o)
	s.Get(q, start+242*second)
	if got := s.TakeUses(q, start+271*second); got.Count != 3 {
		t.Errorf("the same answer again: %+v", got)
	}
	o.Now, o.PassAfter = start+272*second, start+300*second
	s.Put(q, answer, o)
	s.Get(q, start+273*second)
	if got := s.TakeUses(q, start+301*second); got.Count != 1 || !got.Unbroken {
		t.Errorf("another answer: %+v", got)
	}
}

// An entry that waits for its uses to be taken is kept, and not for longer than its TTL.
func TestUsesAreKept(t *testing.T) {
	s, q := counted(t, 5, time.Minute)
	s.Get(q, start+269*second)
	other := parsed(t, "other.example.org.", dns.TypeA, nil)
	put := func(now int64) {
		s.Put(other, reply(t, "other.example.org.", dns.TypeA, nil, "other.example.org. 30 A 192.0.2.1"), PutOptions{Now: now})
	}
	put(start + 280*second)
	if got := s.TakeUses(q, start+281*second); got.Count != 1 {
		t.Errorf("%+v", got)
	}
	put(start + 301*second + second)
	if n := s.Stats().Entries; n != 1 {
		t.Errorf("%d entries are left", n)
	}
}

// Readers that use an entry while somebody takes its uses: no use is taken twice.
func TestUsesAtOnce(t *testing.T) {
	s, q := counted(t, MaxUses, time.Minute)
	var used, taken atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 20000 {
				used.Add(1)
				s.Get(q, start+269*second)
			}
		})
		wg.Go(func() {
			for range 2000 {
				taken.Add(int64(s.TakeUses(q, start+270*second).Count))
			}
		})
	}
	wg.Wait()
	taken.Add(int64(s.TakeUses(q, start+270*second).Count))
	if n := taken.Load(); n == 0 || n > used.Load() {
		t.Errorf("%d uses taken of %d", n, used.Load())
	}
}

// A hot entry's word is written a few times in a gap and not with each use.
func TestUsesAreWrittenSeldom(t *testing.T) {
	s, q := counted(t, 10, time.Minute)
	writes, last := 0, uint64(0)
	for now := start; now < start+240*second; now += second / 100 {
		s.Get(q, now)
		if w := s.shard(q.Hash()).find(q).uses.Load(); w != last {
			writes++
			last = w
		}
	}
	if writes > 10+4*refreshes+1 {
		t.Errorf("%d writes in 24000 uses", writes)
	}
}

package cacheitem

import (
	"testing"
	"time"
)

// store is like those of cache: pointers to structs under hashes.
type store[T any] struct{ items map[uint64]*T }

func (s *store[T]) Get(key uint64) (*T, bool) { i, ok := s.items[key]; return i, ok }

type answer struct {
	origTTL uint32
	stored  time.Time
	hits    int
}

type likeCache struct {
	Next           any
	pcache, ncache *store[answer]
	staleTTL       time.Duration
}

type wrapped struct{ *likeCache } // as a plugin's handler around cache

func newLikeCache(now time.Time) *likeCache {
	c := &likeCache{pcache: &store[answer]{map[uint64]*answer{}}, ncache: &store[answer]{map[uint64]*answer{}}}
	c.pcache.items[Key("www.example.org.", 1, 1, false, false)] = &answer{30, now, 7}
	c.ncache.items[Key("nx.example.org.", 28, 1, true, true)] = &answer{5, now, 1}
	return c
}

func TestFind(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	for _, c := range []any{newLikeCache(now), &wrapped{newLikeCache(now)}} {
		it, err := Open(c)
		if err != nil || !it.Dated() {
			t.Fatalf("%T: %v", c, err)
		}
		i, ok := it.Find(false, Key("www.example.org.", 1, 1, false, false))
		if !ok || i.TTL != 30 || !i.Stored.Equal(now) {
			t.Fatalf("%T: %+v, %v", c, i, ok)
		}
		hits, err := FieldOf[int](it, "hits")
		if err != nil || *Pointer[int](&i, hits) != 7 {
			t.Errorf("%T: hits %v", c, err)
		}
		for after, want := range map[time.Duration]int64{-time.Second: 30, 0: 30, 999 * time.Millisecond: 30, time.Second: 29, 30 * time.Second: 0, 31500 * time.Millisecond: -1} {
			if got := i.Left(now.Add(after)); got != want {
				t.Errorf("after %v %d s are left, want %d", after, got, want)
			}
		}
		if _, ok := it.Find(true, Key("nx.example.org.", 28, 1, true, true)); !ok {
			t.Errorf("%T: the negative answer is not found", c)
		}
		if _, ok := it.Find(true, Key("nx.example.org.", 28, 1, true, false)); ok {
			t.Errorf("%T: found for other flags", c)
		}
	}
}

func TestOption(t *testing.T) {
	c := newLikeCache(time.Now())
	c.staleTTL = 30 * time.Second
	for _, h := range []any{c, &wrapped{c}} {
		if got, err := Option[time.Duration](h, "staleTTL"); got != 30*time.Second || err != nil {
			t.Errorf("%T: %v, %v", h, got, err)
		}
		if got, err := Option[int](h, "staleTTL"); got != 0 || err == nil {
			t.Errorf("%T: %v of another type", h, got)
		}
		if got, err := Option[int](h, "prefetch"); got != 0 || err == nil {
			t.Errorf("%T: %v of a field that is not there", h, got)
		}
	}
	for _, h := range []any{nil, likeCache{}, (*likeCache)(nil)} {
		if _, err := Option[time.Duration](h, "staleTTL"); err == nil {
			t.Errorf("%T has an option", h)
		}
	}
}

// What is not as expected is told, and not read.
func TestOpenRefuses(t *testing.T) {
	type other struct{ TTL uint32 }
	type typed struct {
		origTTL int64
		stored  time.Time
	}
	for _, c := range []any{
		nil, likeCache{}, (*likeCache)(nil), &likeCache{}, 7, &struct{ pcache int }{1},
		&struct{ pcache, ncache *store[other] }{&store[other]{}, &store[other]{}},
		&struct{ pcache, ncache *store[typed] }{&store[typed]{map[uint64]*typed{1: {origTTL: 1, stored: time.Time{}}}}, &store[typed]{}},
		&struct {
			pcache *store[answer]
			ncache *store[other]
		}{&store[answer]{}, &store[other]{}},
		&struct{ pcache, ncache *map[uint64]answer }{new(map[uint64]answer), new(map[uint64]answer)},
	} {
		if it, err := Open(c); err == nil {
			t.Errorf("%T: %+v", c, it)
		}
	}
	type undated struct{ origTTL uint32 }
	it, err := Open(&struct{ pcache, ncache *store[undated] }{&store[undated]{map[uint64]*undated{1: {origTTL: 30}}}, &store[undated]{}})
	if err != nil || it.Dated() {
		t.Errorf("without a date: %v", err)
	}
	if _, err := FieldOf[string](it, "origTTL"); err == nil {
		t.Error("a field of another type")
	}
}

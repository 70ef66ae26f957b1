package fastpath

import (
	"github.com/coredns/coredns/plugin/cache"
	"github.com/coredns/coredns/plugin/cache/freq"

	"localcache.dev/localcache/internal/cacheitem"
)

// items reads what a cache knows of its answers, with the count of hits by which it prefetches. A Freq has a lock of its
// own.
type items struct {
	*cacheitem.Items
	freq  []int // the field of an item
	exact bool  // items say when they were stored
}

// item is one answer of a cache.
type item struct {
	ttl    uint32 // that it was stored with, in seconds
	freq   *freq.Freq
	stored int64 // by clock; 0 where it is not known
}

func newItems(c *cache.Cache) (*items, error) {
	it, err := cacheitem.Open(c)
	if err != nil {
		return nil, err
	}
	hits, err := cacheitem.FieldOf[*freq.Freq](it, "Freq")
	if err != nil {
		return nil, err
	}
	return &items{Items: it, freq: hits, exact: it.Dated()}, nil
}

// find returns what the cache has under key, of its negative answers or of the others.
func (it *items) find(denial bool, key uint64) (item, bool) {
	i, ok := it.Find(denial, key)
	if !ok {
		return item{}, false
	}
	found := item{ttl: i.TTL, freq: *cacheitem.Pointer[*freq.Freq](&i, it.freq)}
	if it.exact {
		found.stored = clock(i.Stored)
	}
	return found, found.freq != nil
}

// left is the item's TTL at a time, as cache reckons it.
func (i *item) left(now int64) int64 { return int64(i.ttl) - max(now-i.stored, 0)/second }

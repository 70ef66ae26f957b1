package fastpath

import (
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"time"
	"unsafe"

	"github.com/coredns/coredns/plugin/cache"
	"github.com/coredns/coredns/plugin/cache/freq"
)

// items reads what a cache knows of its answers. The types are not exported: what is expected of them is checked
// once, and where it is not so, nothing is read. An item's fields are set before it can be found, and its Freq has
// a lock of its own.
type items struct {
	positive, negative reflect.Value // the method Get of each of cache's two stores
	ttl, freq, stored  []int         // fields of an item
	exact              bool          // stored is there
}

// item is one answer of a cache.
type item struct {
	ttl    uint32 // that it was stored with, in seconds
	freq   *freq.Freq
	stored int64 // by clock; 0 where it is not known
}

func newItems(c *cache.Cache) (*items, error) {
	positive, err1 := getter(c, "pcache")
	negative, err2 := getter(c, "ncache")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	kind := positive.Type().Out(0)
	if negative.Type().Out(0) != kind {
		return nil, errors.New("the stores of cache have items of two types")
	}
	it := &items{positive: positive, negative: negative}
	var err error
	if it.ttl, err = fieldOf[uint32](kind.Elem(), "origTTL"); err != nil {
		return nil, err
	}
	if it.freq, err = fieldOf[*freq.Freq](kind.Elem(), "Freq"); err != nil {
		return nil, err
	}
	it.stored, err = fieldOf[time.Time](kind.Elem(), "stored")
	it.exact = err == nil
	return it, nil
}

// getter is the method Get of one of a cache's stores: a pointer to a struct for a key.
func getter(c *cache.Cache, store string) (reflect.Value, error) {
	f := reflect.ValueOf(c).Elem().FieldByName(store)
	if !f.IsValid() || f.Kind() != reflect.Pointer || f.IsNil() {
		return reflect.Value{}, fmt.Errorf("cache has no %q", store)
	}
	get := reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().MethodByName("Get")
	if !get.IsValid() {
		return reflect.Value{}, fmt.Errorf("%q of cache cannot be asked", store)
	}
	t := get.Type()
	if t.NumIn() != 1 || t.In(0) != reflect.TypeFor[uint64]() || t.NumOut() != 2 || t.Out(1) != reflect.TypeFor[bool]() ||
		t.Out(0).Kind() != reflect.Pointer || t.Out(0).Elem().Kind() != reflect.Struct {
		return reflect.Value{}, fmt.Errorf("%q of cache gives no items", store)
	}
	return get, nil
}

// fieldOf finds a field of a struct by name and type.
func fieldOf[T any](t reflect.Type, name string) ([]int, error) {
	f, ok := t.FieldByName(name)
	if !ok || len(f.Index) != 1 {
		return nil, fmt.Errorf("%s has no field %q", t, name)
	}
	if want := reflect.TypeFor[T](); f.Type != want {
		return nil, fmt.Errorf("field %q of %s is a %s, not a %s", name, t, f.Type, want)
	}
	return f.Index, nil
}

// valueOf reads such a field.
func valueOf[T any](v reflect.Value, index []int) T {
	return *(*T)(unsafe.Pointer(v.FieldByIndex(index).UnsafeAddr()))
}

// find returns what the cache has under key, of its negative answers or of the others.
func (it *items) find(denial bool, key uint64) (item, bool) {
	get := it.positive
	if denial {
		get = it.negative
	}
	out := get.Call([]reflect.Value{reflect.ValueOf(key)})
	if !out[1].Bool() || out[0].IsNil() {
		return item{}, false
	}
	v := out[0].Elem()
	found := item{ttl: valueOf[uint32](v, it.ttl), freq: valueOf[*freq.Freq](v, it.freq)}
	if it.exact {
		found.stored = clock(valueOf[time.Time](v, it.stored))
	}
	return found, found.freq != nil
}

// left is the item's TTL at a time, as cache reckons it.
func (i *item) left(now int64) int64 { return int64(i.ttl) - max(now-i.stored, 0)/second }

// cacheKey is cache's own key of a question (plugin/cache, hash). The name is in lower case.
func cacheKey(name string, qtype, qclass uint16, do, cd bool) uint64 {
	h := fnv.New64()
	bit := func(b bool) byte {
		if b {
			return '1'
		}
		return '0'
	}
	h.Write([]byte{bit(do), bit(cd), byte(qtype >> 8), byte(qtype), byte(qclass >> 8), byte(qclass)})
	h.Write([]byte(name))
	return h.Sum64()
}

// Package cacheitem reads what CoreDNS's plugin cache knows and does not export: of its answers, how long one was to
// live and since when it is there; and its options.
//
// It knows no types of CoreDNS. What is expected of them is checked once, by name and type, and where it is not so,
// nothing is read: whoever asks then does without. An item's fields are set before it can be found and do not change.
package cacheitem

import (
	"errors"
	"fmt"
	"hash/fnv"
	"reflect"
	"time"
	"unsafe"
)

// Items reads the items of one cache. It is safe for concurrent use.
type Items struct {
	positive, negative reflect.Value // the method Get of each of cache's two stores
	kind               reflect.Type  // of an item
	ttl, stored        []int         // fields of an item
}

// Item is one answer of a cache.
type Item struct {
	TTL    uint32    // that it was stored with, in seconds
	Stored time.Time // by the cache's clock; zero where Items.Dated is false
	value  reflect.Value
}

// Open returns the Items of a cache, a pointer to the struct cache.Cache of CoreDNS. It fails where that looks different
// from what is known here (CoreDNS v1.15).
func Open(cache any) (*Items, error) {
	c, err := structOf(cache)
	if err != nil {
		return nil, err
	}
	positive, err1 := getter(c, "pcache")
	negative, err2 := getter(c, "ncache")
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	it := &Items{positive: positive, negative: negative, kind: positive.Type().Out(0).Elem()}
	if negative.Type().Out(0).Elem() != it.kind {
		return nil, errors.New("the stores of cache have items of two types")
	}
	if it.ttl, err = FieldOf[uint32](it, "origTTL"); err != nil {
		return nil, err
	}
	if stored, err := FieldOf[time.Time](it, "stored"); err == nil {
		it.stored = stored
	}
	return it, nil
}

// Option reads an option of a cache, such as staleTTL, by name and type. Caches have them before their server starts.
func Option[T any](cache any, name string) (option T, err error) {
	c, err := structOf(cache)
	if err != nil {
		return option, err
	}
	f := c.FieldByName(name)
	if !f.IsValid() {
		return option, fmt.Errorf("%s has no field %q", c.Type(), name)
	}
	if want := reflect.TypeFor[T](); f.Type() != want {
		return option, fmt.Errorf("field %q of %s is a %s, not a %s", name, c.Type(), f.Type(), want)
	}
	return *(*T)(unsafe.Pointer(f.UnsafeAddr())), nil
}

// structOf is the struct that cache points to, which may embed cache.Cache.
func structOf(cache any) (reflect.Value, error) {
	p := reflect.ValueOf(cache)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return reflect.Value{}, fmt.Errorf("%T is no pointer to a struct", cache)
	}
	return p.Elem(), nil
}

// Dated tells whether items say when they were stored.
func (it *Items) Dated() bool { return it.stored != nil }

// getter is the method Get of one of a cache's stores: a pointer to a struct for a key.
func getter(cache reflect.Value, store string) (reflect.Value, error) {
	f := cache.FieldByName(store)
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

// FieldOf finds a field of the items by name and type, for Pointer.
func FieldOf[T any](it *Items, name string) ([]int, error) {
	f, ok := it.kind.FieldByName(name)
	if !ok || len(f.Index) != 1 {
		return nil, fmt.Errorf("%s has no field %q", it.kind, name)
	}
	if want := reflect.TypeFor[T](); f.Type != want {
		return nil, fmt.Errorf("field %q of %s is a %s, not a %s", name, it.kind, f.Type, want)
	}
	return f.Index, nil
}

// Pointer leads to a field that FieldOf found.
func Pointer[T any](i *Item, index []int) *T {
	return (*T)(unsafe.Pointer(i.value.FieldByIndex(index).UnsafeAddr()))
}

// Find returns what the cache has under a Key, of its negative answers or of the others.
func (it *Items) Find(denial bool, key uint64) (Item, bool) {
	get := it.positive
	if denial {
		get = it.negative
	}
	out := get.Call([]reflect.Value{reflect.ValueOf(key)})
	if !out[1].Bool() || out[0].IsNil() {
		return Item{}, false
	}
	i := Item{value: out[0].Elem()}
	i.TTL = *Pointer[uint32](&i, it.ttl)
	if it.stored != nil {
		i.Stored = *Pointer[time.Time](&i, it.stored)
	}
	return i, true
}

// Left is what is left of the item's TTL at a time, in seconds, as cache reckons it; 0 and less: it is stale. It is not to
// be asked where Items.Dated is false.
func (i *Item) Left(now time.Time) int64 {
	return int64(i.TTL) - int64(max(now.Sub(i.Stored), 0)/time.Second)
}

// Key is cache's own key of a question. The name is in lower case and presentation form, with the dot at its end.
func Key(name string, qtype, qclass uint16, do, cd bool) uint64 {
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

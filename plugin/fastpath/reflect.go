package fastpath

import (
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"reflect"
	"time"
	"unsafe"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/cache"
	"github.com/coredns/coredns/plugin/cache/freq"
	"github.com/miekg/dns"
)

// What is read here has no exported way to it. Each read names the field and the type that it expects, and
// fails where a newer CoreDNS or caddy has another; its caller then leaves the queries to CoreDNS.
// TestUnexportedFields fails at build time of such a version.

// field returns a pointer to the unexported field of the struct that v points to.
func field[T any](v any, name string) (*T, error) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("%T is no pointer to a struct", v)
	}
	f := p.Elem().FieldByName(name)
	if !f.IsValid() {
		return nil, fmt.Errorf("%s has no field %q", p.Elem().Type(), name)
	}
	if want := reflect.TypeFor[T](); f.Type() != want {
		return nil, fmt.Errorf("field %q of %s is a %s, not a %s", name, p.Elem().Type(), f.Type(), want)
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr())), nil
}

var errNoSocket = errors.New("the instance has no UDP socket for it")

// socketOf finds the UDP socket that in has for s: caddy keeps it beside the server, in a ServerListener. All
// of them are there before the first server is served.
func socketOf(in *caddy.Instance, s *dnsserver.Server) (*net.UDPConn, error) {
	if in == nil {
		return nil, errNoSocket
	}
	listeners := in.Servers()
	for i := range listeners {
		server, err := field[caddy.Server](&listeners[i], "server")
		if err != nil {
			return nil, err
		}
		if *server != caddy.Server(s) {
			continue
		}
		packet, err := field[net.PacketConn](&listeners[i], "packet")
		if err != nil {
			return nil, err
		}
		udp, ok := (*packet).(*net.UDPConn)
		if !ok {
			return nil, fmt.Errorf("its socket is a %T", *packet)
		}
		return udp, nil
	}
	return nil, errNoSocket
}

// sitesOf returns all that s serves: the blocks of the Corefile by their zones.
func sitesOf(s *dnsserver.Server) ([]*dnsserver.Config, error) {
	zones, err := field[map[string][]*dnsserver.Config](s, "zones")
	if err != nil {
		return nil, err
	}
	var sites []*dnsserver.Config
	for _, z := range *zones {
		sites = append(sites, z...)
	}
	return sites, nil
}

// cacheOptions are what a cache was told and does not export.
type cacheOptions struct {
	keepTTL    bool
	staleTTL   uint32 // that of stale answers, in seconds; 0 where they have none or there are none
	prefetch   int    // hits that it takes; 0: none
	duration   time.Duration
	percentage int
}

func readCacheOptions(c *cache.Cache) (cacheOptions, error) {
	keep, err1 := field[bool](c, "keepttl")
	stale, err2 := field[time.Duration](c, "staleTTL")
	prefetch, err3 := field[int](c, "prefetch")
	duration, err4 := field[time.Duration](c, "duration")
	percentage, err5 := field[int](c, "percentage")
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return cacheOptions{}, err
	}
	o := cacheOptions{
		keepTTL:    *keep,
		staleTTL:   uint32(*stale / time.Second),
		prefetch:   *prefetch,
		duration:   *duration,
		percentage: *percentage,
	}
	if o.prefetch > 0 {
		// An empty cache has nothing under any key; what counts is that it can be asked.
		if _, err := cachedItem(c, "pcache", 0); err != nil {
			return o, err
		}
		if _, err := cachedItem(c, "ncache", 0); err != nil {
			return o, err
		}
	}
	return o, nil
}

// demand is what cache knows about one answer.
type demand struct {
	ttl  uint32 // that it was stored with, in seconds
	hits int    // without a gap
}

// demandOf asks a cache about the answer to a question.
func demandOf(c *cache.Cache, denial bool, name string, q *dns.Msg, do bool) (demand, bool) {
	where := "pcache"
	if denial {
		where = "ncache"
	}
	item, err := cachedItem(c, where, cacheKey(name, q.Question[0].Qtype, q.Question[0].Qclass, do, q.CheckingDisabled))
	if err != nil || !item.IsValid() || item.IsNil() {
		return demand{}, false
	}
	ttl := item.Elem().FieldByName("origTTL")
	seen := item.Elem().FieldByName("Freq")
	if !ttl.IsValid() || ttl.Kind() != reflect.Uint32 || !seen.IsValid() {
		return demand{}, false
	}
	f, ok := seen.Interface().(*freq.Freq)
	if !ok || f == nil {
		return demand{}, false
	}
	return demand{ttl: uint32(ttl.Uint()), hits: f.Hits()}, true
}

// cachedItem is what one of a cache's two stores has under key: a pointer to a struct of an unexported type.
func cachedItem(c *cache.Cache, store string, key uint64) (reflect.Value, error) {
	f := reflect.ValueOf(c).Elem().FieldByName(store)
	if !f.IsValid() || f.Kind() != reflect.Pointer {
		return reflect.Value{}, fmt.Errorf("cache has no %q", store)
	}
	get := reflect.NewAt(f.Type(), unsafe.Pointer(f.UnsafeAddr())).Elem().MethodByName("Get")
	if !get.IsValid() || get.Type().NumIn() != 1 || get.Type().In(0).Kind() != reflect.Uint64 || get.Type().NumOut() != 2 {
		return reflect.Value{}, fmt.Errorf("%q of cache cannot be asked", store)
	}
	out := get.Type().Out(0)
	if out.Kind() != reflect.Pointer || out.Elem().Kind() != reflect.Struct || get.Type().Out(1).Kind() != reflect.Bool {
		return reflect.Value{}, fmt.Errorf("%q of cache gives no items", store)
	}
	for _, name := range []string{"origTTL", "Freq"} {
		if _, ok := out.Elem().FieldByName(name); !ok {
			return reflect.Value{}, fmt.Errorf("an item of cache has no %q", name)
		}
	}
	item := get.Call([]reflect.Value{reflect.ValueOf(key)})
	if !item[1].Bool() {
		return reflect.Value{}, nil
	}
	return item[0], nil
}

// cacheKey is cache's own key of a question (plugin/cache, hash).
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

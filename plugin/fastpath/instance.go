package fastpath

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/replay"
)

// decorator is Config.UDPDecorateWriterFunc.
type decorator = func(*dnsserver.Server) dns.DecorateWriter

// instance is one running Corefile. What it has learnt goes with it.
type instance struct {
	plugin *Plugin
	pool   *pool

	// Filled by setup and start, before the first server is served.
	caddy  *caddy.Instance
	blocks []*block
	hooks  map[unsafe.Pointer]*block // by identity

	mu     sync.Mutex
	seen   map[*dnsserver.Server]dns.DecorateWriter // servers that were here, and their decorators without us
	shared map[string]*shared                       // by the sites that are served
}

// shared is what the sockets have in common whose servers serve the same sites, and so answer alike.
type shared struct {
	store   *replay.Store
	classes *classes
}

func newInstance(p *Plugin) *instance {
	return &instance{
		plugin: p,
		pool:   newPool(p.options.InFlight, &p.flying),
		hooks:  map[unsafe.Pointer]*block{},
		seen:   map[*dnsserver.Server]dns.DecorateWriter{},
		shared: map[string]*shared{},
	}
}

// identity tells one function value from another. A closure is a pointer to what it closes over, and each has
// its own; functions cannot be compared otherwise.
func identity(f decorator) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&f)) }

func (in *instance) add(b *block, hook decorator) {
	in.blocks = append(in.blocks, b)
	in.hooks[identity(hook)] = b
}

// start runs when all chains are compiled and no socket is open yet. The instance that is being started is the
// last of caddy's list, and starts do not overlap; later the list could not be read without a race.
func (in *instance) start() error {
	all := caddy.Instances()
	in.caddy = all[len(all)-1]
	for _, b := range in.blocks {
		b.judge(in.plugin)
		if !b.on {
			in.plugin.log.Infof("%s: cache hits of this block are answered by the chain: %s", b.where, b.why)
		}
	}
	return nil
}

// shutdown forgets which servers CoreDNS served itself.
func (in *instance) shutdown() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for s := range in.seen {
		in.plugin.notStock(s)
	}
	return nil
}

// adopt is called for each server that is about to serve a socket, with a block of ours as the last one that
// has something to say about it. It serves the server with a socket of ours and does not return, or leaves
// it to CoreDNS with the decorator that would have been in force without us.
func (in *instance) adopt(s *dnsserver.Server) dns.DecorateWriter {
	in.mu.Lock()
	previous, again := in.seen[s]
	in.mu.Unlock()
	if again { // it serves our socket now
		return previous
	}
	sites, err := sitesOf(s)
	if f := in.previous(sites); f != nil {
		previous = f(s)
	}
	in.mu.Lock()
	in.seen[s] = previous
	in.mu.Unlock()
	if err != nil {
		in.leave(s, why{reason: "unknown_server", text: err.Error(), warn: true})
		return previous
	}
	if w := objection(sites); w.reason != "" {
		in.leave(s, w)
		return previous
	}
	udp, err := in.plugin.find(in.caddy, s)
	if err != nil {
		in.leave(s, why{reason: "no_socket", text: err.Error(), warn: true})
		return previous
	}
	stock, err := stockOf(s)
	if err != nil {
		in.leave(s, why{reason: "unknown_server", text: err.Error(), warn: true})
		return previous
	}
	sock, err := newSocket(in, s, stock, udp, in.sharedBy(sites), previous)
	if err != nil {
		in.leave(s, why{reason: "socket_options", text: err.Error(), warn: true})
		return previous
	}
	in.plugin.join(sock)
	if err := s.ServePacket(sock); err != nil {
		in.plugin.log.Errorf("%s: %v", s.Address(), err)
	}
	// The caller would serve the same socket once more, which is closed by now.
	runtime.Goexit()
	return nil
}

// started runs when all servers are being served. One that has a block of ours and does not call us has another
// block, without the directive, which comes later and decorates its writers: that one's word counts, and the server is
// CoreDNS's.
func (in *instance) started(c *caddy.Instance) {
	for _, listener := range c.Servers() {
		server, err := field[caddy.Server](&listener, "server")
		if err != nil {
			return // its sockets were not found either, and that was said
		}
		s, ok := (*server).(*dnsserver.Server)
		if !ok {
			continue // of another transport
		}
		decorate, err := field[decorator](s, "udpDecorateWriterFunc")
		if err != nil || *decorate == nil || in.hooks[identity(*decorate)] != nil {
			continue
		}
		sites, err := sitesOf(s)
		if err != nil || !in.has(sites) {
			continue
		}
		w := objection(sites)
		if w.reason == "" {
			w = why{reason: "decorator", text: "a block without fastpath that comes after those with it decorates its replies, as shed does; with fastpath there too it would be ours"}
		}
		in.mu.Lock()
		in.seen[s] = nil
		in.mu.Unlock()
		in.leave(s, w)
	}
}

// has reports whether one of the sites is of a block with the directive.
func (in *instance) has(sites []*dnsserver.Config) bool {
	for _, site := range sites {
		if f := site.UDPDecorateWriterFunc; f != nil && in.hooks[identity(f)] != nil {
			return true
		}
	}
	return false
}

// previous is the decorator that would be in force for the sites without us. Of several the last one of the
// Corefile counts, as far as the order is known.
func (in *instance) previous(sites []*dnsserver.Config) decorator {
	var ours *block
	var theirs decorator
	for _, site := range sites {
		f := site.UDPDecorateWriterFunc
		if f == nil {
			continue
		}
		b := in.hooks[identity(f)]
		switch {
		case b == nil:
			theirs = f
		case b.decorate != nil && (ours == nil || ours.order < b.order):
			ours = b
		}
	}
	if ours != nil {
		return ours.decorate
	}
	return theirs
}

// why a server is not adopted.
type why struct {
	reason string // for the metric
	text   string
	warn   bool // it is not the Corefile's doing
}

// objection is why a server with these sites must not be adopted. One whose blocks cannot be answered from memory gains
// from batches and warm workers all the same.
func objection(sites []*dnsserver.Config) why {
	for _, site := range sites {
		if site.ViewName != "" || len(site.FilterFuncs) > 0 {
			return why{reason: "view", text: "one of its blocks has a view"}
		}
	}
	return why{}
}

// leave has CoreDNS serve s. What is our failure is said once, and not for each socket.
func (in *instance) leave(s *dnsserver.Server, w why) {
	in.plugin.isStock(s, w)
	switch {
	case !w.warn:
		in.plugin.log.Infof("%s: CoreDNS serves the socket itself: %s", s.Address(), w.text)
	case in.plugin.warned.CompareAndSwap(false, true):
		in.plugin.log.Warningf("%s: the socket cannot be adopted, CoreDNS serves it itself, at its own speed: %s", s.Address(), w.text)
	}
}

// sharedBy returns what servers with the same sites have in common. It is made with the first of them.
func (in *instance) sharedBy(sites []*dnsserver.Config) *shared {
	slices.SortFunc(sites, func(a, b *dnsserver.Config) int {
		return cmp.Compare(uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(b)))
	})
	var key strings.Builder
	entries := 0
	for _, site := range sites {
		fmt.Fprintf(&key, "%p ", site)
		if o, ok := site.Handler("cache").(*observed); ok && o.block.on {
			entries = max(entries, o.block.entries)
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	sh := in.shared[key.String()]
	if sh == nil {
		sh = &shared{store: replay.New(entries, int64(entries)*entryBytes), classes: newClasses()}
		in.shared[key.String()] = sh
	}
	return sh
}

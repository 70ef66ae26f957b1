// Package fastpath is the Corefile's word for answering cache hits at the socket.
//
//	fastpath [ENTRIES|off]
//
// CoreDNS spends most of a hit's time around the cache: on a goroutine a packet, on parsing, on packing.
// This package adopts the UDP socket of CoreDNS's own server, reads it in batches (internal/udpbatch) and
// answers a plain query from a copy of what the chain said to the very same query before
// (internal/replay). Everything else goes on to the chain. The cache stays the authority:
//
//   - Only replies that `cache` gave from its memory are copied. A handler of ours around it says so
//     (observed.go), so that what stands behind cache cannot matter.
//   - What stands before cache has to be known to depend on nothing but the query (gate.go). A block with
//     acl, log, tsig and the like is not copied from, and a log line says which handler it was.
//   - A copy lives no longer than its TTL, and less where cache prefetches, which is told what was answered
//     until then (demand.go). A reload begins with nothing.
//   - Hits are counted as the chain would have counted them (count.go).
//
// # The way of a query
//
// dnsserver calls Config.UDPDecorateWriterFunc when a server begins to serve a socket. The hook looks that
// socket up, and has the server serve ours in its place, which is a net.PacketConn (socket.go). Its ReadFrom
// answers hits, gives all else to workers of its own, whose stacks are warm and whose number is bounded (worker.go),
// and returns at the end only. What is unusual, as queries with a signature, is admitted, refused or verified there by the
// code of CoreDNS's server (unusual.go). Where the socket is not found, CoreDNS serves it as ever (adopt.go).
package fastpath

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/replay"
)

// directive is the word in the Corefile.
const directive = "fastpath"

// Recorder takes every query that the fast path answers. *observe.Queries is one.
type Recorder interface {
	// RecordAll is to be quick, safe for concurrent use, and to keep nothing of list.
	RecordAll(list []observe.Query)
}

// Options are what a Plugin needs from the program.
type Options struct {
	// Off leaves all queries to CoreDNS. The directive is read and checked all the same.
	Off bool
	// Queries takes every query that the fast path answers; nil: none.
	Queries Recorder
	// Also is called with each block that has the directive, switched off or not; nil: nothing is. A start with -localip
	// adds one word to a block, and this is how another directive comes with it.
	Also func(*caddy.Controller) error
	// InFlight is how many misses may be in flight at once, over all sockets; 0 stands for 2048.
	InFlight int
}

// Plugin is the directive fastpath of one process.
type Plugin struct {
	options Options
	log     clog.P
	metrics *metrics
	find    func(*caddy.Instance, *dnsserver.Server) (*net.UDPConn, error) // socketOf, but in tests
	now     func() time.Time                                               // time.Now, but in tests
	maxUses int                                                            // replay.MaxUses, but in tests
	flying  atomic.Int64                                                   // misses, of all instances
	warned  atomic.Bool                                                    // that a socket was not found
	lost    losses

	mu      sync.Mutex
	sockets map[*socket]struct{}      // that are being served
	stock   map[*dnsserver.Server]why // servers that CoreDNS serves itself, of instances that are running
	drops   map[uint64]uint32         // what the kernel had dropped, by the sockets' cookies, when it was looked at last
}

// New returns a Plugin.
func New(o Options) *Plugin {
	if o.InFlight == 0 {
		o.InFlight = defaultInFlight
	}
	p := &Plugin{
		options: o,
		log:     clog.NewWithPlugin(directive),
		find:    socketOf,
		now:     time.Now,
		maxUses: replay.MaxUses,
		sockets: map[*socket]struct{}{},
		stock:   map[*dnsserver.Server]why{},
		drops:   map[uint64]uint32{},
	}
	p.metrics = newMetrics(p)
	return p
}

// Register makes the directive known to CoreDNS, which keeps it in a registry of the process: it may be
// called once. The directive has to stand directly behind cache in dnsserver.Directives.
func (p *Plugin) Register() {
	plugin.Register(directive, func(c *caddy.Controller) error {
		if err := p.setup(c); err != nil || p.options.Also == nil {
			return err
		}
		return p.options.Also(c)
	})
	caddy.RegisterEventHook(directive, func(event caddy.EventName, info any) error {
		if started, ok := info.(*caddy.Instance); ok && event == caddy.InstanceStartupEvent {
			if in, ok := started.Storage[instanceKey{}].(*instance); ok {
				in.started(started)
			}
		}
		return nil
	})
}

// Package cache is the Corefile's word for keeping answers.
//
//	cache [TTL] [ZONES...] {
//	    ...
//	}
//
// Syntax and meaning are those of CoreDNS v1.15's plugin of the same name, whose place it takes; doc/cache.md lists the
// properties and what differs on purpose. It is there for two reasons, which doc/design/0007-cache.md measures:
//
//   - CoreDNS's cache adds up the lengths of its 512 shards whenever it stores an answer, which is a sixth of the
//     CPU that a miss takes. Here the gauge is reckoned when somebody looks at it.
//   - CoreDNS's cache keeps an answer as a tree of records. Here it is kept as it is sent (entry.go): in three fifths of
//     the memory, of which the garbage collector has half as much to follow.
//
// # The way of a query
//
// A Cache looks for an entry (handler.go). A fresh one becomes the reply. Without one the query goes on, with a writer
// that stores what comes back (writer.go) if it is fit to be kept (kind.go). A stale one is given while it is
// refreshed, or after that has failed, and a popular one is refreshed before its time (refresh.go).
package cache

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
)

// directive is the word in the Corefile.
const directive = "cache"

var log = clog.NewWithPlugin(directive)

// Options are what a Plugin needs from the program.
type Options struct {
	// Now is the clock; nil: time.Now.
	Now func() time.Time
}

// Plugin is the directive cache of one process. Caches belong to an instance of the server: a reload begins with
// empty ones.
type Plugin struct {
	now        func() time.Time
	metrics    *metrics
	refreshing atomic.Int64

	mu     sync.Mutex
	caches []weak.Pointer[Cache] // for the gauge, in the order of their start
}

// New returns a Plugin.
func New(o Options) *Plugin {
	p := &Plugin{now: o.Now, metrics: newMetrics()}
	if p.now == nil {
		p.now = time.Now
	}
	p.metrics.caches = p.live
	return p
}

// Refreshing is how many refreshes are under way that no client's query waits for, or waits for any more.
func (p *Plugin) Refreshing() int { return int(p.refreshing.Load()) }

// Register makes the directive known to CoreDNS, which keeps it in a registry of the process: it may be called once, in
// a program that does not contain CoreDNS's own plugin cache.
func (p *Plugin) Register() { plugin.Register(directive, p.setup) }

// bypasser is a handler with zones whose data change under its hand (dynupdate): they are never to be answered from
// memory. It is CoreDNS's cache.ZoneBypasser.
type bypasser interface{ CacheBypassZones() []string }

func (p *Plugin) setup(c *caddy.Controller) error {
	config, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	cache := p.newCache(config)
	block := dnsserver.GetConfig(c)
	c.OnStartup(func() error {
		cache.view = block.ViewName
		for _, h := range block.Handlers() {
			if b, ok := h.(bypasser); ok {
				cache.bypass = append(cache.bypass, b.CacheBypassZones()...)
			}
		}
		p.enter(cache)
		return nil
	})
	c.OnShutdown(func() error { p.leave(cache); return nil })
	block.AddPlugin(func(next plugin.Handler) plugin.Handler {
		cache.Next = next
		return cache
	})
	return nil
}

// enter has the cache's entries counted.
func (p *Plugin) enter(c *Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.caches = append(p.caches, weak.Make(c))
}

func (p *Plugin) leave(c *Cache) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.prune(c)
}

// live are the caches of servers that run. One of a reload that failed is never told so: it goes when nobody has it.
func (p *Plugin) live() []*Cache {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.prune(nil)
}

// prune drops gone, and what is not there any more, and returns the rest.
func (p *Plugin) prune(gone *Cache) (rest []*Cache) {
	p.caches = slices.DeleteFunc(p.caches, func(w weak.Pointer[Cache]) bool {
		c := w.Value()
		if c == nil || c == gone {
			return true
		}
		rest = append(rest, c)
		return false
	})
	return rest
}

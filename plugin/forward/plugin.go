// Package forward is the Corefile's word for the way to the upstreams.
//
//	forward FROM TO... {
//	    ...
//	}
//
// Syntax and meaning are those of CoreDNS v1.15's plugin of the same name, whose place it takes;
// doc/forward.md lists the properties and what differs on purpose. The exchange itself is
// internal/upstream's: this package reads stanzas, makes one Group of each, and translates between a
// chain of CoreDNS's handlers and the engine: questions in; answers, rcodes, Extended DNS Errors,
// metadata, dnstap messages and metrics out.
//
// A Plugin belongs to the process, not to an instance of the server: it owns the Registry, and with it
// the connections, round-trip estimates and health of every upstream. An instance opens its groups when
// it starts and lets go of them some time after it was told to stop, so that a reload finds everything
// warm and a query that comes late still finds an open group.
package forward

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/upstream"
)

// directive is the word in the Corefile, and the proxy_name in metrics.
const directive = "forward"

// retireAfter is for how long no query may have come before the groups of an instance that was told to
// stop are closed. At the process's end it is told so before its sockets close: health's lameduck and
// the drain come in between.
const retireAfter = 10 * time.Second

// Options are what a Plugin needs from the program.
type Options struct {
	// Statistics take every exchange, besides the metrics, and list the connections that are open; nil:
	// none. They feed the metrics under coredns_diag_upstream_ as well.
	Statistics *observe.Upstreams
	// Limits bound all upstreams together; zero values stand for the engine's defaults.
	Limits upstream.Limits
}

// Plugin is the directive forward of one process.
type Plugin struct {
	log          clog.P
	registry     *upstream.Registry
	metrics      *metrics
	systemLookup func(context.Context, string) ([]netip.Addr, error)
	retireAfter  time.Duration
	unwatch      func() // ends the statistics' list of connections

	mu       sync.Mutex
	open     map[*forward]generation // groups that are open, and whose they are
	latest   generation
	retiring map[*forward]*time.Timer
}

// generation numbers the instances of the server in the order of their setup.
type generation int

// New returns a Plugin. Nothing is dialled before a question comes.
func New(o Options) *Plugin {
	m := newMetrics(o.Statistics)
	recorder := observe.Recorder(m)
	if o.Statistics != nil {
		recorder = observe.Tee(m, o.Statistics)
	}
	p := &Plugin{
		log:          clog.NewWithPlugin(directive),
		registry:     upstream.NewRegistry(o.Limits, recorder),
		metrics:      m,
		systemLookup: systemLookup,
		retireAfter:  retireAfter,
		unwatch:      func() {},
		open:         map[*forward]generation{},
		retiring:     map[*forward]*time.Timer{},
	}
	if o.Statistics != nil {
		p.unwatch = o.Statistics.WatchConnections(p.registry.Connections)
	}
	return p
}

// Register makes the directive known to CoreDNS, which keeps it in a registry of the process: it may be
// called once, in a program that does not contain CoreDNS's own plugin forward.
func (p *Plugin) Register() { plugin.Register(directive, p.setup) }

// Close closes every group that is open, and returns when their connections are. It is to be called
// when the server has stopped.
func (p *Plugin) Close() {
	defer p.unwatch()
	defer p.registry.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	for f, t := range p.retiring {
		t.Stop()
		delete(p.retiring, f)
	}
	for f := range p.open {
		f.group.Close()
		delete(p.open, f)
	}
}

// forward is one stanza: shared by the chains of all zones of its block.
type forward struct {
	plugin *Plugin
	config *Config
	group  *upstream.Group // set by start
	taps   taps            // set by start
	used   latch           // since the last look of retire
}

type generationKey struct{}

// generationOf is the number of the instance that c sets up. A restart that fails leaves the groups of
// the new instance open and tells only the old one: that closes them.
func (p *Plugin) generationOf(c *caddy.Controller) generation {
	if g, ok := c.Get(generationKey{}).(generation); ok {
		return g
	}
	p.mu.Lock()
	p.latest++
	g := p.latest
	p.mu.Unlock()
	c.Set(generationKey{}, g)
	c.OnRestartFailed(func() error {
		p.closeNewerThan(g)
		return nil
	})
	return g
}

func (p *Plugin) closeNewerThan(g generation) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for f, of := range p.open {
		if of > g {
			f.group.Close()
			delete(p.open, f)
		}
	}
}

// hook ties one stanza to the chain of its block and to the life of the instance. next is the stanza
// below it in the same block, if any: that is where next and next_on_nodata lead.
func (p *Plugin) hook(c *caddy.Controller, f *forward) {
	block, g := dnsserver.GetConfig(c), p.generationOf(c)
	block.AddPlugin(func(next plugin.Handler) plugin.Handler { return &handler{forward: f, next: next} })
	c.OnStartup(func() error { return p.start(f, g, block) })
	c.OnShutdown(func() error { p.retire(f); return nil })
}

// start opens the stanza's group. The old instance's is still open.
func (p *Plugin) start(f *forward, g generation, block *dnsserver.Config) error {
	f.taps = tapsOf(block)
	group, err := p.registry.Open(f.config.group())
	if err != nil {
		return plugin.Error(directive, errors.Join(errors.New(f.config.Where), err))
	}
	f.group = group
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open[f] = g
	return nil
}

// retire closes the stanza's group when no query has come for a while.
func (p *Plugin) retire(f *forward) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.open[f]; !ok || p.retiring[f] != nil {
		return
	}
	f.used.clear()
	p.retiring[f] = time.AfterFunc(p.retireAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		t := p.retiring[f]
		if t == nil { // Close was first
			return
		}
		if f.used.clear() {
			t.Reset(p.retireAfter)
			return
		}
		delete(p.retiring, f)
		delete(p.open, f)
		f.group.Close()
	})
}

package fastpath

import (
	"strings"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/cache"
	coremetrics "github.com/coredns/coredns/plugin/metrics"
	"github.com/miekg/dns"
)

// block is a server block with the directive.
type block struct {
	config
	site     *dnsserver.Config // of its first zone; the others have the same plugins
	order    int               // among the blocks of the Corefile
	decorate func(*dnsserver.Server) dns.DecorateWriter

	// Filled while the chains are compiled.
	before []plugin.Handler // those before cache, once for each chain
	cache  *cache.Cache

	// Set by judge, before the first query.
	on      bool
	why     string // it is not
	rotate  bool   // loadbalance shuffles addresses
	options cacheOptions
	items   *items               // of cache; nil where they need not be read, or cannot be
	metrics *coremetrics.Metrics // of the directive prometheus; nil without
	zones   string               // what cache's metrics say of its zones
}

// surround has the plugins of a block, the last of which is cache if the block has it, tell b which handlers
// they make, and puts our handlers around cache.
func (b *block) surround(plugins []plugin.Plugin) {
	for i, build := range plugins {
		if i < len(plugins)-1 {
			plugins[i] = func(next plugin.Handler) plugin.Handler {
				h := build(next)
				b.before = append(b.before, h)
				return h
			}
			continue
		}
		plugins[i] = func(next plugin.Handler) plugin.Handler {
			marked := next
			if next != nil {
				marked = behind{next: next}
			}
			h := build(marked)
			c, ok := h.(*cache.Cache)
			if !ok {
				b.before = append(b.before, h)
				return build(next)
			}
			b.cache = c
			return &observed{Cache: c, block: b}
		}
	}
}

// judge decides whether the block's hits may be replayed. All chains are compiled and every plugin has
// read its options.
func (b *block) judge(p *Plugin) {
	if b.why = b.objection(p.itemsOf); b.why == "" && p.metrics.coreErr != nil {
		b.why = p.metrics.coreErr.Error()
	}
	if b.on = b.why == ""; !b.on {
		return
	}
	b.metrics, _ = b.site.Handler("prometheus").(*coremetrics.Metrics)
	b.zones = strings.Join(b.cache.Zones, ",")
}

// objection is why the block's hits may not be replayed; empty where they may.
func (b *block) objection(itemsOf func(*cache.Cache) (*items, error)) string {
	if b.cache == nil {
		return "it has no cache"
	}
	if b.site.ViewName != "" || len(b.site.FilterFuncs) > 0 {
		return "who is answered depends on a view"
	}
	for _, h := range b.before {
		if why := b.admit(h); why != "" {
			return why
		}
	}
	options, err := readCacheOptions(b.cache)
	if err != nil {
		return "the options of its cache cannot be read: " + err.Error()
	}
	if options.keepTTL {
		return "its cache has keepttl, so that a TTL is not the time that is left"
	}
	b.options = options
	if options.prefetch > 0 || options.staleTTL > 0 {
		items, err := itemsOf(b.cache)
		if err != nil && options.prefetch > 0 {
			return "what its cache knows of an answer cannot be read: " + err.Error()
		}
		b.items = items
	}
	return ""
}

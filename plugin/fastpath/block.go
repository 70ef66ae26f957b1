package fastpath

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	coremetrics "github.com/coredns/coredns/plugin/metrics"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// block is a server block with the directive.
type block struct {
	config
	site     *dnsserver.Config // of its first zone; the others have the same plugins
	order    int               // among the blocks of the Corefile
	decorate func(*dnsserver.Server) dns.DecorateWriter

	// Filled while the chains are compiled.
	before []plugin.Handler // those before cache, once for each chain
	cache  cached

	// Set by judge, before the first query.
	on      bool
	why     string               // it is not
	rotate  bool                 // loadbalance shuffles addresses
	options answers.Options      // of cache
	metrics *coremetrics.Metrics // of the directive prometheus; nil without
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
			c, ok := h.(cached)
			if !ok {
				b.before = append(b.before, h)
				return build(next)
			}
			b.cache = c
			return &observed{cached: c, block: b}
		}
	}
}

// judge decides whether the block's hits may be replayed. All chains are compiled and every plugin has
// read its options.
func (b *block) judge(p *Plugin) {
	if b.why = b.objection(); b.why == "" && p.metrics.coreErr != nil {
		b.why = p.metrics.coreErr.Error()
	}
	if b.on = b.why == ""; !b.on {
		return
	}
	b.metrics, _ = b.site.Handler("prometheus").(*coremetrics.Metrics)
}

// objection is why the block's hits may not be replayed; empty where they may.
func (b *block) objection() string {
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
	b.options = b.cache.Options()
	if b.options.KeepTTL {
		return "its cache has keepttl, so that a TTL is not the time that is left"
	}
	return ""
}

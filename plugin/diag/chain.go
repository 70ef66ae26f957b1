package diag

import (
	"context"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/observe"
)

// surround puts the handler in front of a block's chain, and markers around its cache. The plugins of all other
// directives are in the block by then. A block without plugins answers nothing and stays so.
//
// The markers are not handlers of the block: CoreDNS, and plugins that look for a handler by name, find the cache
// itself. Each marker has the name of the handler after it, which trackers of writers see.
func surround(p *Plugin, block *dnsserver.Config) {
	if len(block.Plugin) == 0 {
		return
	}
	for i, build := range block.Plugin {
		block.Plugin[i] = func(next plugin.Handler) plugin.Handler {
			h := build(markBefore(next))
			if isCache(h) && next != nil {
				h = build(afterCache{next})
			}
			return h
		}
	}
	block.Plugin = append([]plugin.Plugin{func(next plugin.Handler) plugin.Handler {
		return &handler{queries: p.options.Queries, next: markBefore(next)}
	}}, block.Plugin...)
}

func isCache(h plugin.Handler) bool { return h != nil && h.Name() == "cache" }

func markBefore(next plugin.Handler) plugin.Handler {
	if !isCache(next) {
		return next
	}
	return &beforeCache{next: next}
}

// beforeCache stands directly before a cache, which reports to it the answers from its memory.
type beforeCache struct{ next plugin.Handler }

// Name implements plugin.Handler.
func (b *beforeCache) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b *beforeCache) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	rec := recordOf(ctx)
	if rec == nil || rec.came { // a further look-up by a handler that combines several answers
		return b.next.ServeDNS(ctx, w, r)
	}
	rec.came = true
	rec.cacheWriter = cacheWriter{w, rec}
	return b.next.ServeDNS(ctx, &rec.cacheWriter, r)
}

// cacheWriter is the writer that a cache is given. It implements answers.Told.
type cacheWriter struct {
	dns.ResponseWriter
	rec *record
}

// FromMemory implements answers.Told.
func (w *cacheWriter) FromMemory(stale bool) { w.rec.fromMemory(stale) }

var _ answers.Told = (*cacheWriter)(nil)

// afterCache stands directly after a cache. A prefetch passes it too, in a goroutine of its own, with the context of
// the hit that started it and a writer without a client.
type afterCache struct{ next plugin.Handler }

// Name implements plugin.Handler.
func (b afterCache) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b afterCache) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if rec := recordOf(ctx); rec != nil && w.RemoteAddr() != rec.remote {
		// The client did not wait for the exchanges of a refresh.
		ctx = nested{observe.WithoutTrace(ctx)}
	}
	return b.next.ServeDNS(ctx, w, r)
}

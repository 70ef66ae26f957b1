package diag

import (
	"context"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/observe"
)

// surround puts the handler in front of a block's chain, and marks before and behind its cache. The plugins of all
// other directives are in the block by now. A block without plugins answers nothing, and stays so.
//
// The marks are no handlers of the block: CoreDNS, and plugins that look for a handler by its name, find cache
// itself. Each mark has the name of the handler behind it, which is what trackers of writers see.
func surround(p *Plugin, block *dnsserver.Config) {
	if len(block.Plugin) == 0 {
		return
	}
	for i, build := range block.Plugin {
		block.Plugin[i] = func(next plugin.Handler) plugin.Handler {
			h := build(markBefore(next))
			if isCache(h) && next != nil {
				h = build(behind{next})
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
	return &before{next: next}
}

// before stands directly before a cache, which tells it what it gives from its memory.
type before struct{ next plugin.Handler }

// Name implements plugin.Handler.
func (b *before) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b *before) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	rec := recordOf(ctx)
	if rec == nil || rec.came { // a second look-up of a handler that makes its answer of several
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

// behind stands directly behind a cache. A prefetch comes here too, in a goroutine of its own, with the context of the
// hit that began it and a writer that leads to nobody.
type behind struct{ next plugin.Handler }

// Name implements plugin.Handler.
func (b behind) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b behind) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if rec := recordOf(ctx); rec != nil && w.RemoteAddr() != rec.remote {
		// What a refresh exchanges is not what the client waited for.
		ctx = nested{observe.WithoutTrace(ctx)}
	}
	return b.next.ServeDNS(ctx, w, r)
}

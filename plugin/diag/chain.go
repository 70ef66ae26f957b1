package diag

import (
	"context"
	"strings"
	"time"

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
	b := &before{next: next}
	if b.cache, _ = next.(answers.Cache); b.cache != nil {
		b.staleTTL = uint32(b.cache.Options().TTL / time.Second)
	}
	return b
}

// before stands directly before a cache: what is written to it, cache wrote.
type before struct {
	next     plugin.Handler
	cache    answers.Cache // next; nil where it cannot be asked
	staleTTL uint32        // that of stale answers, in seconds
}

// Name implements plugin.Handler.
func (b *before) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b *before) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	rec := recordOf(ctx)
	if rec == nil || rec.came { // a second look-up of a handler that makes its answer of several
		return b.next.ServeDNS(ctx, w, r)
	}
	rec.came = true
	rec.cacheWriter = cacheWriter{ResponseWriter: w, rec: rec, before: b, request: r}
	return b.next.ServeDNS(ctx, &rec.cacheWriter, r)
}

// cacheWriter sees a reply as cache wrote it.
type cacheWriter struct {
	dns.ResponseWriter
	rec     *record
	before  *before
	request *dns.Msg
}

// WriteMsg implements dns.ResponseWriter.
func (w *cacheWriter) WriteMsg(m *dns.Msg) error {
	w.rec.fromCache(m, w.stale)
	return w.ResponseWriter.WriteMsg(m)
}

// behind stands directly behind a cache: a query that comes here was no hit. A prefetch comes here too, in a goroutine
// of its own, with the context of the hit that began it and a writer that leads to nobody.
type behind struct{ next plugin.Handler }

// Name implements plugin.Handler.
func (b behind) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b behind) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	rec := recordOf(ctx)
	switch {
	case rec == nil:
		return b.next.ServeDNS(ctx, w, r)
	case w.RemoteAddr() != rec.remote:
		// What a refresh exchanges is not what the client waited for.
		return b.next.ServeDNS(nested{observe.WithoutTrace(ctx)}, w, r)
	}
	rec.missed.Store(true)
	return b.next.ServeDNS(ctx, &refreshWriter{w, rec}, r)
}

// refreshWriter notes that there is a new answer, so that one which cache gives after that is no stale one. It is the rule of
// cache's verification: NOERROR and NXDOMAIN count (RFC 8767, section 4).
type refreshWriter struct {
	dns.ResponseWriter
	rec *record
}

// WriteMsg implements dns.ResponseWriter.
func (w *refreshWriter) WriteMsg(m *dns.Msg) error {
	if m != nil && useful(m.Rcode) && !m.Truncated {
		w.rec.refreshed.Store(true)
	}
	return w.ResponseWriter.WriteMsg(m)
}

func useful(rcode int) bool { return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError }

// stale tells whether a reply that cache gave from its memory was past its TTL. A fresh answer can have just the TTL of
// stale ones left, as it has for a second where both are 30: then cache is asked what it has.
func (w *cacheWriter) stale(m *dns.Msg) bool {
	b := w.before
	if !expired(m, b.staleTTL) || b.staleTTL == 0 {
		return expired(m, b.staleTTL)
	}
	if len(w.request.Question) != 1 {
		return true
	}
	q, opt, now := &w.request.Question[0], w.request.IsEdns0(), time.Now()
	asked := answers.Question{
		Name: strings.ToLower(q.Name), Type: q.Qtype, Class: q.Qclass, DO: opt != nil && opt.Do(), CD: w.request.CheckingDisabled,
	}
	for _, negative := range []bool{false, true} {
		if a := b.cache.Find(asked, negative); a != nil && a.Left(now) > 0 {
			return false
		}
	}
	return true
}

// expired tells whether a reply that cache gave from its memory has the TTL of stale ones. Cache gives all records of a
// reply the same TTL: what is left of it, which is never 0 where the answer is not stale, or else 0 or the TTL that
// serve_stale was given.
func expired(m *dns.Msg, staleTTL uint32) bool {
	if !useful(m.Rcode) {
		return false
	}
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range section {
			if rr.Header().Rrtype != dns.TypeOPT {
				return rr.Header().Ttl == staleTTL
			}
		}
	}
	return false
}

package fastpath

import (
	"context"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// cached is a cache that can be asked what it has, as plugin/cache can.
type cached interface {
	plugin.Handler
	answers.Cache
}

// observed stands in the place of a block's cache, which it is but for one thing: it tells the exchange that its
// query came to this cache, and has the cache tell it what it gives from its memory.
type observed struct {
	cached
	block *block
}

// ServeDNS implements plugin.Handler. The request has to be the very one that the exchange unpacked: a handler
// that looks a name up for its own purposes hands our context on with a request of its own, and one that
// changes the question makes a copy of it.
func (o *observed) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if x := exchangeOf(ctx); x != nil && r == &x.req {
		x.block = o.block
		x.told = told{w, x}
		w = &x.told
	}
	return o.cached.ServeDNS(ctx, w, r)
}

// told is the writer that a cache is given. It implements answers.Told. Nothing but the cache can say which answers are
// stale: their TTL may be that of a fresh one, and what is found for their question is another answer if a refresh
// ends meanwhile.
type told struct {
	dns.ResponseWriter
	x *exchange
}

// FromMemory implements answers.Told.
func (t *told) FromMemory(stale bool) {
	t.x.fresh = !stale
	if others, ok := t.ResponseWriter.(answers.Told); ok {
		others.FromMemory(stale)
	}
}

var _ answers.Told = (*told)(nil)

// behind stands directly behind a block's cache: a query that comes here was no hit. A prefetch comes here
// too, later and in a goroutine of its own, with the context of the hit that began it.
type behind struct{ next plugin.Handler }

// Name implements plugin.Handler. It is the next one's name, since cache tells the tracers and writers whom it
// calls.
func (b behind) Name() string { return b.next.Name() }

// ServeDNS implements plugin.Handler.
func (b behind) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if x := exchangeOf(ctx); x != nil {
		x.missed.Store(true)
	}
	return b.next.ServeDNS(ctx, w, r)
}

type exchangeKey struct{}

// exchangeOf is the exchange that ctx belongs to; nil for queries that come another way, over TCP for instance.
func exchangeOf(ctx context.Context) *exchange {
	x, _ := ctx.Value(exchangeKey{}).(*exchange)
	return x
}

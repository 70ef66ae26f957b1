package cache

import (
	"context"
	"hash/maphash"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	coremetrics "github.com/coredns/coredns/plugin/metrics"
	"github.com/coredns/coredns/plugin/pkg/cache"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// Cache is the handler of one stanza, shared by the chains of all zones of its block. It implements plugin.Handler and
// answers.Cache.
type Cache struct {
	Next plugin.Handler

	config     Config
	now        func() time.Time
	metrics    *metrics
	refreshing *atomic.Int64 // of all caches
	seed       maphash.Seed
	zones      string // as metrics name them
	stores     [2]*cache.Cache[*entry]

	// Set when the server starts.
	view   string
	bypass []string

	series seriesOf
}

// The stores' indexes.
const (
	positives = iota
	negatives
)

// storeOf is the store that answers are kept in.
func storeOf(negative bool) int {
	if negative {
		return negatives
	}
	return positives
}

func (p *Plugin) newCache(cfg *Config) *Cache {
	return &Cache{
		config:     *cfg,
		now:        p.now,
		metrics:    p.metrics,
		refreshing: &p.refreshing,
		seed:       maphash.MakeSeed(),
		zones:      strings.Join(cfg.Zones, ","),
		stores:     [2]*cache.Cache[*entry]{cache.New[*entry](cfg.Success.Capacity), cache.New[*entry](cfg.Denial.Capacity)},
	}
}

// Name implements plugin.Handler.
func (c *Cache) Name() string { return directive }

// Options implements answers.Cache.
func (c *Cache) Options() answers.Options {
	return answers.Options{
		KeepTTL:  c.config.KeepTTL,
		Prefetch: c.config.Prefetch.Amount, Gap: c.config.Prefetch.Gap, Percentage: c.config.Prefetch.Percentage,
	}
}

// Find implements answers.Cache.
func (c *Cache) Find(q answers.Question, negative bool) *answers.Answer {
	e := c.entry(storeOf(negative), c.key(&q), &q)
	if e == nil {
		return nil
	}
	if good := c.preferred(e, c.now()); good != nil && !negative {
		e = good
	}
	return &e.Answer
}

// Counters implements answers.Cache.
func (c *Cache) Counters(server string, negative bool) (requests, hits answers.Counter) {
	s := c.seriesFor(server)
	return s.requests, s.hits[storeOf(negative)]
}

// key is what an entry is kept under. Two questions may have the same: see entry. The seed keeps others from choosing
// questions that meet in a shard, and so drive one another out.
func (c *Cache) key(q *answers.Question) uint64 { return maphash.Comparable(c.seed, *q) }

// entry is what a store has for a question, fresh or stale.
func (c *Cache) entry(store int, key uint64, q *answers.Question) *entry {
	e, ok := c.stores[store].Get(key)
	if !ok || e.qtype != q.Type || e.qclass != q.Class || e.do != q.DO || e.cd != q.CD || !strings.EqualFold(e.name, q.Name) {
		return nil
	}
	return e
}

// serves tells whether an entry may be given at now, fresh or stale.
func (c *Cache) serves(e *entry, now time.Time) bool {
	left := e.Left(now)
	return left > 0 || c.config.Stale.For > 0 && -left < int64(c.config.Stale.For/time.Second)
}

// find returns the entry that is to be given, and which store has it; nil for none.
func (c *Cache) find(q *answers.Question, now time.Time) (*entry, int) {
	key := c.key(q)
	positive := c.entry(positives, key, q)
	if positive != nil {
		if good := c.preferred(positive, now); good != nil {
			return good, positives
		}
	}
	if positive != nil && !c.serves(positive, now) {
		positive = nil
	}
	denied := c.entry(negatives, key, q)
	switch {
	case denied == nil || !c.serves(denied, now):
		return positive, positives
	case positive != nil && denied.failure():
		// A server failure passes, and the answer from before it is still good.
		return positive, positives
	}
	return denied, negatives
}

// preferred is what is given before a negative answer, where the stanza says so, of a positive entry; nil for nothing.
func (c *Cache) preferred(e *entry, now time.Time) *entry {
	if s := &c.config.Stale; !s.PreferPositive || s.For <= 0 {
		return nil
	}
	if good := e.lastGood(); good != nil && c.serves(good, now) {
		return good
	}
	return nil
}

// failure tells whether e is SERVFAIL. The RCODE is in the last bits of a message's fourth octet (RFC 1035, section 4.1.1).
func (e *entry) failure() bool { return e.message[3]&0xf == dns.RcodeServerFailure }

// ServeDNS implements plugin.Handler.
func (c *Cache) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.Opcode != dns.OpcodeQuery { // an UPDATE looks like a query of its zone
		return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
	}
	q := answers.QuestionOf(r)
	if !plugin.Zones(c.config.Zones).Contains(q.Name) || plugin.Zones(c.bypass).Contains(q.Name) {
		return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, r)
	}
	now := c.now()
	counted := c.seriesFor(coremetrics.WithServer(ctx))
	counted.requests.Inc()
	e, store := c.find(&q, now)
	if e == nil {
		counted.misses.Inc()
		return c.miss(ctx, w, r, &q, counted)
	}
	counted.hits[store].Inc()
	left := e.Left(now)
	switch {
	case left > 0:
		if c.popular(e, now, left) {
			c.refresh(ctx, e, r, &q, now, counted)
		}
	case c.config.Stale.Verify:
		if done, rcode, err := c.verify(ctx, w, r, e, &q, now, counted); done {
			return rcode, err
		}
		counted.stale.Inc()
	default:
		c.refresh(ctx, e, r, &q, now, counted)
		counted.stale.Inc()
	}
	if e.more != nil && e.more.wildcard != "" {
		wildcard := e.more.wildcard
		metadata.SetValueFunc(ctx, wildcardLabel, func() string { return wildcard })
	}
	m, err := e.reply(r, c.ttl(e, left), q.DO || r.AuthenticatedData)
	if err != nil { // it was packed here, so that this is a bug
		log.Errorf("An answer for %q that was kept cannot be read: %v", q.Name, err)
		return c.miss(ctx, w, r, &q, counted)
	}
	if t, ok := w.(answers.Told); ok {
		t.FromMemory(left <= 0)
	}
	_ = w.WriteMsg(m) // there is nobody to tell
	return dns.RcodeSuccess, nil
}

// wildcardLabel is the metadata that handlers with zones set.
const wildcardLabel = "zone/wildcard"

// ttl is what a reply of e says when so much is left of its TTL.
func (c *Cache) ttl(e *entry, left int64) uint32 {
	switch {
	case left <= 0 && c.config.Stale.TTL > 0:
		return uint32(c.config.Stale.TTL / time.Second)
	case c.config.KeepTTL:
		return e.TTL
	}
	return uint32(max(left, 0))
}

// popular counts a use of e, and tells whether that makes it one that is to be fetched before its TTL is over.
func (c *Cache) popular(e *entry, now time.Time, left int64) bool {
	p := &c.config.Prefetch
	if p.Amount <= 0 {
		return false
	}
	uses := e.Use(p.Gap, now)
	return uses >= p.Amount && left <= int64(math.Ceil(float64(p.Percentage)/100*float64(e.TTL)))
}

// miss has the handlers behind c answer, and keeps what they say.
func (c *Cache) miss(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, q *answers.Question, counted *series) (int, error) {
	k := &keeper{ResponseWriter: w, cache: c, counted: counted, question: *q, ad: r.AuthenticatedData, ctx: ctx}
	req := k.ask(r)
	rcode, err := plugin.NextOrFailure(c.Name(), c.Next, ctx, k, req)
	// A handler may fail without a word, as forward does when nobody answers it: whoever asks again would ask all
	// upstreams again. A client that has gone away is no failure of theirs.
	if err != nil && rcode == dns.RcodeServerFailure && ctx.Err() == nil && !k.wrote && c.config.ServFail > 0 {
		k.store(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)) // of r: a handler may have rewritten req
	}
	return rcode, err
}

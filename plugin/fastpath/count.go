package fastpath

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/answers"
	"localcache.dev/localcache/internal/wire"
)

// classes numbers classes from 1. There are few: zones of prometheus times two RCODEs.
type classes struct {
	mu      sync.Mutex
	numbers map[class]uint32
	all     atomic.Pointer[[]class] // the number less 1 is the index
}

func newClasses() *classes {
	c := &classes{numbers: map[class]uint32{}}
	c.all.Store(new([]class))
	return c
}

// of returns the number of k; 0 where there are too many.
func (c *classes) of(k class) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n, ok := c.numbers[k]; ok {
		return n
	}
	all := *c.all.Load()
	if len(all) == maxClasses {
		return 0
	}
	// Readers see the slice up to their own length.
	all = append(all[:len(all):len(all)], k)
	c.all.Store(&all)
	c.numbers[k] = uint32(len(all))
	return uint32(len(all))
}

// get returns the class of a number that of gave.
func (c *classes) get(number uint32) *class { return &(*c.all.Load())[number-1] }

// counter counts the hits of one socket as the chain would have. It is the reader's.
type counter struct {
	metrics *metrics
	classes *classes
	server  string
	tallies []*tally // by class number
	answers prometheus.Counter
	hits    []hit    // of the batch
	touched []*count // by them
}

// count is a counter and what a batch adds to it, so that it is written once a batch: scrapes and other
// sockets share it.
type count struct {
	answers.Counter
	n int
}

func (c *counter) inc(k *count) {
	if k.n == 0 {
		c.touched = append(c.touched, k)
	}
	k.n++
}

// hit is what is counted of one.
type hit struct {
	tag   uint32
	query uint16 // octets
	kind  uint8  // index into kinds
	ipv6  bool
	do    bool
}

// tally are the series of one class, with their labels filled in.
type tally struct {
	rcode    int
	requests [2][len(kinds)]*count // by family and type; nil where none came yet

	dnssec *count // nil before the first with DO

	series    *observations // nil where the block has no prometheus
	responses count

	cacheRequests count
	cacheHits     count

	class *class
}

// kinds are the types that have a label of their own in requests_total (plugin/metrics/vars, monitorType). The
// first stands for all others.
var kinds = [...]uint16{
	0, dns.TypeAAAA, dns.TypeA, dns.TypeCNAME, dns.TypeDNSKEY, dns.TypeDS, dns.TypeMX, dns.TypeNSEC3, dns.TypeNSEC,
	dns.TypeNS, dns.TypePTR, dns.TypeRRSIG, dns.TypeSOA, dns.TypeSRV, dns.TypeTXT, dns.TypeHTTPS, dns.TypeSVCB,
}

var kindOf = func() (index [dns.TypeHTTPS + 1]uint8) {
	for i, t := range kinds {
		index[t] = uint8(i)
	}
	return index
}()

func kindLabel(kind uint8) string {
	if kind == 0 {
		return "other"
	}
	return dns.Type(kinds[kind]).String()
}

func newCounter(m *metrics, c *classes, server string) counter {
	return counter{metrics: m, classes: c, server: server, answers: m.hits.WithLabelValues(server), hits: make([]hit, 0, batchSize)}
}

// add notes one hit. Nothing is counted before it was sent.
func (c *counter) add(tag uint32, q *wire.Query, size int, ipv6 bool) {
	h := hit{tag: tag, query: uint16(size), ipv6: ipv6, do: q.DO()}
	if t := q.Type(); int(t) < len(kindOf) {
		h.kind = kindOf[t]
	}
	c.hits = append(c.hits, h)
}

// flush counts the hits of the batch, all of which took d.
func (c *counter) flush(d time.Duration) {
	for i := range c.hits {
		h := &c.hits[i]
		t := c.tally(classNumber(h.tag))
		c.inc(&t.cacheRequests)
		c.inc(&t.cacheHits)
		if t.series == nil {
			continue
		}
		if h.do {
			c.inc(t.do(c.server))
		}
		c.inc(t.request(c.server, h))
		c.inc(&t.responses)
	}
	c.observe(d)
	for _, k := range c.touched {
		if k.n == 1 {
			k.Inc()
		} else {
			k.Add(float64(k.n))
		}
		k.n = 0
	}
	c.touched = c.touched[:0]
	c.answers.Add(float64(len(c.hits)))
	c.hits = c.hits[:0]
}

// observe counts the hits of the batch in the histograms. While observations are locked nothing else is done: what makes
// series waits for locks that a scrape may have.
func (c *counter) observe(d time.Duration) {
	var at *observations // locked
	n := uint64(0)
	leave := func() {
		if at != nil {
			at.duration.observe(d.Seconds(), n)
			at.mu.Unlock()
		}
	}
	for i := range c.hits {
		h := &c.hits[i]
		series := c.tallies[classNumber(h.tag)].series
		if series == nil {
			continue
		}
		if series != at {
			leave()
			at, n = series, 0
			at.mu.Lock()
		}
		at.reply.inc(classSize(h.tag))
		at.query.inc(int(h.query))
		n++
	}
	leave()
}

func (c *counter) rcode(tag uint32) int { return c.tally(classNumber(tag)).rcode }

// tally returns the series of a class, made with its first hit: a series that nothing was counted in would
// not be there without us.
func (c *counter) tally(number uint32) *tally {
	if int(number) < len(c.tallies) {
		if t := c.tallies[number]; t != nil {
			return t
		}
	}
	for int(number) >= len(c.tallies) {
		c.tallies = append(c.tallies, nil)
	}
	k := c.classes.get(number)
	requests, hits := k.block.cache.Counters(c.server, k.denial)
	t := &tally{class: k, rcode: k.rcode, cacheRequests: count{Counter: requests}, cacheHits: count{Counter: hits}}
	if m := k.block.metrics; m != nil {
		t.series = c.metrics.histograms.of(c.server, k.zone)
		// Views are not replayed, so that there is no view's name.
		t.responses.Counter = vars.ResponseRcode.WithLabelValues(c.server, k.zone, "", k.rcodeLabel(), m.Next.Name())
	}
	c.tallies[number] = t
	return t
}

func (t *tally) do(server string) *count {
	if t.dnssec == nil {
		t.dnssec = &count{Counter: vars.RequestDo.WithLabelValues(server, t.class.zone, "")}
	}
	return t.dnssec
}

func (t *tally) request(server string, h *hit) *count {
	family, label := 0, "1"
	if h.ipv6 {
		family, label = 1, "2"
	}
	r := t.requests[family][h.kind]
	if r == nil {
		r = &count{Counter: vars.RequestCount.WithLabelValues(server, t.class.zone, "", "udp", label, kindLabel(h.kind))}
		t.requests[family][h.kind] = r
	}
	return r
}

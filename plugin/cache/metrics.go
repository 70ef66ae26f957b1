package cache

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are CoreDNS's, by name, help and labels.
type metrics struct {
	requests, misses, prefetches, drops, stale *prometheus.CounterVec
	hits, evictions                            *prometheus.CounterVec
	entries                                    *prometheus.Desc
	caches                                     func() []*Cache // whose entries are counted

	mu   sync.Mutex
	seen map[[4]string]bool // labels of entries
}

func newMetrics() *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: directive, Name: name, Help: help,
		}, labels)
	}
	return &metrics{
		seen:       map[[4]string]bool{},
		requests:   counter("requests_total", "The count of cache requests.", "server", "zones", "view"),
		hits:       counter("hits_total", "The count of cache hits.", "server", "type", "zones", "view"),
		misses:     counter("misses_total", "The count of cache misses. Deprecated, derive misses from cache hits/requests counters.", "server", "zones", "view"),
		prefetches: counter("prefetch_total", "The number of times the cache has prefetched a cached item.", "server", "zones", "view"),
		drops:      counter("drops_total", "The number responses that are not cached, because the reply is malformed.", "server", "zones", "view"),
		stale:      counter("served_stale_total", "The number of requests served from stale cache entries.", "server", "zones", "view"),
		evictions:  counter("evictions_total", "The count of cache evictions.", "server", "type", "zones", "view"),
		entries: prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, directive, "entries"),
			"The number of elements in the cache.", []string{"server", "type", "zones", "view"}, nil),
	}
}

// RegisterMetrics makes the metrics available to reg.
func (p *Plugin) RegisterMetrics(reg prometheus.Registerer) error {
	for _, c := range p.metrics.vecs() {
		if err := reg.Register(c); err != nil {
			return err
		}
	}
	return reg.Register(gauge{p.metrics})
}

func (m *metrics) vecs() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.requests, m.hits, m.misses, m.prefetches, m.drops, m.stale, m.evictions}
}

// gauge collects the numbers of entries. To add up the shards takes microseconds, so that it is done when somebody looks.
type gauge struct{ *metrics }

// Describe implements prometheus.Collector.
func (g gauge) Describe(ch chan<- *prometheus.Desc) { ch <- g.entries }

// Collect implements prometheus.Collector. While a reload goes on the old and the new cache of a block have the same
// labels: the newer one counts as soon as it was asked. A series that was there once stays, as CoreDNS's do: a cache that
// was not asked yet is empty.
func (g gauge) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	defer g.mu.Unlock()
	lengths := map[[4]string]int{}
	for l := range g.seen {
		lengths[l] = 0
	}
	for _, c := range g.caches() {
		for _, s := range c.series.all() {
			for store, kind := range kinds {
				lengths[[4]string{s.server, kind, c.zones, c.view}] = c.stores[store].Len()
			}
		}
	}
	for l, n := range lengths {
		g.seen[l] = true
		ch <- prometheus.MustNewConstMetric(g.entries, prometheus.GaugeValue, float64(n), l[:]...)
	}
}

// kinds are the stores' names in metrics.
var kinds = [...]string{positives: success, negatives: denial}

// series are what one server's queries are counted in.
type series struct {
	server                                     string
	requests, misses, prefetches, drops, stale prometheus.Counter
	hits, evictions                            [2]prometheus.Counter // by store
}

// seriesOf finds series by server. A block has one server for each address that it is bound to.
type seriesOf struct {
	mu   sync.Mutex
	list atomic.Pointer[[]*series]
}

func (s *seriesOf) all() []*series {
	if list := s.list.Load(); list != nil {
		return *list
	}
	return nil
}

// of are a server's; nil before its first query.
func (s *seriesOf) of(server string) *series {
	for _, one := range s.all() {
		if one.server == server {
			return one
		}
	}
	return nil
}

// seriesFor returns a server's series, made with its first query.
func (c *Cache) seriesFor(server string) *series {
	if s := c.series.of(server); s != nil {
		return s
	}
	c.series.mu.Lock()
	defer c.series.mu.Unlock()
	if s := c.series.of(server); s != nil {
		return s
	}
	m, labels := c.metrics, []string{server, c.zones, c.view}
	s := &series{
		server:     server,
		requests:   m.requests.WithLabelValues(labels...),
		misses:     m.misses.WithLabelValues(labels...),
		prefetches: m.prefetches.WithLabelValues(labels...),
		drops:      m.drops.WithLabelValues(labels...),
		stale:      m.stale.WithLabelValues(labels...),
	}
	for store, kind := range kinds {
		s.hits[store] = m.hits.WithLabelValues(server, kind, c.zones, c.view)
		s.evictions[store] = m.evictions.WithLabelValues(server, kind, c.zones, c.view)
	}
	list := append(slices.Clip(c.series.all()), s)
	c.series.list.Store(&list)
	return s
}

package forward

import (
	"strconv"
	"sync/atomic"

	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/observe"
)

// metrics are CoreDNS's own, by name and label, filled from the engine's reports, and those of the
// statistics, which are read when they are scraped. It is an observe.Recorder.
type metrics struct {
	statistics *observe.Upstreams // may be nil

	broken  prometheus.Counter
	rejects prometheus.Counter

	duration      *prometheus.HistogramVec
	probeFailures *prometheus.CounterVec
	reused        *prometheus.CounterVec
	opened        *prometheus.CounterVec
}

func newMetrics(statistics *observe.Upstreams) *metrics {
	counter := func(subsystem, name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: plugin.Namespace, Subsystem: subsystem, Name: name, Help: help}
	}
	proto := []string{"proxy_name", "to", "proto"}
	return &metrics{
		statistics: statistics,
		broken: prometheus.NewCounter(counter("forward", "healthcheck_broken_total",
			"Counter of questions that came while every upstream was down.")),
		rejects: prometheus.NewCounter(counter("forward", "max_concurrent_rejects_total",
			"Counter of questions refused because as many as are allowed were in flight.")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: plugin.Namespace, Subsystem: "proxy", Name: "request_duration_seconds",
			Help:                        "Histogram of the time of each exchange that brought an answer.",
			Buckets:                     plugin.TimeBuckets,
			NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor,
		}, []string{"proxy_name", "to", "rcode"}),
		probeFailures: prometheus.NewCounterVec(counter("proxy", "healthcheck_failures_total",
			"Counter of health checks without an answer."), []string{"proxy_name", "to"}),
		reused: prometheus.NewCounterVec(counter("proxy", "conn_cache_hits_total",
			"Counter of exchanges over a connection that was open."), proto),
		opened: prometheus.NewCounterVec(counter("proxy", "conn_cache_misses_total",
			"Counter of exchanges that had to open a connection."), proto),
	}
}

// RegisterMetrics puts the metrics on a registry, such as the one that CoreDNS's prometheus directive
// serves. It fails where something else has put a metric of the same name there: CoreDNS's own plugin
// forward does, just by being linked.
func (p *Plugin) RegisterMetrics(r prometheus.Registerer) error { return r.Register(p.metrics) }

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range m.collectors() {
		c.Describe(ch)
	}
	if m.statistics != nil {
		ch <- descExchanges
		ch <- descExchangeDuration
		ch <- descDrops
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.collectors() {
		c.Collect(ch)
	}
	if m.statistics != nil {
		for _, s := range m.statistics.Snapshot() {
			collectSnapshot(ch, &s)
		}
	}
}

func (m *metrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.broken, m.rejects, m.duration, m.probeFailures, m.reused, m.opened}
}

// Sink implements observe.Recorder.
func (m *metrics) Sink(to string, proto observe.Proto) observe.Sink {
	label := proto.String()
	if proto == observe.TLS {
		label = "tcp-tls" // CoreDNS's word
	}
	return &sink{
		metrics:       m,
		to:            to,
		probeFailures: m.probeFailures.WithLabelValues(directive, to),
		reused:        m.reused.WithLabelValues(directive, to, label),
		opened:        m.opened.WithLabelValues(directive, to, label),
	}
}

// sink keeps the series of one upstream at hand. A series per rcode comes about with its first answer.
type sink struct {
	metrics       *metrics
	to            string
	probeFailures prometheus.Counter
	reused        prometheus.Counter
	opened        prometheus.Counter
	durations     [16]atomic.Pointer[prometheus.Observer] // by rcode; those above are rare
}

// Begin implements observe.Sink.
func (*sink) Begin() {}

// Drop implements observe.Sink.
func (*sink) Drop(observe.Drop) {}

// Release implements observe.Sink. The series stay, as a counter has to.
func (*sink) Release() {}

// End implements observe.Sink.
func (s *sink) End(e *observe.Exchange) {
	if e.Capped {
		return
	}
	if e.Probe {
		if !e.Outcome.Answer() {
			s.probeFailures.Inc()
		}
		return
	}
	if e.Reused {
		s.reused.Inc()
	} else {
		s.opened.Inc()
	}
	if e.Outcome.Answer() {
		s.durationOf(e.Rcode).Observe(e.Duration.Seconds())
	}
}

func (s *sink) durationOf(rcode int) prometheus.Observer {
	if rcode < 0 || rcode >= len(s.durations) {
		return s.metrics.duration.WithLabelValues(directive, s.to, rcodeName(rcode))
	}
	o := s.durations[rcode].Load()
	if o == nil {
		made := s.metrics.duration.WithLabelValues(directive, s.to, rcodeName(rcode))
		o = &made
		s.durations[rcode].Store(o)
	}
	return *o
}

func rcodeName(rcode int) string {
	if name, ok := dns.RcodeToString[rcode]; ok {
		return name
	}
	return strconv.Itoa(rcode)
}

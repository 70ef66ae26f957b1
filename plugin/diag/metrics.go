package diag

import (
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/observe"
)

var (
	descRetransmits = prometheus.NewDesc("coredns_diag_client_retransmits_total",
		"Counter of queries that a client repeated because no reply came in time, by its resolver and the cause.", []string{"resolver", "cause"}, nil)
	descSuspected = prometheus.NewDesc("coredns_diag_client_retransmits_suspected_total",
		"Counter of questions that came again and may have been a retransmit or something else, by cause.", []string{"cause"}, nil)
	descDropped = prometheus.NewDesc("coredns_diag_events_dropped_total",
		"Counter of what the statistics had no room for, by reason.", []string{"reason"}, nil)
	descClients = prometheus.NewDesc("coredns_diag_clients",
		"Clients that have statistics of their own.", nil, nil)
	descEvictions = prometheus.NewDesc("coredns_diag_client_evictions_total",
		"Counter of silent clients whose statistics went into those of all others, to make room.", nil, nil)
	descInFlight = prometheus.NewDesc("coredns_diag_queries_in_flight",
		"Queries in the chain of handlers.", nil, nil)
	descInsertFailed = prometheus.NewDesc("coredns_diag_conntrack_insert_failed_total",
		"Counter of new connections of the node that the connection tracker dropped in a race for their entry.", nil, nil)
	descRequests = prometheus.NewDesc("coredns_diag_api_requests_total",
		"Counter of answers of the diagnostics API, by endpoint and HTTP status.", []string{"path", "code"}, nil)
)

// RegisterMetrics registers the metrics, for example on the registry that CoreDNS's prometheus directive serves.
// Those about exchanges with upstreams, coredns_diag_upstream_, belong to forward.
func (p *Plugin) RegisterMetrics(r prometheus.Registerer) error {
	if p.options.Off {
		return nil
	}
	return r.Register(collector{p, &podSeries{}})
}

// collector reads the statistics when they are scraped.
type collector struct {
	plugin *Plugin
	pods   *podSeries
}

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descRetransmits, descSuspected, descDropped, descClients, descEvictions, descInFlight, descInsertFailed, descRequests, descPodQueries, descPodDuration, descPodRetransmits} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. Every label has few values, which are there from the start, but for the
// answers of the API and the series of pods.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	t := c.plugin.options.Queries.Totals(time.Now())
	counter := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	for r := range t.Retransmits {
		for cause, n := range t.Retransmits[r] {
			counter(descRetransmits, n, observe.Resolver(r).String(), observe.Cause(cause).String())
		}
	}
	for cause, n := range t.Suspected {
		counter(descSuspected, n, observe.Cause(cause).String())
	}
	for l, n := range t.Lost {
		counter(descDropped, n, observe.Loss(l).String())
	}
	counter(descEvictions, t.Evictions)
	for k, n := range c.plugin.server.Requests() {
		counter(descRequests, n, k.Path, strconv.Itoa(k.Code))
	}
	ch <- prometheus.MustNewConstMetric(descClients, prometheus.GaugeValue, float64(t.Clients))
	ch <- prometheus.MustNewConstMetric(descInFlight, prometheus.GaugeValue, float64(t.InFlight))
	if n, err := insertFailed(); err == nil { // otherwise there is no connection tracking here
		counter(descInsertFailed, n)
	}
	c.pods.collect(c.plugin, ch)
}

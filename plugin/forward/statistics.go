package forward

import (
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/observe"
)

// The metrics that CoreDNS lacks: it counts nothing where an upstream is silent.
var (
	descExchanges = prometheus.NewDesc("coredns_diag_upstream_exchanges_total",
		"Counter of exchanges with an upstream by their outcome, failures included, health checks not.",
		[]string{"to", "proto", "outcome"}, nil)
	descExchangeDuration = prometheus.NewDesc("coredns_diag_upstream_exchange_duration_seconds",
		"Histogram of the time of exchanges that brought an answer.",
		[]string{"to", "proto"}, nil)
	descDrops = prometheus.NewDesc("coredns_diag_upstream_drops_total",
		"Counter of packets from an upstream's address that were thrown away: spoofed, late or malformed.",
		[]string{"to", "proto", "reason"}, nil)
)

// collectSnapshot writes one upstream's metrics. Every outcome and reason is there from the start, so
// that a rate over it is never empty.
func collectSnapshot(ch chan<- prometheus.Metric, s *observe.UpstreamSnapshot) {
	to, proto := s.Upstream, s.Proto.String()
	for i, n := range s.Outcomes {
		ch <- prometheus.MustNewConstMetric(descExchanges, prometheus.CounterValue, float64(n), to, proto, observe.Outcome(i).String())
	}
	for i, n := range s.Drops {
		ch <- prometheus.MustNewConstMetric(descDrops, prometheus.CounterValue, float64(n), to, proto, observe.Drop(i).String())
	}
	ch <- prometheus.MustNewConstHistogram(descExchangeDuration, s.Latency.Count(), s.Latency.Sum.Seconds(), cumulate(&s.Latency), to, proto)
}

// cumulate sorts the finer buckets of the statistics into CoreDNS's. One that lies across a bound is
// counted where its middle is: durations within 1/16 of a bound may fall on its wrong side.
func cumulate(b *observe.Buckets) map[float64]uint64 {
	out := make(map[float64]uint64, len(plugin.TimeBuckets))
	i, n := 0, uint64(0)
	for _, bound := range plugin.TimeBuckets {
		for ; i < len(b.Counts); i++ {
			low, high := observe.BucketBounds(i)
			if ((low + high) / 2).Seconds() > bound {
				break
			}
			n += b.Counts[i]
		}
		out[bound] = n
	}
	return out
}

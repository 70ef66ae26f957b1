package api

import (
	"math"
	"slices"

	"localcache.dev/localcache/internal/observe"
)

// add saturates: a large count of one node must not wrap around the sum.
func add(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// addFloat does not become infinite, which JSON cannot say.
func addFloat(a, b float64) float64 { return max(min(a+b, math.MaxFloat64), -math.MaxFloat64) }

// addInt does not overflow.
func addInt(a, b int64) int64 {
	switch {
	case b > 0 && a > math.MaxInt64-b:
		return math.MaxInt64
	case b < 0 && a < math.MinInt64-b:
		return math.MinInt64
	}
	return a + b
}

// addMap adds the counts of from to those of to, which it creates if needed.
func addMap(to *map[string]uint64, from map[string]uint64) {
	if *to == nil && from != nil {
		*to = make(map[string]uint64, len(from))
	}
	for name, n := range from {
		(*to)[name] = add((*to)[name], n)
	}
}

// ratio is the share of part in whole; 0 of nothing.
func ratio(part, whole uint64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// add merges o into l: the counts exactly, and computes the derived values again. bounds are those of both.
func (l *Latency) add(o *Latency, bounds []float64) {
	counts := make([]uint64, max(len(l.Counts), len(o.Counts)))
	copy(counts, l.Counts)
	for i, n := range o.Counts {
		counts[i] = add(counts[i], n)
	}
	*l = Latency{Count: add(l.Count, o.Count), SumSeconds: addFloat(l.SumSeconds, o.SumSeconds), Counts: counts}
	if l.Count > 0 {
		l.MeanSeconds = l.SumSeconds / float64(l.Count)
	}
	l.P50Seconds, l.P90Seconds, l.P99Seconds = l.Quantile(0.5, bounds), l.Quantile(0.9, bounds), l.Quantile(0.99, bounds)
}

// Quantile is observe.Latency.Quantile in seconds. bounds are Metadata.LatencyBoundsSeconds. The last bucket has no
// bound; it is taken to be as wide as the two before it, since there are two an octave.
func (l *Latency) Quantile(q float64, bounds []float64) float64 {
	if len(bounds) == 0 {
		return 0
	}
	total, above := uint64(0), math.Round(l.SumSeconds*1e9) // nanoseconds, as all that follows
	for i, n := range l.Counts {
		if n > 0 {
			low, _ := bucket(i, bounds)
			above -= low * float64(n)
			total = add(total, n)
		}
	}
	rank := observe.Rank(q, total)
	for i, n := range l.Counts {
		if n > 0 && rank <= n {
			low, high := bucket(i, bounds)
			if share := math.Floor(above / float64(n-rank+1)); share >= 0 && share < high-low {
				return (low + share) / 1e9
			}
			return high / 1e9 // the sum does not narrow it, or is not that of the counts
		}
		rank -= n
	}
	return 0
}

// bucket is from where to where bucket i counts, in nanoseconds.
func bucket(i int, bounds []float64) (low, high float64) {
	i = min(i, len(bounds))
	if i > 0 {
		low = bounds[i-1]
	}
	switch {
	case i < len(bounds):
		high = bounds[i]
	case i > 2:
		high = low + low - bounds[i-3]
	default:
		high = low
	}
	nanoseconds := func(seconds float64) float64 { return addFloat(math.Round(seconds*1e9), 0) }
	return nanoseconds(low), nanoseconds(high)
}

// QuantileOf is the quantile of both together: never above that of both of them.
func QuantileOf(a, b *Latency, q float64, bounds []float64) float64 {
	both := *a
	both.add(b, bounds)
	return min(both.Quantile(q, bounds), max(a.Quantile(q, bounds), b.Quantile(q, bounds)))
}

// add merges the traffic of another node or process into t.
func (t *Traffic) add(o *Traffic, bounds []float64) {
	t.Queries, t.Hits = add(t.Queries, o.Queries), add(t.Hits, o.Hits)
	t.QueriesPerSecond = addFloat(t.QueriesPerSecond, o.QueriesPerSecond)
	t.HitRatio = ratio(t.Hits, t.Queries)
	addMap(&t.Sources, o.Sources)
	addMap(&t.Rcodes, o.Rcodes)
	addMap(&t.Suspected, o.Suspected)
	t.RetransmitTotal = add(t.RetransmitTotal, o.RetransmitTotal)
	t.Retransmits = slices.Clone(t.Retransmits)
	for _, r := range o.Retransmits {
		i := slices.IndexFunc(t.Retransmits, func(have Retransmit) bool { return have.Resolver == r.Resolver && have.Cause == r.Cause })
		if i < 0 {
			t.Retransmits = append(t.Retransmits, r)
			continue
		}
		t.Retransmits[i].Count = add(t.Retransmits[i].Count, r.Count)
	}
	t.SearchWaste = float64(t.Rcodes["nxdomain"]) / float64(max(t.Rcodes["noerror"], 1))
	t.Hit.add(&o.Hit, bounds)
	t.Miss.add(&o.Miss, bounds)
	t.UpstreamWaitSeconds = addFloat(t.UpstreamWaitSeconds, o.UpstreamWaitSeconds)
	t.QueuedSeconds = addFloat(t.QueuedSeconds, o.QueuedSeconds)
}

func mergeSummaries(_ *Gather, from []answer[Summary], to *List[Summary]) {
	var sum Summary
	sum.Retransmits = []Retransmit{}
	bounds := to.Metadata.LatencyBoundsSeconds
	for _, a := range from {
		for i := range a.Items {
			s := &a.Items[i]
			sum.add(&s.Traffic, bounds)
			sum.UpstreamWait.add(&s.UpstreamWait, bounds)
			sum.Queued.add(&s.Queued, bounds)
			sum.InFlight = addInt(sum.InFlight, s.InFlight)
			sum.Clients = int(addInt(int64(sum.Clients), int64(s.Clients)))
			sum.UpstreamExchanges = add(sum.UpstreamExchanges, s.UpstreamExchanges)
			sum.UpstreamFailures = add(sum.UpstreamFailures, s.UpstreamFailures)
			addMap(&sum.UpstreamOutcomes, s.UpstreamOutcomes)
			addMap(&sum.Lost, s.Lost)
		}
	}
	to.Items = []Summary{sum}
}

// mergeStatus has one item for each process.
func mergeStatus(_ *Gather, from []answer[Status], to *List[Status]) {
	for _, a := range from {
		for _, s := range a.Items {
			s.Node = a.node
			to.Items = append(to.Items, s)
		}
	}
}

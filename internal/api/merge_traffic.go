package api

import (
	"math"
	"slices"
	"time"
)

// add does not overflow: what one node says is not to make a small number of the large ones of others.
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

// addMap adds the counts of from to those of to, which is made where there is none.
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

// add merges o into l: the counts exactly, and what follows from them anew. bounds are those of both.
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
	l.P50Seconds, l.P90Seconds, l.P99Seconds = l.quantile(0.5, bounds), l.quantile(0.9, bounds), l.quantile(0.99, bounds)
}

// quantile estimates as observe.Latency does: the middle of the bucket. The last bucket has no bound; it is taken
// to be as wide as the two before it, since there are two an octave.
func (l *Latency) quantile(q float64, bounds []float64) float64 {
	total := uint64(0)
	for _, n := range l.Counts {
		total = add(total, n)
	}
	if total == 0 || len(bounds) == 0 {
		return 0
	}
	rank := min(max(uint64(q*float64(total)), 1), total)
	at := 0
	for ; at < len(l.Counts)-1 && rank > l.Counts[at]; at++ {
		rank -= l.Counts[at]
	}
	at = min(at, len(bounds))
	low, high := 0.0, 0.0
	if at > 0 {
		low = bounds[at-1]
	}
	switch {
	case at < len(bounds):
		high = bounds[at]
	case at > 2:
		high = low + low - bounds[at-3]
	default:
		high = low
	}
	middle := addFloat(low, high) / 2
	if math.Abs(middle) > 1e9 {
		return middle
	}
	return time.Duration(math.Round(middle * 1e9)).Seconds()
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

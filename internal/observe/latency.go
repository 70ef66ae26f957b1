package observe

import (
	"math"
	"time"
)

// NumLatencyBuckets is the number of buckets of a Latency: the first for all below 32 µs, the last for
// all from 4.2 s on, and two an octave between.
const NumLatencyBuckets = 36

// latencyFrom is the pair of halves of an octave of Histogram, in fours of its buckets, that Latency's
// first bucket ends with.
const latencyFrom = 5

// Latency is a distribution of durations in coarse buckets: small enough to be kept for each client
// and window. Each bucket is the sum of four neighbours of Buckets. It merges by addition, exactly.
type Latency struct {
	Counts [NumLatencyBuckets]uint64 `json:"counts"`
	Sum    time.Duration             `json:"sumNanoseconds"`
}

// LatencyBucket is the index of the bucket that counts d.
func LatencyBucket(d time.Duration) int {
	return coarse(Bucket(d))
}

// coarse is the bucket of a Latency that bucket i of a Histogram is part of.
func coarse(i int) int { return min(max(i>>2, latencyFrom)-latencyFrom, NumLatencyBuckets-1) }

// LatencyBounds are the durations that bucket i counts: from low up to, and not including, high. The
// last bucket counts all from low on.
func LatencyBounds(i int) (low, high time.Duration) {
	if i > 0 {
		low, _ = BucketBounds((i + latencyFrom) << 2)
	}
	high, _ = BucketBounds((i + latencyFrom + 1) << 2)
	return low, high
}

// Add merges other into l.
func (l *Latency) Add(other *Latency) {
	for i, n := range other.Counts {
		l.Counts[i] += n
	}
	l.Sum += other.Sum
}

// Count is the number of durations.
func (l *Latency) Count() uint64 {
	var n uint64
	for _, c := range l.Counts {
		n += c
	}
	return n
}

// Mean is the average duration; 0 where nothing was counted.
func (l *Latency) Mean() time.Duration {
	if n := l.Count(); n > 0 {
		return l.Sum / time.Duration(n)
	}
	return 0
}

// Quantile returns a duration within which the share q of all durations lies, 0 < q ≤ 1: the smallest certain bound,
// at most the upper bound of the bucket, and close to the true value if there are few; 0 if nothing was counted.
func (l *Latency) Quantile(q float64) time.Duration {
	return quantile(l.Counts[:], l.Sum, q, LatencyBounds)
}

// Rank returns the position of quantile q among total durations in ascending order: the first within which at least
// the share q of all lies (nearest rank). It returns 0 if total is 0.
func Rank(q float64, total uint64) uint64 {
	// 0.07 × 100 is a little more than 7.
	rank := math.Ceil(q * float64(total) * (1 - 1e-12))
	if q >= 1 || rank >= float64(total) {
		return total
	}
	return min(max(uint64(rank), 1), total)
}

// quantile returns an upper bound of the duration of rank Rank(q). The sum narrows the bucket down: the part of it
// above the lower bounds of all buckets is shared by at least the durations of this bucket that are not shorter.
func quantile(counts []uint64, sum time.Duration, q float64, bounds func(i int) (low, high time.Duration)) time.Duration {
	total, above := uint64(0), float64(sum)
	for i, n := range counts {
		if n > 0 {
			low, _ := bounds(i)
			above -= float64(low) * float64(n)
			total += n
		}
	}
	rank := Rank(q, total)
	for i, n := range counts {
		if n > 0 && rank <= n {
			low, high := bounds(i)
			if above < 0 { // the counts are not those of the sum
				return high
			}
			return low + time.Duration(min(above/float64(n-rank+1), float64(high-low)))
		}
		rank -= n
	}
	return 0
}

package observe

import "time"

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

// Quantile estimates the duration below which the share q of all lies, 0 < q ≤ 1, as the middle of its
// bucket, which is within a quarter of the true one; 0 where nothing was counted.
func (l *Latency) Quantile(q float64) time.Duration {
	total := l.Count()
	if total == 0 {
		return 0
	}
	rank := min(max(uint64(q*float64(total)), 1), total)
	for i, c := range l.Counts {
		if rank <= c {
			low, high := LatencyBounds(i)
			return (low + high) / 2
		}
		rank -= c
	}
	return 0
}

package observe

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// NumBuckets is the number of buckets of a Histogram: 8 an octave of microseconds, the last for all
// from 4 hours 30 minutes on.
const NumBuckets = 256

// Histogram counts durations in log-linear buckets: exact below 8 µs, then within 1/8 of the value. It is updated
// without locks and merges by addition. The zero value is ready to use.
type Histogram struct {
	counts [NumBuckets]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
}

// Observe counts d. A negative d counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	h.counts[Bucket(d)].Add(1)
	h.sum.Add(uint64(d))
}

// Snapshot copies the counts. A concurrent Observe may or may not be included.
func (h *Histogram) Snapshot() Buckets {
	var b Buckets
	for i := range h.counts {
		b.Counts[i] = h.counts[i].Load()
	}
	b.Sum = time.Duration(h.sum.Load())
	return b
}

// Bucket is the index of the bucket that counts d.
func Bucket(d time.Duration) int {
	us := uint64(max(d, 0) / time.Microsecond)
	if us < 8 {
		return int(us)
	}
	octave := bits.Len64(us) - 4 // how often the leading four bits are doubled
	return min(8*(octave+1)+int(us>>octave)&7, NumBuckets-1)
}

// BucketBounds are the durations that bucket i counts: from low up to, and not including, high.
func BucketBounds(i int) (low, high time.Duration) {
	lower := func(i int) time.Duration {
		if i < 8 {
			return time.Duration(i) * time.Microsecond
		}
		return time.Duration(8+i%8) << (i/8 - 1) * time.Microsecond
	}
	return lower(i), lower(i + 1)
}

// Buckets is a copy of a Histogram's counts.
type Buckets struct {
	Counts [NumBuckets]uint64
	Sum    time.Duration
}

// Add merges other into b.
func (b *Buckets) Add(other *Buckets) {
	for i, n := range other.Counts {
		b.Counts[i] += n
	}
	b.Sum += other.Sum
}

// Sub subtracts an earlier copy of the same Histogram: the rest happened in between.
func (b *Buckets) Sub(earlier *Buckets) {
	for i, n := range earlier.Counts {
		b.Counts[i] -= n
	}
	b.Sum -= earlier.Sum
}

// Count is the number of durations.
func (b *Buckets) Count() uint64 {
	var n uint64
	for _, c := range b.Counts {
		n += c
	}
	return n
}

// Quantile returns a duration within which the share q of all durations lies, 0 < q ≤ 1; see Latency.Quantile.
func (b *Buckets) Quantile(q float64) time.Duration {
	return quantile(b.Counts[:], b.Sum, q, BucketBounds)
}

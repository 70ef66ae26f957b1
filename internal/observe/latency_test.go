package observe

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestRank: it is the nearest one: the least that has the share q at or below it.
func TestRank(t *testing.T) {
	for _, tt := range []struct {
		q           float64
		total, want uint64
	}{
		{0.99, 6, 6}, {0.5, 6, 3}, {0.5, 5, 3}, {0.9, 10, 9}, {0.99, 100, 99}, {0.99, 101, 100}, {0.5, 1, 1}, {1, 7, 7}, {0.99, 0, 0},
		{0.07, 100, 7}, {0.99, 700, 693}, {0.99, 100_000_000, 99_000_000}, {1, math.MaxUint64, math.MaxUint64},
	} {
		if got := Rank(tt.q, tt.total); got != tt.want {
			t.Errorf("%v of %d is rank %d, want %d", tt.q, tt.total, got, tt.want)
		}
	}
}

// TestQuantileSeesTheSlowOne: one slow among few is the 99th percentile, and not slower than it was.
func TestQuantileSeesTheSlowOne(t *testing.T) {
	var h Histogram
	var l Latency
	for _, d := range []time.Duration{2300 * time.Millisecond, 2 * time.Millisecond, 3 * time.Millisecond, 5 * time.Millisecond, 6 * time.Millisecond, 7 * time.Millisecond} {
		h.Observe(d)
		l.Counts[LatencyBucket(d)]++
		l.Sum += d
	}
	b := h.Snapshot()
	for what, got := range map[string]time.Duration{"fine": b.Quantile(0.99), "coarse": l.Quantile(0.99)} {
		if got < 2300*time.Millisecond || got > 2310*time.Millisecond {
			t.Errorf("%s: p99 is %s, want the slowest, 2.3 s", what, got)
		}
	}
}

// TestQuantileIsAnUpperBound: it is not below the true one, is within its bucket, and does not fall with the share.
func TestQuantileIsAnUpperBound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		all := make([]time.Duration, 1+r.IntN(40))
		var h Histogram
		var l Latency
		for i := range all {
			all[i] = time.Duration(math.Exp(r.Float64()*math.Log(4e9))) + 1
			h.Observe(all[i])
			l.Counts[LatencyBucket(all[i])]++
			l.Sum += all[i]
		}
		slices.Sort(all)
		b := h.Snapshot()
		before, fineBefore := time.Duration(0), time.Duration(0)
		for _, q := range []float64{0.1, 0.5, 0.9, 0.99, 1} {
			exact := all[Rank(q, uint64(len(all)))-1]
			_, high := LatencyBounds(LatencyBucket(exact))
			_, fineHigh := BucketBounds(Bucket(exact))
			got, fine := l.Quantile(q), b.Quantile(q)
			if got < exact || got > high || got < before || fine < exact || fine > fineHigh || fine < fineBefore {
				t.Fatalf("%v of %v: %s and %s, want from %s to %s and %s", q, all, got, fine, exact, high, fineHigh)
			}
			before, fineBefore = got, fine
		}
	}
}

// TestQuantileOfTornCounts: counters are not read at one moment. A sum that is too small does not lead out of the bucket.
func TestQuantileOfTornCounts(t *testing.T) {
	var l Latency
	l.Counts[10], l.Counts[20] = 5, 1
	if _, high := LatencyBounds(20); l.Quantile(1) != high {
		t.Errorf("got %s, want %s", l.Quantile(1), high)
	}
}

package load

import (
	"math/bits"
	"time"
)

// subBits divides each power of two into 32 parts, so that a quantile is accurate to 3 %.
const subBits = 5

// Histogram counts durations in fixed space.
type Histogram struct {
	counts [(64 - subBits + 1) << subBits]uint32
	n      uint64
}

// Add counts a duration. A negative one counts as 0.
func (h *Histogram) Add(d time.Duration) {
	h.counts[bucket(uint64(max(d, 0)))]++
	h.n++
}

// Count is the number of durations.
func (h *Histogram) Count() uint64 { return h.n }

// Quantile returns the duration below which the share q of all durations lies; 0 if there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	want := min(uint64(q*float64(h.n)), h.n-1)
	var sum uint64
	for i, c := range h.counts {
		if sum += uint64(c); sum > want {
			return middle(i)
		}
	}
	return 0 // not reached: the counts add up to n
}

// bucket is linear below 2^subBits and has 2^subBits parts for each power of two above.
func bucket(v uint64) int {
	if v < 1<<subBits {
		return int(v)
	}
	shift := bits.Len64(v) - subBits - 1
	return (shift+1)<<subBits + int(v>>shift)&(1<<subBits-1)
}

// middle is the value in the middle of a bucket.
func middle(i int) time.Duration {
	if i < 1<<subBits {
		return time.Duration(i)
	}
	shift := i>>subBits - 1
	low := uint64(1<<subBits+i&(1<<subBits-1)) << shift
	return time.Duration(low + uint64(1)<<shift>>1)
}

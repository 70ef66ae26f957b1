package load

import "time"

// Pace says when each query of an evenly paced run is due. All times count from the start of the run.
type Pace struct {
	Rate float64 // queries a second, more than 0
}

// Due returns when query k, counted from 0, is due.
func (p Pace) Due(k uint64) time.Duration {
	return time.Duration(float64(k) * float64(time.Second) / p.Rate)
}

// Count returns how many queries are due at a time, including those due at exactly that time.
func (p Pace) Count(at time.Duration) uint64 {
	if at < 0 {
		return 0
	}
	k := uint64(at.Seconds() * p.Rate)
	// Floating point is exact neither way; the answer must agree with Due.
	for k > 0 && p.Due(k-1) > at {
		k--
	}
	for p.Due(k) <= at {
		k++
	}
	return k
}

package upstream

import (
	"sync"
	"time"
)

const (
	// lateInitial is when an attempt is late on a path without samples: enough for a TLS handshake with a resolver 60
	// ms away.
	lateInitial = 250 * time.Millisecond
	// lateFloor keeps scheduling and a busy kube-dns from looking like silence. A client does not
	// notice 30 ms.
	lateFloor = 30 * time.Millisecond
	// lateCeiling leaves room for several further attempts in the budget, however slow the path is.
	lateCeiling = 400 * time.Millisecond
	// baseWindow is the least time for which the minimum round trip is remembered, and half of the longest.
	baseWindow = 10 * time.Second
)

// estimate is the round-trip time of a path, smoothed as in RFC 6298, section 2. Each attempt has its own ID, so that
// no sample is ambiguous (Karn) and late answers count too.
type estimate struct {
	mu     sync.Mutex
	known  bool
	srtt   time.Duration
	rttvar time.Duration
	// The least sample of this window and of the one before.
	least, leastBefore time.Duration
	windowEnd          time.Time
}

func (e *estimate) sample(d time.Duration, now time.Time) {
	d = max(d, time.Microsecond)
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		e.known = true
		e.srtt, e.rttvar = d, d/2
	} else {
		e.rttvar += ((e.srtt - d).Abs() - e.rttvar) / 4
		e.srtt += (d - e.srtt) / 8
	}
	if now.After(e.windowEnd) {
		e.leastBefore, e.least = e.least, d
		e.windowEnd = now.Add(baseWindow)
	}
	e.least = min(e.least, d)
}

// late returns the time after which an attempt deserves another one.
func (e *estimate) late() time.Duration { return min(e.usual(), lateCeiling) }

// usual returns the time within which answers normally arrive: late without the ceiling that the budget sets.
func (e *estimate) usual() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return lateInitial
	}
	return max(e.srtt+4*e.rttvar, lateFloor)
}

// smoothed returns the smoothed round-trip time; 0 if unknown.
func (e *estimate) smoothed() time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.srtt
}

// base returns the minimum round trip of the recent past: the time of an exchange that waits for no other. The
// smoothed time cannot serve to detect waiting, since it includes it.
func (e *estimate) base() (d time.Duration, known bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.known {
		return 0, false
	}
	if e.leastBefore > 0 {
		return min(e.least, e.leastBefore), true
	}
	return e.least, true
}

// inherit takes over the samples of another path.
func (e *estimate) inherit(other *estimate) {
	other.mu.Lock()
	known, srtt, rttvar, least, end := other.known, other.srtt, other.rttvar, other.least, other.windowEnd
	other.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.known, e.srtt, e.rttvar, e.least, e.windowEnd = known, srtt, rttvar, least, end
}

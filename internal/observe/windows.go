package observe

import (
	"sync"
	"sync/atomic"
	"time"
)

// Window is a span of time that statistics are kept for.
type Window uint8

// The windows. Their order is part of the API.
const (
	Last10s Window = iota
	Last1m
	Last5m
	Last1h
	SinceStart

	// NumWindows is the number of windows, for arrays that are indexed by them.
	NumWindows = int(SinceStart) + 1

	rolling = int(Last1h) + 1 // windows that move
)

var windowNames = [NumWindows]string{"10s", "1m", "5m", "1h", "start"}

// String is the window's name in the API.
func (w Window) String() string { return nameOf(windowNames[:], "window", uint8(w)) }

// MarshalText writes the name, for JSON.
func (w Window) MarshalText() ([]byte, error) { return []byte(w.String()), nil }

// marksPerWindow is the number of marks of a window. A rolling window is the difference between the current counters
// and a copy of them, a mark, from its beginning. Marks are made on a grid: a window of two steps needs three marks,
// and covers two steps and the elapsed part of the current one. Coverage is that length, for rates. Finer steps would
// cost a copy of all counters for each client and step.
const marksPerWindow = 3

// step is the distance of two marks. All are multiples of the first.
var step = [rolling]int64{
	int64(5 * time.Second), int64(30 * time.Second), int64(150 * time.Second), int64(30 * time.Minute),
}

// began is the time at which window w began that is looked at at time t.
func (w Window) began(t int64) int64 { return (t/step[w] - (marksPerWindow - 1)) * step[w] }

// coverage returns the length of each window at time t.
func coverage(started, t int64) (d [NumWindows]time.Duration) {
	for w := range d {
		began := started
		if w < rolling {
			began = max(began, Window(w).began(t))
		}
		d[w] = time.Duration(max(t-began, 0))
	}
	return d
}

// marks are copies of counters, T, at the grid points that the windows need. The zero value belongs
// to counters that were zero until start was called.
type marks[T any] struct {
	next  int64 // when the next mark is due
	point [rolling]int64
	at    [rolling][marksPerWindow]T
}

// start sets the time from which the counters count.
func (m *marks[T]) start(t int64) {
	for w := range step {
		m.point[w] = t / step[w]
	}
	m.next = (m.point[0] + 1) * step[0]
}

// due reports whether advance has something to do.
func (m *marks[T]) due(t int64) bool { return t >= m.next }

// advance makes the marks that are due at t. present are the counters at the grid points that have passed, because
// nothing was counted in between.
func (m *marks[T]) advance(t int64, present *T) {
	for w := range step {
		point := t / step[w]
		for p := max(m.point[w]+1, point-marksPerWindow+1); p <= point; p++ {
			m.at[w][p%marksPerWindow] = *present
		}
		m.point[w] = max(m.point[w], point)
	}
	m.next = (m.point[0] + 1) * step[0]
}

// since is the mark at the beginning of window w. advance was called before.
func (m *marks[T]) since(w Window) *T {
	return &m.at[w][(m.point[w]+1)%marksPerWindow] // the oldest
}

// timeline turns timestamps of a wall clock, which may be set, into a time that never runs backwards. A stamp
// slightly earlier than another belongs to a query that was overtaken; one that is earlier by more than overtaken
// means that the clock was set, and no time has passed.
type timeline struct {
	latest atomic.Int64 // up to lag older than the newest
	offset atomic.Int64

	mu sync.Mutex
}

const (
	overtaken = int64(2 * time.Second)
	// lag keeps the processors from writing to one cache line at each query.
	lag = int64(50 * time.Millisecond)
)

// at returns the time for a stamp in Unix nanoseconds; 0 means the latest.
func (c *timeline) at(stamp int64) int64 {
	latest := c.latest.Load()
	if stamp <= 0 {
		return latest
	}
	t := stamp + c.offset.Load()
	if t > latest+lag {
		for t > latest && !c.latest.CompareAndSwap(latest, t) {
			latest = c.latest.Load()
		}
		return t
	}
	if t >= latest-overtaken {
		return t
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	latest = c.latest.Load()
	if t = stamp + c.offset.Load(); t < latest-overtaken {
		c.offset.Add(latest - t)
		return latest
	}
	return t
}

// wall is the wall clock's time, as it is set now, for a time of the timeline.
func (c *timeline) wall(t int64) time.Time { return time.Unix(0, t-c.offset.Load()) }

package upstream

import "time"

var processStart = time.Now()

// sinceStart returns t in nanoseconds since the start of the process, on the monotonic clock: the wall clock may be
// set back after an answer, which would move that answer into the future.
func sinceStart(t time.Time) int64 { return int64(t.Sub(processStart)) }

// clock calls round when a deadline of a pool is due. It sleeps otherwise, so that an idle node is not woken.
// Everything but round is guarded by the lock of the pool, which round takes.
type clock struct {
	round   func(now time.Time)
	timer   *time.Timer
	due     time.Time // zero: asleep
	stopped bool
}

// wakeBy schedules a round for t, or at most a tick later.
func (c *clock) wakeBy(t time.Time) {
	if c.stopped || !c.due.IsZero() && c.due.Before(t.Add(tick)) {
		return
	}
	c.due = t
	if c.timer == nil {
		c.timer = time.AfterFunc(time.Until(t), func() { c.round(time.Now()) })
		return
	}
	c.timer.Reset(time.Until(t))
}

// rest ends a round at now: the next one is at t, or there is none if t is zero.
func (c *clock) rest(t, now time.Time) {
	c.due = time.Time{}
	if t.IsZero() {
		return
	}
	if soonest := now.Add(tick); t.Before(soonest) {
		t = soonest
	}
	c.wakeBy(t)
}

func (c *clock) stop() {
	c.stopped = true
	if c.timer != nil {
		c.timer.Stop()
	}
}

// earlierOf returns the earlier of two times; a zero time means none.
func earlierOf(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

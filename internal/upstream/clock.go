package upstream

import "time"

var processStart = time.Now()

// sinceStart is t in nanoseconds since the process was started, by the clock that nobody sets: the time of day may be
// set back after an answer, which must not make that one of the future.
func sinceStart(t time.Time) int64 { return int64(t.Sub(processStart)) }

// clock calls round when something of a pool is due. It sleeps while nothing is, so that an idle node
// is not woken. All but round is guarded by the lock of the pool, which round takes.
type clock struct {
	round   func(now time.Time)
	timer   *time.Timer
	due     time.Time // zero: asleep
	stopped bool
}

// wakeBy makes sure that a round comes at t, or a tick later.
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

// rest ends a round at now: the next is at t, or none is needed where t is zero.
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

// sooner is the earlier of two times, of which a may be zero for none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

package upstream

import (
	"time"

	"localcache.dev/localcache/internal/observe"
)

// flightBuffers are the buffers that a flight takes over from an earlier one.
type flightBuffers struct {
	q       question
	key     []byte
	results chan *call  // has room for all calls, and for a nudge
	timer   *time.Timer // nudges; stopped while the flight does not run
	reply   []byte
}

// maxKeptAnswer is the largest answer, in octets, whose buffer is kept.
const maxKeptAnswer = 2048

// newFlight returns a flight without a question, with the buffers of an earlier one if there are any.
func (g *Group) newFlight(proto observe.Proto, start time.Time) *flight {
	f, _ := g.spare.Get().(*flight)
	if f == nil {
		results := make(chan *call, g.config.MaxAttempts+maxExtras+len(g.config.Servers)+1)
		timer := time.AfterFunc(time.Hour, func() { nudge(results) })
		timer.Stop()
		f = &flight{flightBuffers: flightBuffers{results: results, timer: timer}}
	}
	f.group, f.proto = g, proto
	f.start, f.deadline, f.closes = start, start.Add(g.config.Budget), start.Add(g.config.Budget/2)
	return f
}

// recycle returns f to the pool. Nothing else refers to it: no follower, and no call but the first, which has ended.
func (g *Group) recycle(f *flight) {
	if f.first.room != nil {
		f.reply = f.first.room
	}
	if cap(f.reply) > maxKeptAnswer {
		f.reply = nil
	}
	f.flightState = flightState{}
	g.spare.Put(f)
}

// nudge wakes a flight's goroutine to look at the time. It may come too late, for the flight that reuses the channel,
// where it does no harm. If another event wakes the goroutine, it looks at the time as well.
func nudge(results chan<- *call) {
	if len(results) > 0 {
		return
	}
	select {
	case results <- nil:
	default:
	}
}

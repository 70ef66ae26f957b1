package upstream

import (
	"time"

	"localcache.dev/localcache/internal/observe"
)

// baggage is the room that a flight takes over from the one before it.
type baggage struct {
	q       question
	key     []byte
	results chan *call  // has room for all calls, and for a nudge
	timer   *time.Timer // nudges; stopped while the flight does not run
	reply   []byte
}

// baggageMost is how many octets of an answer are kept room for.
const baggageMost = 2048

// newFlight returns a flight without a question, with the baggage of an earlier one where there is one.
func (g *Group) newFlight(proto observe.Proto, start time.Time) *flight {
	f, _ := g.spare.Get().(*flight)
	if f == nil {
		results := make(chan *call, g.config.MaxAttempts+extrasMost+len(g.config.Servers)+1)
		timer := time.AfterFunc(time.Hour, func() { nudge(results) })
		timer.Stop()
		f = &flight{baggage: baggage{results: results, timer: timer}}
	}
	f.group, f.proto = g, proto
	f.start, f.deadline, f.closes = start, start.Add(g.config.Budget), start.Add(g.config.Budget/2)
	return f
}

// recycle gives f away. Nobody else has it: no follower, and no call but the first, which has ended.
func (g *Group) recycle(f *flight) {
	if f.first.room != nil {
		f.reply = f.first.room
	}
	if cap(f.reply) > baggageMost {
		f.reply = nil
	}
	f.voyage = voyage{}
	g.spare.Put(f)
}

// nudge wakes a flight's goroutine to look at the time. It may come too late, to the flight after it,
// and does no harm there. Where something else wakes the goroutine, that will look, too.
func nudge(results chan<- *call) {
	if len(results) > 0 {
		return
	}
	select {
	case results <- nil:
	default:
	}
}

package main

import (
	"sync"
	"time"
)

// maxRecords is how many queries of one way are remembered: more than an hour's.
const maxRecords = 1 << 20

// record is one query.
type record struct {
	sent     int64 // Unix time in nanoseconds
	answered int64 // 0 where no answer came in time
	class    class
	rcode    uint8
	again    bool // asked again, because the connection was closed
}

// way is one way of asking.
type way struct {
	name, target, outside string
	ask                   func(w *way, name string) // returns at once; the answer comes through finish
	onlyOutside           bool                      // ask for the external name only

	mu      sync.Mutex
	records []record
	n       uint64 // queries ever
}

// run asks for ever.
func (w *way) run() {
	for range time.Tick(interval) {
		w.mu.Lock()
		n := w.n
		w.mu.Unlock()
		name, c := w.outside, external
		if !w.onlyOutside {
			name, c = nextName(n, w.outside)
		}
		w.mu.Lock()
		w.records[n%maxRecords] = record{sent: time.Now().UnixNano(), class: c}
		w.n++
		w.mu.Unlock()
		w.ask(w, name)
	}
}

// current is the number of the query that ask is called for.
func (w *way) current() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n - 1
}

// finish notes an answer to the nth query, unless it is too late.
func (w *way) finish(n uint64, rcode int, again bool) {
	now := time.Now().UnixNano()
	w.mu.Lock()
	defer w.mu.Unlock()
	r := &w.records[n%maxRecords]
	if r.answered == 0 && now-r.sent <= int64(patience) {
		r.answered, r.rcode, r.again = now, uint8(rcode), again
	}
}

// Count is what came of the queries of one way and one class.
type Count struct {
	Way, Names string
	Queries    int
	// Unanswered had no answer within the patience. The times at which the first of them were sent are in
	// UnansweredAt (Unix time in nanoseconds).
	Unanswered   int
	UnansweredAt []int64
	// Stalled are the failures at a time when the control failed or was slow as well, so that the machine has
	// stood still and not the cache. They are in no other number.
	Stalled int
	// Errors were answered with another response code than NOERROR.
	Errors int
	// Again were asked a second time, because the server closed the connection before it had answered (RFC
	// 7766, section 6.2.4), and answered then.
	Again int
	// Gap is the longest time in nanoseconds between two answers.
	Gap int64
}

// maxTimes bounds the lists of a Count.
const maxTimes = 2000

// slow is how long the control takes at most while the machine does its work.
const slow = 200 * time.Millisecond

// span is a time from and until, in Unix nanoseconds.
type span struct{ from, until int64 }

// stalls are the times in which the control, which asks a server that no fault touches, waited for answers
// longer than slow, or did not come to ask.
func (w *way) stalls(since, until int64) []span {
	w.mu.Lock()
	defer w.mu.Unlock()
	var spans []span
	add := func(from, until int64) {
		if until-from <= int64(slow) {
			return
		}
		if n := len(spans); n > 0 && from <= spans[n-1].until {
			spans[n-1].until = max(spans[n-1].until, until)
			return
		}
		spans = append(spans, span{from, until})
	}
	last := int64(0)
	w.each(since-2*int64(patience), until+2*int64(patience), func(r record) {
		if last != 0 {
			add(last, r.sent)
		}
		last = r.sent
		end := r.answered
		if end == 0 {
			end = r.sent + int64(patience)
		}
		add(r.sent, end)
	})
	return spans
}

// stalled tells whether a query that was sent then may have waited for the machine: while it stood still, or in
// the time after that in which it makes up for what had to wait.
func stalled(sent int64, stalls []span) bool {
	for _, s := range stalls {
		if s.from < sent+int64(patience) && sent < s.until+int64(patience) {
			return true
		}
	}
	return false
}

// each goes through the queries that were sent from since until until, in their order. The caller holds the
// lock.
func (w *way) each(since, until int64, f func(record)) {
	first := uint64(0)
	if w.n > maxRecords {
		first = w.n - maxRecords
	}
	for n := first; n < w.n; n++ {
		if r := w.records[n%maxRecords]; r.sent >= since && r.sent < until {
			f(r)
		}
	}
}

// counts sums up the queries that were sent from since until until.
func (w *way) counts(since, until int64, stalls []span) []Count {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := make([]Count, classes)
	last := make([]int64, classes)
	for c := range counts {
		counts[c].Way, counts[c].Names = w.name, classNames[c]
	}
	w.each(since, until, func(r record) {
		c := &counts[r.class]
		c.Queries++
		failed := r.answered == 0 || r.rcode != 0
		switch {
		case failed && stalled(r.sent, stalls):
			c.Stalled++
		case r.answered == 0:
			c.Unanswered++
			if len(c.UnansweredAt) < maxTimes {
				c.UnansweredAt = append(c.UnansweredAt, r.sent)
			}
		case r.rcode != 0:
			c.Errors++
		}
		if r.answered == 0 {
			return
		}
		if r.again {
			c.Again++
		}
		if last[r.class] != 0 {
			c.Gap = max(c.Gap, r.answered-last[r.class])
		}
		last[r.class] = max(last[r.class], r.answered)
	})
	return counts
}

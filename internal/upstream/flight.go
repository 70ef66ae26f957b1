package upstream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

const (
	// extrasMost is how many attempts a flight may make that the protocol asks for: TCP after TC, no
	// EDNS after FORMERR, fresh connections after another answer spoilt one.
	extrasMost = 6
	// repeatsMost is how many attempts a flight may make after a server closed a connection on which it
	// had answered others. Some close after each answer, or after a few, so that of many questions that
	// are asked at once the last ones see that often.
	repeatsMost = 100
	// giveUpFactor: an attempt is given up after so many times the time after which it is late,
	// within giveUpFloor and giveUpCeiling, and twice that for each further attempt.
	giveUpFactor  = 4
	giveUpFloor   = 300 * time.Millisecond
	giveUpCeiling = time.Second
	// recheck is how long a flight waits that may not send another attempt now.
	recheck = 50 * time.Millisecond
)

// flight is one question on its way, with all its attempts. One goroutine runs it: the client's that
// came first, or one of its own after that client has left.
//
// A flight whose first attempt answered, for one client, is used again for another question. What it
// keeps is in baggage.
type flight struct {
	baggage
	voyage
}

// voyage is what concerns one question.
type voyage struct {
	group  *Group
	listed bool // others may join
	hash   uint64
	proto  observe.Proto // the client's

	start    time.Time
	deadline time.Time
	closes   time.Time // nobody joins from then on

	alone    bool  // the goroutine waits for nothing but the attempts
	carried  *call // the first attempt, where the flight's goroutine is to carry it itself
	calls    []*call
	order    []*path
	allDown  bool
	attempts int // without extras
	extras   int
	repeats  int
	pending  int
	next     time.Time // when to look after the latest attempt
	givesUp  time.Time // when the latest attempt is given up
	looked   bool      // the latest attempt was found late
	timed    bool      // the timer was set

	plain     *server // is asked without EDNS, to find out whether that is what it does not understand
	truncated *call   // a UDP answer that is used if TCP brings none
	failover  *call   // an answer that is used if nobody has a better one
	failovers int
	fallback  *dns.Msg // of failover

	// Guarded by the group's lock.
	followers int
	done      chan struct{} // closed at the end; nil while nobody follows

	// The end, written before done is closed.
	answer *call
	msg    *dns.Msg // of the answer, for the leader
	err    *Error
	report Report
	// private is true where nobody but the leader knows the flight any more.
	private bool

	callRoom [2]*call
	pathRoom [3]*path
	first    call
}

// begin makes the first attempt, or leaves it to run, which is then called with nothing to wait for
// but this attempt.
func (f *flight) begin(alone bool) {
	now := f.start
	f.alone = alone
	f.calls = f.callRoom[:0]
	f.order, f.allDown = f.group.order(f.pathRoom[:0], f.proto, now)
	f.group.hedges.earn()
	f.group.retries.earn()
	if f.allDown && f.group.config.FailFast {
		f.fail(now, &Error{Cause: CauseAllDown, Err: ErrAllDown})
		return
	}
	f.attempts++
	f.send(f.order[0], now, nil)
}

// run goes on until the flight has ended. It is false where ctx ended first; then it can be called
// again.
func (f *flight) run(ctx context.Context) bool {
	canceled := ctx.Done()
	now := f.start // or soon after: the timer may be that much late
	if f.timed {
		now = time.Now()
	}
	for f.answer == nil && f.err == nil {
		wake := sooner(f.next, f.deadline)
		if c := f.carried; c != nil {
			f.carried = nil
			c.path.carry(c, wake)
			if len(f.results) == 0 {
				now = time.Now()
			}
		}
		if len(f.results) == 0 {
			f.timer.Reset(wake.Sub(now))
			f.timed = true
		}
		var c *call
		if canceled == nil {
			c = <-f.results
		} else {
			select {
			case c = <-f.results:
			case <-canceled:
				f.timer.Stop()
				return false
			}
		}
		if c != nil {
			now = c.end
			f.handle(c)
		} else {
			now = time.Now()
			f.look(now)
		}
	}
	if f.timed {
		f.timer.Stop()
	}
	return true
}

// send makes an attempt on p. after, where set, is the call whose connection proved stale.
func (f *flight) send(p *path, now time.Time, after *call) {
	c := &f.first
	first := len(f.calls) == 0
	if first {
		c.room, f.reply = f.reply, nil
	} else {
		c = new(call)
	}
	c.path, c.q, c.wire, c.results = p, &f.q, f.q.wire, f.results
	c.attempt, c.hedge = len(f.calls)+1, f.pending > 0
	c.start, c.expire = now, now.Add(p.server.config.ReadTimeout)
	c.before = slices.Clip(f.calls)
	if after != nil {
		c.younger = after.conn
	}
	if f.q.shareable && (p.server == f.plain || p.server.refusesEDNS(now)) {
		c.wire = f.q.withoutEDNS()
	}
	late := p.rtt.late()
	patience := min(max(giveUpFactor*late, giveUpFloor), giveUpCeiling)
	f.next = now.Add(late)
	f.givesUp = now.Add(patience << min(len(f.calls), 2))
	f.looked = false
	f.calls = append(f.calls, c)
	f.pending++
	if first && f.alone && p.proto == observe.UDP {
		f.carried = c
		return
	}
	p.submit(c)
}

// look decides what to do about attempts that have not answered yet.
func (f *flight) look(now time.Time) {
	if !now.Before(f.deadline) {
		f.exhausted(now)
		return
	}
	if now.Before(f.next) {
		return
	}
	for _, c := range f.calls {
		if !c.handled && c.overdue(now) && c.path.silentSince(c.start) {
			c.path.suspect(now)
		}
	}
	if f.attempts >= f.group.config.MaxAttempts {
		f.next = f.deadline
		return
	}
	latest := f.calls[len(f.calls)-1]
	last := latest.path
	p := f.choose()
	givenUp := !now.Before(f.givesUp)
	may := false
	if standing(p.standing.Load()) == healthy {
		// To leave a server that is in doubt for one that is not costs nothing: it takes over
		// traffic, it does not get more. Nor does what was not heard of since get any. But a server that
		// answers others, or always took that long, is only slow, and would get twice the load when it
		// can bear that least.
		leaving := p != last && standing(last.standing.Load()) != healthy
		may = leaving || givenUp && (latest.overdue(now) && last.pool.silentTo(latest) || f.group.retries.spend())
	}
	if may || (!f.looked || givenUp) && f.group.hedges.spend() {
		f.attempts++
		f.send(p, now, nil)
		return
	}
	f.looked = true
	f.next = now.Add(recheck)
	if now.Before(f.givesUp) && standing(last.standing.Load()) == healthy {
		f.next = f.givesUp
	}
}

// choose returns the path for the next attempt: a healthy one that is not waited for, else any such,
// else the next in order.
func (f *flight) choose() *path {
	var other *path
	for i := range f.order {
		p := f.order[(f.attempts+i)%len(f.order)]
		if f.waitsFor(p) {
			continue
		}
		if standing(p.standing.Load()) == healthy {
			return p
		}
		if other == nil || p.standing.Load() < other.standing.Load() {
			other = p
		}
	}
	if other != nil {
		return other
	}
	return f.order[f.attempts%len(f.order)]
}

func (f *flight) waitsFor(p *path) bool {
	return slices.ContainsFunc(f.calls, func(c *call) bool { return !c.handled && c.path.server == p.server })
}

// handle takes the end of an attempt.
func (f *flight) handle(c *call) {
	c.handled = true
	f.pending--
	if !c.outcome.Answer() {
		c.report()
		f.afterFailure(c)
		return
	}
	if c.path.proto == observe.UDP && c.reply[2]&bitTC != 0 {
		c.report()
		f.askByStream(c)
		return
	}
	msg, err := f.q.unpack(c.reply)
	if err != nil {
		c.outcome, c.err = observe.BadReply, err
		c.path.failed(c.end)
		c.report()
		f.afterFailure(c)
		return
	}
	c.outcome = observe.OutcomeOf(msg.Rcode)
	c.report()
	f.learnEDNS(c, msg.Rcode)
	switch {
	case f.withoutEDNS(c, msg):
	case f.askNext(c, msg):
	default:
		f.succeed(c, msg)
	}
}

// askByStream asks again over TCP after a truncated answer (RFC 7766, section 5), the same server first.
// Where TCP is blocked, the client shall have the truncated answer while it can still do something
// about it: half of the time that remains is for TCP.
func (f *flight) askByStream(c *call) {
	if f.truncated == nil {
		f.deadline = c.end.Add(f.deadline.Sub(c.end) / 2)
		for i, p := range f.order {
			f.order[i] = p.server.stream
		}
	}
	f.truncated = c
	if f.extras >= extrasMost {
		f.exhausted(c.end)
		return
	}
	f.extras++
	f.send(c.path.server.stream, c.end, nil)
}

// withoutEDNS asks again where the server did not understand our OPT record (RFC 6891, section 7).
func (f *flight) withoutEDNS(c *call, msg *dns.Msg) bool {
	if !f.q.shareable || len(c.wire) == f.q.end || f.extras >= extrasMost {
		return false
	}
	switch msg.Rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented:
		if msg.IsEdns0() != nil {
			return false
		}
	case dns.RcodeBadVers:
	default:
		return false
	}
	f.plain = c.path.server
	f.extras++
	f.send(c.path, c.end, nil)
	return true
}

// learnEDNS takes note of a server that answers without EDNS what it did not with it. One that refuses the question
// either way says nothing about EDNS.
func (f *flight) learnEDNS(c *call, rcode int) {
	switch rcode {
	case dns.RcodeFormatError, dns.RcodeNotImplemented, dns.RcodeBadVers:
	default:
		if c.path.server == f.plain && len(c.wire) == f.q.end {
			c.path.server.noteNoEDNS(c.end)
		}
	}
}

// askNext asks the next server after an answer that the configuration calls a failure.
func (f *flight) askNext(c *call, msg *dns.Msg) bool {
	if !slices.Contains(f.group.config.Failover, msg.Rcode) {
		return false
	}
	f.failover, f.fallback = c, msg
	if f.failovers++; f.failovers >= len(f.order) {
		return false
	}
	for _, p := range f.order {
		if !slices.ContainsFunc(f.calls, func(c *call) bool { return c.path.server == p.server }) {
			f.attempts++
			f.send(p, c.end, nil)
			return true
		}
	}
	return f.pending > 0
}

// afterFailure makes the next attempt at once.
func (f *flight) afterFailure(c *call) {
	switch {
	case !c.end.Before(f.deadline):
		f.exhausted(c.end)
	case c.stale && f.again(c):
		f.send(c.path, c.end, c)
	case f.attempts < f.group.config.MaxAttempts:
		f.attempts++
		f.send(f.choose(), c.end, nil)
	case f.pending == 0:
		f.exhausted(c.end)
	}
}

// again reports whether c, whose connection proved stale, is made again, and counts it.
func (f *flight) again(c *call) bool {
	if !errors.Is(c.err, errBystander) && f.repeats < repeatsMost {
		f.repeats++
		return true
	}
	if f.extras < extrasMost {
		f.extras++
		return true
	}
	return false
}

// exhausted ends the flight with the best there is.
func (f *flight) exhausted(now time.Time) {
	if f.failover != nil {
		f.succeed(f.failover, f.fallback)
		return
	}
	if f.truncated != nil {
		msg := new(dns.Msg)
		// What was cut off may leave half a record: what came before it counts, and TC is set.
		if err := msg.Unpack(f.truncated.reply); err == nil || len(msg.Question) > 0 {
			msg.Truncated = true
			f.succeed(f.truncated, msg)
			return
		}
	}
	f.fail(now, nil)
}

func (f *flight) succeed(c *call, msg *dns.Msg) {
	f.report = f.summary(c.end, true)
	f.msg = msg
	f.end(c, nil)
}

func (f *flight) fail(now time.Time, err *Error) {
	report := f.summary(now, false)
	if err == nil {
		err = &Error{Cause: causeOf(report.Attempts)}
		if !slices.ContainsFunc(f.calls, func(c *call) bool { return !capped(c.err) }) {
			err = &Error{Cause: CauseOverloaded, Err: fmt.Errorf("%w: %w", ErrOverloaded, f.calls[0].err)}
		}
	}
	err.Elapsed = now.Sub(f.start)
	err.Report = report
	f.end(nil, err)
}

// end publishes the result. Whoever follows finds it complete.
func (f *flight) end(c *call, err *Error) {
	f.answer, f.err = c, err
	abandonAll(f.calls, f.results)
	g := f.group
	g.mu.Lock()
	g.forget(f)
	done := f.done
	g.mu.Unlock()
	if done != nil {
		close(done)
	}
	f.private = done == nil && c != nil && len(f.calls) == 1 && c == &f.first
}

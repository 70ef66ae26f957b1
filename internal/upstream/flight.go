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
	// maxExtras is how many attempts a flight may make because the protocol requires them: TCP after TC, no EDNS
	// after FORMERR, a new connection after another answer broke the old one.
	maxExtras = 6
	// maxRepeats is how many attempts a flight may make after a server closed a connection on which it had answered
	// others. Some servers close after each answer or after a few, so that the last of many simultaneous queries meet
	// this often.
	maxRepeats = 100
	// giveUpFactor is the multiple of the late time after which an attempt is given up, bounded by giveUpFloor and
	// giveUpCeiling, and doubled for each further attempt.
	giveUpFactor  = 4
	giveUpFloor   = 300 * time.Millisecond
	giveUpCeiling = time.Second
	// recheck is how long a flight waits if it may not send another attempt now.
	recheck = 50 * time.Millisecond
)

// flight is one question in progress, with all its attempts. One goroutine runs it: that of the first client, or one
// of its own after that client has left.
//
// A flight whose first attempt answered, and that had one client, is reused for another question. flightBuffers is
// what it keeps.
type flight struct {
	flightBuffers
	flightState
}

// flightState is the part of a flight that belongs to one question.
type flightState struct {
	group  *Group
	listed bool // others may join
	hash   uint64
	proto  observe.Proto // the client's

	start    time.Time
	deadline time.Time
	closes   time.Time // no client joins after this

	alone    bool  // the goroutine waits for nothing but the attempts
	carried  *call // the first attempt, if the flight's goroutine carries it itself
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

	plain     *server // asked without EDNS, to find out whether EDNS is what it does not understand
	truncated *call   // a UDP answer to use if TCP brings none
	failover  *call   // an answer to use if no server has a better one
	failovers int
	fallback  *dns.Msg // of failover

	// Guarded by the group's lock.
	followers int
	done      chan struct{} // closed at the end; nil while there are no followers

	// The end, written before done is closed.
	answer *call
	msg    *dns.Msg // of the answer, for the leader
	err    *Error
	report Report
	// private is true once only the leader refers to the flight.
	private bool

	callRoom [2]*call
	pathRoom [3]*path
	first    call
}

// begin makes the first attempt, or leaves it to run, which then has only this attempt to wait for.
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

// run runs the flight to its end. It returns false if ctx ended first; it can then be called again.
func (f *flight) run(ctx context.Context) bool {
	canceled := ctx.Done()
	now := f.start // or soon after: the timer may be that much late
	if f.timed {
		now = time.Now()
	}
	for f.answer == nil && f.err == nil {
		wake := earlierOf(f.next, f.deadline)
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

// send makes an attempt on p. after, if set, is the call whose connection turned out to be stale.
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

// look decides what to do about attempts that have not been answered yet.
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
	if healthState(p.state.Load()) == healthy {
		// Leaving a server in doubt for a healthy one costs nothing: the healthy one takes over traffic, the total
		// does not grow. A server that has been silent gets no more load either. But a server that answers others, or
		// has always been this slow, would get twice the load when it can bear it least.
		leaving := p != last && healthState(last.state.Load()) != healthy
		may = leaving || givenUp && (latest.overdue(now) && last.pool.silentTo(latest) || f.group.retries.spend())
	}
	if may || (!f.looked || givenUp) && f.group.hedges.spend() {
		f.attempts++
		f.send(p, now, nil)
		return
	}
	f.looked = true
	f.next = now.Add(recheck)
	if now.Before(f.givesUp) && healthState(last.state.Load()) == healthy {
		f.next = f.givesUp
	}
}

// choose returns the path for the next attempt: a healthy one without a pending attempt, else any without one, else
// the next in order.
func (f *flight) choose() *path {
	var other *path
	for i := range f.order {
		p := f.order[(f.attempts+i)%len(f.order)]
		if f.waitsFor(p) {
			continue
		}
		if healthState(p.state.Load()) == healthy {
			return p
		}
		if other == nil || p.state.Load() < other.state.Load() {
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

// handle processes the end of an attempt.
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
	if f.extras >= maxExtras {
		f.exhausted(c.end)
		return
	}
	f.extras++
	f.send(c.path.server.stream, c.end, nil)
}

// withoutEDNS asks again where the server did not understand our OPT record (RFC 6891, section 7).
func (f *flight) withoutEDNS(c *call, msg *dns.Msg) bool {
	if !f.q.shareable || len(c.wire) == f.q.end || f.extras >= maxExtras {
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

// learnEDNS records that a server answers without EDNS what it did not answer with it. A server that refuses the
// question both ways tells nothing about EDNS.
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

// again reports whether c, whose connection turned out to be stale, should be repeated, and counts it.
func (f *flight) again(c *call) bool {
	if !errors.Is(c.err, errBystander) && f.repeats < maxRepeats {
		f.repeats++
		return true
	}
	if f.extras < maxExtras {
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
		// A cut message may end within a record: the records before it count, and TC is set.
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

// end publishes the result. Followers then find it complete.
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

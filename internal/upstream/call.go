package upstream

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// The states of a call as its flight and its pool see it.
const (
	callWaiting   uint32 = iota
	callFinished         // handed to the flight, which reports it
	callAbandoned        // no flight waits for it: the pool reports it
)

// call is one attempt on one path. The pool that carries it ends it exactly once, with finish.
type call struct {
	path    *path
	q       *question
	wire    []byte // the message to send: q with or without EDNS
	results chan<- *call
	attempt int
	hedge   bool
	probe   bool
	start   time.Time
	expire  time.Time
	// before are the earlier calls of the flight: a connection that carries one of them is avoided.
	before []*call
	// younger, where set, asks for a connection that was opened after that one.
	younger *streamConn

	// Guarded by the lock of the pool that carries the call.
	prev, next *call
	conn       *streamConn
	slot       uint8

	// Set by the pool before finish hands the call over.
	reused  bool
	age     time.Duration
	local   netip.AddrPort
	reply   []byte
	room    []byte // that reply may use
	resent  bool   // over UDP, from another socket than the first
	outcome observe.Outcome
	err     error
	end     time.Time
	// stale marks a failure that says nothing about the server: a connection that had worked and
	// was closed, or that fell because of another call.
	stale bool

	state   atomic.Uint32
	handled bool             // by the reader of results
	record  observe.Exchange // set by report
}

// keep copies msg to memory that lives as long as the call.
func (c *call) keep(msg []byte) []byte {
	c.room = append(c.room[:0], msg...)
	return c.room
}

// finish ends the call. The pool has removed it from its books before and holds no lock.
func (c *call) finish(reply []byte, outcome observe.Outcome, err error, now time.Time) {
	c.reply, c.outcome, c.err, c.end = reply, outcome, err, now
	if c.state.CompareAndSwap(callWaiting, callFinished) {
		c.results <- c // has room for all calls of a flight
		return
	}
	c.report()
}

// abandon leaves the call to its pool. It is false where the call has ended and is, or will be at
// once, among the results.
func (c *call) abandon() bool { return c.state.CompareAndSwap(callWaiting, callAbandoned) }

// overdue reports whether c has waited for longer than answers on its path usually take.
func (c *call) overdue(now time.Time) bool { return now.Sub(c.start) >= c.path.rtt.usual() }

// abandonAll leaves calls that are under way to their pools, which report them in time, and reports those that have ended and
// are, or will be at once, among results.
func abandonAll(calls []*call, results <-chan *call) {
	for _, c := range calls {
		if c.handled || c.abandon() {
			continue
		}
		for !c.handled { // other calls may end before it
			if ended := <-results; ended != nil {
				ended.handled = true
				ended.report()
			}
		}
	}
}

// rcode returns the reply's RCODE. Its upper bits are in the OPT record (RFC 6891, section 6.1.3); the reply is
// parsed for them only if there can be any: the outcome of those few answers is OtherRcode. A call whose flight has
// left gets the low four bits.
func (c *call) rcode() int {
	if len(c.reply) < headerLen {
		return 0
	}
	if c.outcome == observe.OtherRcode {
		return extendedRcode(c.reply)
	}
	return int(c.reply[3] & 0x0f)
}

// extendedRcode is a function of its own because its message would otherwise enlarge the stack of every query.
//
//go:noinline
func extendedRcode(reply []byte) int {
	m := new(dns.Msg)
	if m.Unpack(reply) == nil {
		return m.Rcode
	}
	return int(reply[3] & 0x0f)
}

// report reports the ended call to the statistics. It is called once, by the side that the end of the call was left
// to.
func (c *call) report() {
	r := &c.record // field by field: a literal would be made on the stack first
	r.Upstream, r.Proto = c.path.server.name, c.path.proto
	r.Start, r.Duration = c.start, c.end.Sub(c.start)
	r.Outcome, r.Attempt = c.outcome, c.attempt
	r.Hedge, r.Probe, r.Reused = c.hedge, c.probe, c.reused
	r.ConnAge, r.Local = c.age, c.local
	r.Capped = capped(c.err)
	r.BytesOut, r.BytesIn = len(c.wire), len(c.reply)
	if c.outcome.Answer() {
		r.Rcode = c.rcode()
	} else if c.err != nil {
		r.Err = c.err.Error()
	}
	c.path.sink.End(r)
}

// callList is a list of calls in order of their start.
type callList struct {
	head, tail *call
	n          int
}

func (l *callList) push(c *call) {
	c.prev, c.next = l.tail, nil
	if l.tail != nil {
		l.tail.next = c
	} else {
		l.head = c
	}
	l.tail = c
	l.n++
}

func (l *callList) remove(c *call) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.head = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.tail = c.prev
	}
	c.prev, c.next = nil, nil
	l.n--
}

package upstream

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

const (
	// slotBits is how many bits of an ID are the slot of its call; the rest counts the uses of the slot, so that a
	// duplicate answer is not taken for that of the next call.
	slotBits = 7
	slots    = 1 << slotBits
	// dialTime is for TCP and TLS together. The kernel sends a lost SYN again after 1 s.
	dialTime = 1200 * time.Millisecond
	// partialTime is how long a message may take from its first octet to its last, and a write until the kernel has
	// accepted it. 64 KiB in a second is the speed of a modem.
	partialTime = time.Second
	// maxPending is how many octets may wait for the writer; ordinary queries never come near.
	maxPending = 256 << 10
)

var (
	errStuck      = errors.New("the upstream does not read, or sends an answer octet by octet")
	errUnasked    = fmt.Errorf("%w: an answer with an ID that was not asked", errBadFrame)
	errWrong      = fmt.Errorf("%w: an answer to another question", errBadFrame)
	errBystander  = errors.New("the connection was closed because of another answer on it")
	errHungUp     = errors.New("the upstream closed the connection")
	errNotWritten = errors.New("the query could not be written")
)

// streamConn is one connection. One goroutine opens and then reads it; another writes what callers may not: into TLS,
// and what the kernel does not accept at once. Otherwise the caller itself writes, together with whatever was queued
// meanwhile. Everything is guarded by the pool's lock, except conn and raw once it is open, and what the reader and
// the writer keep for themselves.
type streamConn struct {
	pool     *streamPool
	cancel   context.CancelFunc // of the opening
	ctx      context.Context
	conn     net.Conn
	raw      syscall.RawConn // of conn, once it is open; nil with TLS
	local    netip.AddrPort
	born     time.Time
	ready    time.Time // when it was open
	retireAt time.Time
	retired  bool // takes no more calls
	gone     bool // not in the pool any more

	calls   [slots]*call
	uses    [slots]uint16
	free    []uint8
	lost    int // slots of calls that timed out
	busy    int
	total   int
	answers int
	waiting callList

	heard     time.Time // when something was last read
	idleSince time.Time
	partial   time.Time // since when a message is incomplete; zero: none
	writing   time.Time // since when a write is under way; zero: none
	out       []byte
	unsent    int           // questions in out
	flushing  bool          // a goroutine is about to write
	wake      chan struct{} // room for one
	done      chan struct{} // closed when gone

	// batch belongs to the goroutine that flushes.
	batch     []byte
	spare     []byte
	written   int
	writeErr  error
	writeStep func(fd uintptr) bool
}

func newStreamConn(p *streamPool, now time.Time) *streamConn {
	age := p.path.server.config.MaxAge
	c := &streamConn{
		pool: p, born: now, idleSince: now,
		retireAt: now.Add(age - rand.N(age/4+1)),
		free:     make([]uint8, slots),
		wake:     make(chan struct{}, 1),
		done:     make(chan struct{}),
	}
	c.writeStep = c.writeOnce
	c.ctx, c.cancel = context.WithTimeout(context.Background(), dialTime)
	first := uint16(rand.Uint32())
	for i := range c.free {
		c.free[i] = uint8(slots - 1 - i)
		c.uses[i] = first
	}
	return c
}

// add takes a call. There is room; the pool's lock is held.
func (c *streamConn) add(a *call) {
	slot := c.free[len(c.free)-1]
	c.free = c.free[:len(c.free)-1]
	c.uses[slot]++
	c.calls[slot] = a
	a.conn, a.slot = c, slot
	a.reused = c.total > 0
	if a.reused {
		a.age = a.start.Sub(c.born)
	}
	a.local = c.local
	c.total++
	c.busy++
	c.waiting.push(a)

	c.out = binary.BigEndian.AppendUint16(c.out, uint16(len(a.wire)))
	c.out = binary.BigEndian.AppendUint16(c.out, c.id(slot))
	c.out = append(c.out, a.wire[2:]...)
	c.unsent++
	if c.total >= streamQueries {
		c.retire()
	}
}

// id is the ID of the call in slot.
func (c *streamConn) id(slot uint8) uint16 { return c.uses[slot]<<slotBits | uint16(slot) }

// take removes the call in slot. The pool's lock is held.
func (c *streamConn) take(slot uint8, now time.Time) *call {
	a := c.calls[slot]
	c.calls[slot] = nil
	c.waiting.remove(a)
	c.free = append(c.free, slot)
	c.busy--
	if c.busy == 0 {
		c.idleSince = now
		c.pool.clock.wakeBy(now.Add(c.pool.path.server.config.Expire))
	}
	return a
}

func (c *streamConn) room() bool { return len(c.free) > 0 && len(c.out) < maxPending }

func (c *streamConn) retire() { c.retired = true }

func (c *streamConn) tooOld(now time.Time) bool { return !now.Before(c.retireAt) }

// idleFor returns how long c has carried nothing.
func (c *streamConn) idleFor(now time.Time) time.Duration {
	if c.busy > 0 {
		return -1
	}
	return now.Sub(c.idleSince)
}

// silentTo reports whether nothing was read from c since the first of calls, whose time is over, was sent. A probe
// does not count: it waits less long than others.
func (c *streamConn) silentTo(calls []*call) bool {
	i := slices.IndexFunc(calls, func(a *call) bool { return !a.probe })
	return i >= 0 && c.heard.Before(calls[i].start)
}

// late reports whether the oldest call has waited for longer than after.
func (c *streamConn) late(now time.Time, after time.Duration) bool {
	return c.waiting.head != nil && now.Sub(c.waiting.head.start) > after
}

// unread reports whether something has come that was not read yet. With TLS it is not known, and false.
func (c *streamConn) unread() bool {
	n := 0
	if c.raw == nil {
		return false
	}
	err := c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && n > 0
}

// carries reports whether one of calls went over c.
func (c *streamConn) carries(calls []*call) bool {
	return slices.ContainsFunc(calls, func(a *call) bool { return a.conn == c })
}

// stuck reports whether a read or a write takes too long.
func (c *streamConn) stuck(now time.Time) bool {
	over := func(since time.Time) bool { return !since.IsZero() && now.Sub(since) >= partialTime }
	return over(c.partial) || over(c.writing)
}

// nextDue returns when the pool's clock must look at c again.
func (c *streamConn) nextDue() time.Time {
	next := c.retireAt
	switch {
	case c.busy == 0:
		next = earlierOf(next, c.idleSince.Add(c.pool.path.server.config.Expire))
	case c.retired:
		// retireAt has passed; only the end of the calls matters now.
		next = time.Time{}
	}
	for a := c.waiting.head; a != nil; a = a.next {
		next = earlierOf(next, a.expire)
	}
	for _, since := range []time.Time{c.partial, c.writing} {
		if !since.IsZero() {
			next = earlierOf(next, since.Add(partialTime))
		}
	}
	return next
}

// expired removes the calls whose time is over. Their slots are not reused: the answers may still arrive.
func (c *streamConn) expired(now time.Time) []*call {
	var list []*call
	for a := c.waiting.head; a != nil; {
		following := a.next
		if !now.Before(a.expire) {
			c.waiting.remove(a)
			c.calls[a.slot] = nil
			c.lost++
			c.busy--
			c.idleSince = now
			list = append(list, a)
		}
		a = following
	}
	return list
}

// shut removes c from the pool and closes it. The pool's lock is held, and there are no calls on c.
func (c *streamConn) shut() {
	if c.gone {
		return
	}
	c.gone, c.retired = true, true
	c.pool.conns = slices.DeleteFunc(c.pool.conns, func(o *streamConn) bool { return o == c })
	c.cancel()
	close(c.done)
	if c.conn != nil {
		// Neither the other end nor this one can make use of an error.
		closeStream(c.conn)
	}
}

// closeStream does not wait for TLS's farewell, which could block.
func closeStream(conn net.Conn) {
	if t, ok := conn.(*tls.Conn); ok {
		t.NetConn().Close()
		return
	}
	conn.Close()
}

// brokenConn holds the calls of a connection that failed.
type brokenConn struct {
	path    *path
	calls   []*call
	guilty  *call
	outcome observe.Outcome
	err     error
	worked  bool
	counted bool // among the path's failures
}

// broken shuts c after a failure, if that has not happened yet. Its calls end with finish, without the lock.
func (c *streamConn) broken(outcome observe.Outcome, err error, guilty *call) brokenConn {
	b := brokenConn{path: c.pool.path, guilty: guilty, outcome: outcome, err: err, worked: c.answers > 0}
	if c.gone {
		return b
	}
	for a := c.waiting.head; a != nil; a = c.waiting.head {
		c.waiting.remove(a)
		c.calls[a.slot] = nil
		c.busy--
		b.calls = append(b.calls, a)
	}
	if outcome == observe.BadReply && guilty == nil && !c.ready.IsZero() && len(b.calls) > 0 {
		// It is unknown which answer was broken. The oldest was due next.
		b.guilty, b.calls = b.calls[0], b.calls[1:]
	}
	c.shut()
	return b
}

func (b brokenConn) finish(now time.Time) {
	if len(b.calls) == 0 && b.guilty == nil {
		return
	}
	hangUp := b.outcome == observe.Reset && !errors.Is(b.err, errStuck)
	// A server may close a connection that has worked when it likes (RFC 7766, section 6.2.3).
	faultless := b.counted || isLocal(b.err) || hangUp && b.worked
	if !faultless {
		b.path.failed(now)
	}
	if b.guilty != nil {
		b.guilty.finish(nil, b.outcome, b.err, now)
	}
	for _, a := range b.calls {
		if b.guilty != nil {
			a.stale = true
			a.finish(nil, observe.Reset, errBystander, now)
			continue
		}
		a.stale = hangUp && b.worked
		a.finish(nil, b.outcome, b.err, now)
	}
}

// fail ends c after a failure.
func (c *streamConn) fail(outcome observe.Outcome, err error) {
	c.pool.mu.Lock()
	b := c.broken(outcome, err, nil)
	c.pool.mu.Unlock()
	b.finish(time.Now())
}

func (c *streamConn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run opens the connection and reads it to its end.
func (c *streamConn) run() {
	conn, err := c.open()
	if err != nil {
		c.fail(outcomeOf(err), err)
		return
	}
	var raw syscall.RawConn
	if s, ok := conn.(syscall.Conn); ok {
		if raw, err = s.SyscallConn(); err != nil {
			closeStream(conn)
			c.fail(outcomeOf(err), err)
			return
		}
	}
	now := time.Now()
	c.pool.mu.Lock()
	if c.gone {
		c.pool.mu.Unlock()
		closeStream(conn)
		return
	}
	c.conn, c.raw, c.ready = conn, raw, now
	if a, ok := conn.LocalAddr().(*net.TCPAddr); ok {
		c.local = a.AddrPort()
		for a := c.waiting.head; a != nil; a = a.next {
			a.local = c.local
		}
	}
	c.pool.mu.Unlock()
	c.cancel()
	if !c.pool.path.server.run(c.write) {
		return // the pool is being closed, and this connection with it
	}
	c.read()
}

func (c *streamConn) open() (net.Conn, error) {
	config := &c.pool.path.server.config
	conn, err := c.pool.dial.Stream(c.ctx, config.Source, config.Addr)
	if err != nil || config.TLS == nil {
		return conn, err
	}
	secured := tls.Client(conn, config.TLS)
	if err := secured.HandshakeContext(c.ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("TLS handshake: %w", err), conn.Close())
	}
	return secured, nil
}

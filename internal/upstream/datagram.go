package upstream

import (
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const (
	// datagramUses and datagramLife bound the use of a port. An answer is accepted only from one address, to one port, with one ID and one question (RFC 5452). A socket
	// carries one call at a time, and a port is given up after a few calls and a short time, before open ports can be
	// found through the kernel's ICMP replies.
	datagramUses = 32
	datagramLife = 2 * time.Second
	// tick is the least time between two rounds of a pool's clock, so that many expiries share one.
	tick = 20 * time.Millisecond
)

// datagramPool is the UDP side of a server: connected sockets with one call at a time on each. The goroutine that
// makes a call reads its socket, so that an answer wakes only the goroutine that waits for it. Idle sockets are not
// read: whatever arrived meanwhile is dropped before the next call is sent.
type datagramPool struct {
	path  *path
	dial  Dialer
	limit int

	mu      sync.Mutex
	closed  bool
	sockets map[*datagramSocket]struct{}
	idle    []*datagramSocket
	clock   clock
}

func newDatagramPool(p *path, dial Dialer, limit int) *datagramPool {
	pool := &datagramPool{path: p, dial: dial, limit: limit, sockets: make(map[*datagramSocket]struct{})}
	pool.clock.round = pool.round
	return pool
}

// submit runs c in a goroutine of its own.
func (d *datagramPool) submit(c *call) {
	if !d.path.server.run(func() { d.attempt(c, c.expire) }) {
		c.finish(nil, observe.Reset, errPoolClosed, time.Now())
	}
}

// carry carries c in the calling goroutine, up to until.
func (d *datagramPool) carry(c *call, until time.Time) {
	s := d.attempt(c, earlierOf(until, c.expire))
	if s == nil {
		return
	}
	if !d.path.server.run(func() { s.await(c.expire); d.end(s) }) {
		d.end(s)
	}
}

// attempt sends c and waits for its end. It returns nil if c has ended, else the socket on which c waits beyond
// until, which is before c.expire.
func (d *datagramPool) attempt(c *call, until time.Time) *datagramSocket {
	for {
		s, err := d.socket(c)
		if err != nil {
			d.fail(c, err)
			return nil
		}
		switch ended := s.await(until); {
		case ended && s.failed != nil && !s.sent && c.reused && !c.resent:
			// The kernel reports the ICMP error of an earlier datagram here: try again on a socket without errors.
			d.discard(s)
			c.resent = true
		case ended, !until.Before(c.expire):
			d.end(s)
			return nil
		default:
			return s
		}
	}
}

// end detaches the ended call from s and reports the outcome.
func (d *datagramPool) end(s *datagramSocket) {
	c := s.call
	now := time.Now()
	switch {
	case s.failed != nil:
		d.discard(s)
		d.fail(c, s.failed)
	case s.answered:
		d.release(s, now)
		d.path.rtt.sample(now.Sub(c.start), now)
		d.path.answered(now)
		c.finish(c.reply, observe.OutcomeOf(int(c.reply[3]&0x0f)), nil, now)
	default:
		d.discard(s)
		if d.path.silentSince(c.start) { // otherwise only this name is slow
			d.path.failed(now)
		}
		c.finish(nil, observe.Timeout, errSilent, now)
	}
}

// fail ends c by err, of the network or of this process.
func (d *datagramPool) fail(c *call, err error) {
	now := time.Now()
	d.mu.Lock()
	if d.closed {
		err = errPoolClosed
	}
	d.mu.Unlock()
	outcome := outcomeOf(err)
	switch {
	case errors.Is(err, errPoolClosed):
		outcome = observe.Reset
	case !isLocal(err):
		d.path.failed(now)
	}
	c.finish(nil, outcome, err, now)
}

// socket assigns c to a socket.
func (d *datagramPool) socket(c *call) (*datagramSocket, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errPoolClosed
	}
	// A further attempt of the same flight uses a new port: the path of the first one may be broken.
	if s := d.takeIdle(c.start, len(c.before) > 0 || c.resent); s != nil {
		s.assign(c, true)
		return s, nil
	}
	if len(d.sockets) >= d.limit {
		return nil, errTooManySockets
	}
	conn, err := d.dial.Datagram(d.path.server.config.Source, d.path.server.config.Addr)
	if err != nil {
		if noFiles(err) && len(d.idle) > 0 {
			s := d.idle[len(d.idle)-1]
			d.idle = d.idle[:len(d.idle)-1]
			s.assign(c, true)
			return s, nil
		}
		return nil, err
	}
	s, err := newDatagramSocket(d.path.sink, conn, c.start)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	d.sockets[s] = struct{}{}
	s.assign(c, false)
	return s, nil
}

// takeIdle returns an idle socket, any of them, or nil. It runs with d.mu held.
func (d *datagramPool) takeIdle(now time.Time, fresh bool) *datagramSocket {
	for !fresh && len(d.idle) > 0 {
		i := rand.IntN(len(d.idle))
		s := d.idle[i]
		last := len(d.idle) - 1
		d.idle[i], d.idle[last] = d.idle[last], nil
		d.idle = d.idle[:last]
		if now.Sub(s.born) < d.life() && now.Sub(s.idleSince) < d.path.server.config.Expire {
			return s
		}
		d.remove(s)
	}
	return nil
}

// life returns how long a socket takes calls.
func (d *datagramPool) life() time.Duration { return min(datagramLife, d.path.server.config.MaxAge) }

// remove closes s. It runs with d.mu held.
func (d *datagramPool) remove(s *datagramSocket) {
	delete(d.sockets, s)
	s.conn.Close() // nothing is lost with it, and there is nothing to do about an error
}

// discard closes s, which is not idle.
func (d *datagramPool) discard(s *datagramSocket) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, open := d.sockets[s]; open {
		d.remove(s)
	}
}

// release keeps s for another call, or closes it.
func (d *datagramPool) release(s *datagramSocket, now time.Time) {
	s.call = nil
	s.idleSince = now
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, open := d.sockets[s]; !open {
		return
	}
	limit := d.path.server.config.MaxIdle
	if s.uses >= datagramUses || now.Sub(s.born) >= d.life() || limit > 0 && len(d.idle) >= limit {
		d.remove(s)
		return
	}
	d.idle = append(d.idle, s)
	if len(d.idle) == len(d.sockets) {
		// Nothing is under way: no goroutine should wake for a wait that is over.
		s.rest()
	}
	d.clock.wakeBy(d.idleUntil(s))
}

// idleUntil is until when s is kept while it is idle.
func (d *datagramPool) idleUntil(s *datagramSocket) time.Time {
	return earlierOf(s.born.Add(d.life()), s.idleSince.Add(d.path.server.config.Expire))
}

// round closes idle sockets that are old, or were idle for long.
func (d *datagramPool) round(now time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := time.Time{}
	kept := d.idle[:0]
	for _, s := range d.idle {
		if until := d.idleUntil(s); now.Before(until) {
			next = earlierOf(next, until)
			kept = append(kept, s)
		} else {
			d.remove(s)
		}
	}
	clear(d.idle[len(kept):])
	d.idle = kept
	d.clock.rest(next, now)
}

// silentTo is about the path: a socket carries one call at a time.
func (d *datagramPool) silentTo(c *call) bool { return d.path.silentSince(c.start) }

func (d *datagramPool) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.idle = nil
	d.clock.stop()
	for s := range d.sockets {
		s.conn.Close() // its reader ends the call
	}
}

func (d *datagramPool) load() (sockets, waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sockets), len(d.sockets) - len(d.idle)
}

package upstream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const (
	// An answer is accepted from one address, to one port, with one ID and one question (RFC 5452).
	// A socket carries one call at a time, and a port is given up after few of them and a short
	// time: to find open ports by the kernel's ICMP replies takes longer.
	datagramUses = 32
	datagramLife = 2 * time.Second
	// datagramBuffer has room for what we offer by EDNS. Longer datagrams were not asked for; they
	// are cut and count as truncated.
	datagramBuffer = 2048
	// tick is the least time between two rounds of a pool's clock, so that many expiries share one.
	tick = 20 * time.Millisecond
)

// datagramPool is the UDP side of a server: connected sockets, one call at a time on each.
type datagramPool struct {
	path  *path
	dial  Dialer
	limit int

	mu      sync.Mutex
	closed  bool
	sockets map[*datagramSocket]struct{}
	idle    []*datagramSocket
	waiting callList
	clock   clock

	buffers sync.Pool // of *[]byte, for queries
}

// datagramSocket has a goroutine that reads it. All but conn and the buffers is guarded by the pool's
// lock.
type datagramSocket struct {
	conn  net.Conn
	local netip.AddrPort
	born  time.Time
	uses  int
	call  *call
	id    uint16
}

func newDatagramPool(p *path, dial Dialer, limit int) *datagramPool {
	pool := &datagramPool{path: p, dial: dial, limit: limit, sockets: make(map[*datagramSocket]struct{})}
	pool.clock.round = pool.round
	pool.buffers.New = func() any { return new([]byte) }
	return pool
}

// submit sends c, from a used socket or a new one.
func (d *datagramPool) submit(c *call) {
	var failed error
	for range 2 {
		s, id, err := d.socket(c)
		if err != nil {
			d.fail(c, err)
			return
		}
		// The answer may be there, and the socket with its next call, before Write returns: what is
		// written must not belong to the socket.
		out := d.buffers.Get().(*[]byte)
		*out = append((*out)[:0], c.wire...)
		binary.BigEndian.PutUint16(*out, id)
		_, err = s.conn.Write(*out)
		d.buffers.Put(out)
		if err == nil {
			return
		}
		// The kernel reports the ICMP error of an earlier datagram here, too.
		if !d.discard(s, c) {
			return // the reader was first and has ended c
		}
		if !c.reused {
			d.fail(c, err)
			return
		}
		failed = err
	}
	d.fail(c, failed)
}

func (d *datagramPool) fail(c *call, err error) {
	now := time.Now()
	if !ours(err) {
		d.path.failed(now)
	}
	c.finish(nil, outcomeOf(err), err, now)
}

// socket assigns a socket to c and c to the socket, with an ID.
func (d *datagramPool) socket(c *call) (*datagramSocket, uint16, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, 0, errPoolClosed
	}
	// An attempt after another one of the same flight takes a port of its own: the way of the first
	// may be what is wrong.
	if s := d.takeIdle(c.start, len(c.before) > 0); s != nil {
		d.assign(s, c, true)
		return s, s.id, nil
	}
	if len(d.sockets) >= d.limit {
		return nil, 0, errTooManySockets
	}
	conn, err := d.dial.Datagram(d.path.server.config.Source, d.path.server.config.Addr)
	if err != nil {
		if noFiles(err) && len(d.idle) > 0 {
			s := d.idle[len(d.idle)-1]
			d.idle = d.idle[:len(d.idle)-1]
			d.assign(s, c, true)
			return s, s.id, nil
		}
		return nil, 0, err
	}
	s := &datagramSocket{conn: conn, born: c.start}
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		s.local = a.AddrPort()
	}
	if !d.path.server.run(func() { d.read(s) }) {
		return nil, 0, errors.Join(errPoolClosed, conn.Close())
	}
	d.sockets[s] = struct{}{}
	d.assign(s, c, false)
	return s, s.id, nil
}

// assign runs with d.mu held.
func (d *datagramPool) assign(s *datagramSocket, c *call, reused bool) {
	s.call, s.id = c, uint16(rand.Uint32())
	s.uses++
	c.socket, c.reused, c.local = s, reused, s.local
	if reused {
		c.age = c.start.Sub(s.born)
	}
	d.waiting.push(c)
	d.clock.wakeBy(c.expire)
}

// takeIdle returns an idle socket, any of them, or nil. It runs with d.mu held.
func (d *datagramPool) takeIdle(now time.Time, fresh bool) *datagramSocket {
	for !fresh && len(d.idle) > 0 {
		i := rand.IntN(len(d.idle))
		s := d.idle[i]
		last := len(d.idle) - 1
		d.idle[i], d.idle[last] = d.idle[last], nil
		d.idle = d.idle[:last]
		if now.Sub(s.born) < datagramLife {
			return s
		}
		d.remove(s)
	}
	return nil
}

// remove closes s; its reader ends. It runs with d.mu held.
func (d *datagramPool) remove(s *datagramSocket) {
	delete(d.sockets, s)
	s.conn.Close() // nothing is lost with it, and nobody could do anything about it
}

// detach takes the call off s. It runs with d.mu held.
func (d *datagramPool) detach(s *datagramSocket) *call {
	c := s.call
	if c != nil {
		s.call = nil
		d.waiting.remove(c)
	}
	return c
}

// discard closes a socket that could not send c. It is false where c has ended already.
func (d *datagramPool) discard(s *datagramSocket, c *call) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.call != c {
		return false
	}
	d.detach(s)
	d.remove(s)
	return true
}

// read takes what comes to s until it is closed.
func (d *datagramPool) read(s *datagramSocket) {
	buffer := make([]byte, datagramBuffer)
	for {
		n, err := s.conn.Read(buffer)
		now := time.Now()
		if err != nil {
			d.readFailed(s, err)
			return
		}
		if !d.received(s, buffer[:n], n == len(buffer), now) {
			return
		}
	}
}

func (d *datagramPool) readFailed(s *datagramSocket, err error) {
	d.mu.Lock()
	c := d.detach(s)
	for i, idle := range d.idle {
		if idle == s {
			d.idle = append(d.idle[:i], d.idle[i+1:]...)
			break
		}
	}
	if _, open := d.sockets[s]; open {
		d.remove(s)
	}
	closed := d.closed
	d.mu.Unlock()
	switch {
	case c == nil:
	case closed:
		c.finish(nil, observe.Reset, errPoolClosed, time.Now())
	default:
		d.fail(c, err)
	}
}

// received takes a datagram. What is not the answer is dropped and counted, and the wait goes on: it
// may be a forgery that came before the answer. It is false when s is to be read no more.
func (d *datagramPool) received(s *datagramSocket, msg []byte, cut bool, now time.Time) bool {
	d.mu.Lock()
	c := s.call
	verdict := wrongID
	if c != nil {
		verdict = c.q.judge(msg, s.id)
	}
	if verdict != accepted {
		d.mu.Unlock()
		switch verdict {
		case malformed:
			d.path.sink.Drop(observe.DropMalformed)
		case wrongID:
			d.path.sink.Drop(observe.DropWrongID)
		case wrongQuestion:
			d.path.sink.Drop(observe.DropWrongQuestion)
		}
		return true
	}
	d.detach(s)
	_, open := d.sockets[s]
	keep := open && s.uses < datagramUses && now.Sub(s.born) < datagramLife
	if limit := d.path.server.config.MaxIdle; limit > 0 && len(d.idle) >= limit {
		keep = false
	}
	if keep {
		d.idle = append(d.idle, s)
		d.clock.wakeBy(s.born.Add(datagramLife))
	} else if open {
		d.remove(s)
	}
	d.mu.Unlock()

	reply := bytes.Clone(msg)
	if cut {
		reply[2] |= bitTC
	}
	d.path.rtt.sample(now.Sub(c.start), now)
	d.path.answered(now)
	c.finish(reply, observe.OutcomeOf(int(reply[3]&0x0f)), nil, now)
	return keep
}

// round ends calls whose time is over and closes sockets that are old.
func (d *datagramPool) round(now time.Time) {
	var expired []*call
	d.mu.Lock()
	next := time.Time{}
	for c := d.waiting.head; c != nil; {
		following := c.next
		if now.Before(c.expire) {
			next = sooner(next, c.expire)
		} else {
			d.detach(c.socket)
			d.remove(c.socket)
			expired = append(expired, c)
		}
		c = following
	}
	kept := d.idle[:0]
	for _, s := range d.idle {
		if old := s.born.Add(datagramLife); now.Before(old) {
			next = sooner(next, old)
			kept = append(kept, s)
		} else {
			d.remove(s)
		}
	}
	clear(d.idle[len(kept):])
	d.idle = kept
	d.clock.rest(next, now)
	d.mu.Unlock()

	for _, c := range expired {
		if d.path.silentSince(c.start) { // else it is one name that is slow
			d.path.failed(now)
		}
		c.finish(nil, observe.Timeout, errSilent, now)
	}
}

func (d *datagramPool) close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	d.idle = nil
	d.clock.stop()
	for s := range d.sockets {
		s.conn.Close() // the reader ends the call
	}
}

func (d *datagramPool) load() (sockets, waiting int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.sockets), d.waiting.n
}

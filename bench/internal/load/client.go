package load

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/bench/internal/mmsg"
)

// slot is a query that may be on its way.
type slot struct {
	query      [512]byte
	length     int
	generation byte // distinguishes an answer from one to the slot's previous query
	expect     Expect
	busy       bool
	counts     bool          // it was due while the run counts
	due        time.Duration // latency counts from here
	sent       time.Duration // the timeout counts from here
	tries      int
}

// client is a socket and its queries. A query's ID is its slot's generation and number.
type client struct {
	fd    int
	in    *mmsg.Batch
	out   *mmsg.Batch
	slots []slot
	free  []int
	queue []int // slots whose query must be sent
}

func newClient(server netip.AddrPort, slots int) (*client, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}); err != nil {
		return nil, errors.Join(fmt.Errorf("load: connect to %v: %w", server, err), unix.Close(fd))
	}
	c := &client{
		fd: fd, in: mmsg.New(batch, 2048, false), out: mmsg.New(slots, 512, false),
		slots: make([]slot, slots),
	}
	for i := range slots {
		c.free = append(c.free, i)
	}
	return c, nil
}

func (c *client) close() error { return unix.Close(c.fd) }

func (c *client) hasRoom() bool { return len(c.free) > 0 }

// ask queues the next query of a source; it returns false if there is none.
func (c *client) ask(source Source, due, now time.Duration, counts bool) bool {
	i := c.free[len(c.free)-1]
	s := &c.slots[i]
	if s.length, s.expect = source.Next(s.query[:]); s.length == 0 {
		return false
	}
	c.free = c.free[:len(c.free)-1]
	s.busy, s.counts, s.due, s.tries = true, counts, due, 0
	c.again(i, now)
	return true
}

// again queues the query of a slot under a new ID.
func (c *client) again(i int, now time.Duration) {
	s := &c.slots[i]
	s.generation++
	s.query[0], s.query[1] = s.generation, byte(i)
	s.sent = now
	s.tries++
	c.queue = append(c.queue, i)
}

// release frees a slot.
func (c *client) release(i int) {
	c.slots[i].busy = false
	c.free = append(c.free, i)
}

// flush sends the queued queries. Datagrams that the socket refuses count as lost later.
func (c *client) flush() {
	for len(c.queue) > 0 {
		n := min(len(c.queue), c.out.Len())
		for k, i := range c.queue[:n] {
			s := &c.slots[i]
			c.out.SetLen(k, copy(c.out.Buffer(k), s.query[:s.length]))
		}
		for sent := 0; sent < n; {
			k, err := c.out.Send(c.fd, sent, n)
			sent += k
			if err != nil {
				sent++ // ECONNREFUSED reports an earlier datagram; a server that is away loses all of them
			}
		}
		c.queue = append(c.queue[:0], c.queue[n:]...)
	}
}

// receive reads the available answers and returns the number of datagrams.
func (r *runner) receive() (int, error) {
	total := 0
	for _, c := range r.clients {
		n, err := c.in.Recv(c.fd)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return total, fmt.Errorf("load: receive: %w", err)
		}
		total += n
		now := r.now()
		for i := range n {
			r.answer(c, c.in.Message(i), now)
		}
		c.flush() // retries
	}
	return total, nil
}

// answer notes one datagram.
func (r *runner) answer(c *client, m []byte, now time.Duration) {
	var s *slot
	if len(m) >= 12 && m[2]&0x80 != 0 && int(m[1]) < len(c.slots) {
		s = &c.slots[m[1]]
	}
	if s == nil || !s.busy || s.generation != m[0] || len(m) < s.length || !bytes.Equal(m[12:s.length], s.query[12:s.length]) {
		r.res.Stray++
		return
	}
	r.res.Answered++
	rcode := m[3] & 15
	if (rcode == 2 || rcode == 5) && s.tries <= r.cfg.Retry {
		c.again(int(m[1]), now)
		return
	}
	r.waiting--
	c.release(int(m[1]))
	if !s.counts {
		return
	}
	r.res.Latency.Add(now - s.due)
	r.res.Rcodes[rcode]++
	if !s.expect.met(m) {
		r.res.Wrong++
	}
}

// met reports whether an answer of at least 12 bytes is the expected one. A truncated one is not.
func (e Expect) met(m []byte) bool {
	rcode, records, truncated := m[3]&15, int(m[6])<<8|int(m[7]), m[2]&2 != 0
	switch e {
	case Records:
		return rcode == 0 && records > 0 && !truncated
	case NXDomain:
		return rcode == 3 && records == 0 && !truncated
	default:
		return true
	}
}

// expire gives up queries without an answer after their timeout, or repeats them.
func (r *runner) expire(now time.Duration) {
	for _, c := range r.clients {
		for i := range c.slots {
			s := &c.slots[i]
			if !s.busy || now-s.sent < r.cfg.Timeout {
				continue
			}
			if s.tries <= r.cfg.Retry {
				c.again(i, now)
				continue
			}
			r.waiting--
			c.release(i)
			if s.counts {
				r.res.Lost++
				r.res.Latency.Add(now - s.due)
			}
		}
		c.flush()
	}
}

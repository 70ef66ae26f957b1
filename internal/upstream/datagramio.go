package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

const (
	// datagramBuffer has room for the size that is offered by EDNS. A longer datagram was not asked for; it is cut
	// and counts as truncated.
	datagramBuffer = 2048
	// datagramDrain is the idle time after which a socket is emptied before its next call, so that an attacker gets
	// no head start at guessing IDs. Datagrams that arrive within less time would also arrive within a round trip.
	datagramDrain = time.Millisecond
	// maxDrain bounds the emptying. The kernel's buffer holds a few hundred small datagrams; the rest is dropped
	// while the call waits.
	maxDrain = 512
)

// datagramBuffers holds read buffers. One is taken when there may be something to read, not while a call waits.
var datagramBuffers = sync.Pool{New: func() any { return new([datagramBuffer]byte) }}

// datagramSocket is used by one goroutine at a time: the one that makes the call.
//
// A query and its answer cost one write and one read. Go's net.Conn would read once more without success before it
// waits, because it cannot know that nothing has arrived. Here the poller is armed before the query is written, so
// that an answer cannot arrive unnoticed before the wait.
type datagramSocket struct {
	sink  observe.Sink
	conn  net.Conn
	raw   syscall.RawConn
	ready func(fd uintptr) bool // step, bound once
	local netip.AddrPort
	born  time.Time
	uses  int

	idleSince time.Time
	deadline  time.Time // read deadline; zero: none

	call     *call
	id       uint16
	drain    bool // before the query is sent
	sent     bool
	answered bool
	failed   error
	out      []byte
}

func newDatagramSocket(sink observe.Sink, conn net.Conn, now time.Time) (*datagramSocket, error) {
	s := &datagramSocket{sink: sink, conn: conn, born: now}
	c, ok := conn.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("a %T is not a socket", conn)
	}
	var err error
	if s.raw, err = c.SyscallConn(); err != nil {
		return nil, err
	}
	s.ready = s.step
	if a, ok := conn.LocalAddr().(*net.UDPAddr); ok {
		s.local = a.AddrPort()
	}
	return s, nil
}

// assign makes s the socket of c, with a new ID.
func (s *datagramSocket) assign(c *call, reused bool) {
	s.call, s.id = c, uint16(rand.Uint32())
	s.drain = reused && c.start.Sub(s.idleSince) > datagramDrain
	s.sent, s.answered, s.failed = false, false, nil
	s.uses++
	c.reused, c.local = reused, s.local
	if reused {
		c.age = c.start.Sub(s.born)
	}
}

// await sends the call if necessary and waits for its end. It returns false if until came first.
func (s *datagramSocket) await(until time.Time) bool {
	// A deadline that is too early costs one extra round; setting one for each call costs more. Half of the wait is
	// early enough to look again.
	if half := until.Add(-until.Sub(s.call.start) / 2); s.deadline.Before(half) || s.deadline.After(until) {
		if !s.wakeAt(until) {
			return true
		}
	}
	for {
		err := s.raw.Read(s.ready)
		switch {
		case s.answered, s.failed != nil:
			return true
		case err != nil && !errors.Is(err, os.ErrDeadlineExceeded):
			s.failed = err
			return true
		case !time.Now().Before(until):
			return false
		case !s.wakeAt(until):
			return true
		}
	}
}

// wakeAt sets the deadline of reads. It is false where that fails, which ends the call.
func (s *datagramSocket) wakeAt(t time.Time) bool {
	s.deadline = t
	s.failed = s.conn.SetReadDeadline(t)
	return s.failed == nil
}

// rest clears a deadline that no call needs any more.
func (s *datagramSocket) rest() {
	if !s.deadline.IsZero() && s.conn.SetReadDeadline(time.Time{}) == nil {
		s.deadline = time.Time{}
	}
}

// step does the pending work on the socket and reports whether the wait is over. The poller calls it at first and
// whenever the socket may be readable.
func (s *datagramSocket) step(fd uintptr) bool {
	if s.sent {
		return s.read(fd)
	}
	if s.drain && !s.empty(fd) {
		return true
	}
	s.out = append(s.out[:0], s.call.wire...)
	binary.BigEndian.PutUint16(s.out, s.id)
	_, errno := rawWrite(fd, s.out)
	if s.sent = errno == 0; !s.sent {
		s.failed = os.NewSyscallError("write", errno)
	}
	return !s.sent
}

// empty drops what arrived before the query was sent. It returns false if the socket has failed.
func (s *datagramSocket) empty(fd uintptr) bool {
	buffer := datagramBuffers.Get().(*[datagramBuffer]byte)
	defer datagramBuffers.Put(buffer)
	for range maxDrain {
		switch _, errno := rawRead(fd, buffer[:]); errno {
		case 0:
			s.sink.Drop(observe.DropWrongID)
		case unix.EAGAIN:
			return true
		default:
			s.failed = os.NewSyscallError("read", errno)
			return false
		}
	}
	return true
}

// read reads what has arrived. A datagram that is not the answer is dropped and counted, and the wait continues: it
// may be a forgery that arrived before the answer.
func (s *datagramSocket) read(fd uintptr) bool {
	buffer := datagramBuffers.Get().(*[datagramBuffer]byte)
	defer datagramBuffers.Put(buffer)
	for n := 1; ; n++ {
		size, errno := rawRead(fd, buffer[:])
		switch errno {
		case 0:
			if s.received(buffer[:size], size == len(buffer)) {
				return true
			}
		case unix.EAGAIN:
			return false
		default:
			s.failed = os.NewSyscallError("read", errno)
			return true
		}
		// The poller enforces the deadline, but it is not consulted while datagrams arrive faster than they are read.
		if n%64 == 0 && !time.Now().Before(s.deadline) {
			return true
		}
	}
}

// received handles a datagram and reports whether it is the answer.
func (s *datagramSocket) received(msg []byte, cut bool) bool {
	verdict := wrongID
	switch {
	case len(msg) < headerLen:
		verdict = malformed
	case binary.BigEndian.Uint16(msg) == s.id:
		verdict = s.call.q.judge(msg)
	}
	switch verdict {
	case malformed:
		s.sink.Drop(observe.DropMalformed)
	case wrongID:
		s.sink.Drop(observe.DropWrongID)
	case wrongQuestion:
		s.sink.Drop(observe.DropWrongQuestion)
	case accepted:
		reply := s.call.keep(msg)
		if cut {
			reply[2] |= bitTC
		}
		s.call.reply = reply
		s.answered = true
	}
	return s.answered
}

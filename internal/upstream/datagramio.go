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
	// datagramBuffer has room for what we offer by EDNS. Longer datagrams were not asked for; they
	// are cut and count as truncated.
	datagramBuffer = 2048
	// datagramDrain is after how long an idle socket is emptied before its next call, so that nobody
	// gets a start with guessing IDs. What comes in less is what comes in a round trip anyway.
	datagramDrain = time.Millisecond
	// drainMost bounds the emptying. The kernel's buffer holds a few hundred small datagrams; what
	// is left is dropped while the call waits.
	drainMost = 512
)

// datagramBuffers are for reading. They are taken when there may be something to read, not while a
// call waits.
var datagramBuffers = sync.Pool{New: func() any { return new([datagramBuffer]byte) }}

// datagramSocket is used by one goroutine at a time: the one that carries its call.
//
// A query and its answer are one write and one read. Go's net.Conn would read once more, in vain,
// before it waits: it cannot know that nothing has come. Here the query is written after the poller was
// told to listen, so that an answer cannot come unnoticed before the wait.
type datagramSocket struct {
	sink  observe.Sink
	conn  net.Conn
	raw   syscall.RawConn
	ready func(fd uintptr) bool // step, bound once
	local netip.AddrPort
	born  time.Time
	uses  int

	idleSince time.Time
	deadline  time.Time // of reads; zero: none

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

// assign makes s the socket of c, with an ID of its own.
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

// await sends the call, if that is still to do, and waits for its end. It is false where until came
// first.
func (s *datagramSocket) await(until time.Time) bool {
	// A deadline that comes too early costs one round more, a new one for each call costs more. Half of
	// the wait is soon enough to be asked again.
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

// rest takes back a deadline that nobody waits for any more.
func (s *datagramSocket) rest() {
	if !s.deadline.IsZero() && s.conn.SetReadDeadline(time.Time{}) == nil {
		s.deadline = time.Time{}
	}
}

// step does what there is to do on the socket and reports whether the wait is over. The poller calls it,
// at first and whenever something may have come.
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

// empty throws away what came before the query was sent. It is false where the socket has failed.
func (s *datagramSocket) empty(fd uintptr) bool {
	buffer := datagramBuffers.Get().(*[datagramBuffer]byte)
	defer datagramBuffers.Put(buffer)
	for range drainMost {
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

// read takes what has come. What is not the answer is dropped and counted, and the wait goes on: it may
// be a forgery that came before the answer.
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
		// The poller knows the deadline, but is not asked while more comes than can be read.
		if n%64 == 0 && !time.Now().Before(s.deadline) {
			return true
		}
	}
}

// received takes a datagram and tells whether it is the answer.
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

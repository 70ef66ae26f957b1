package upstream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds: of answers that wait for their time, of bytes of one connection's answers that are written at
// once, and of connections.
const (
	maxWaiting     = 1 << 17
	maxWrite       = 64 << 10
	maxConnections = 4096
)

const (
	socketBuffer = 4 << 20 // bytes, asked of the kernel for UDP
	writeTimeout = 2 * time.Second
	// tooShortToSleep is by how much a sleep of the kernel is late anyway.
	tooShortToSleep = 15 * time.Microsecond
)

// Counters count the queries since the server's start.
type Counters struct {
	UDP         int64 `json:"udp"`         // queries over UDP
	TCP         int64 `json:"tcp"`         // queries over TCP
	Connections int64 `json:"connections"` // TCP connections accepted
}

// Server is a running upstream.
type Server struct {
	udp    *net.UDPConn
	tcp    *net.TCPListener
	delay  atomic.Int64 // nanoseconds
	queue  chan waiting
	owned  sync.WaitGroup
	ctx    context.Context // ends with Close
	cancel context.CancelFunc

	udpQueries, tcpQueries, accepted, open atomic.Int64
}

// waiting is a delayed answer, with its length before it for a connection.
type waiting struct {
	due    time.Time
	answer []byte
	to     netip.AddrPort
	conn   *connection // nil for UDP
}

// connection serializes the writers of a TCP connection.
type connection struct {
	net.Conn
	mu sync.Mutex
}

// Listen starts a server on UDP and TCP of an IPv4 address and port.
func Listen(addr netip.AddrPort) (*Server, error) {
	udp, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(addr))
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	bound, _ := udp.LocalAddr().(*net.UDPAddr)
	tcp, err := net.ListenTCP("tcp4", net.TCPAddrFromAddrPort(bound.AddrPort()))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("upstream: %w", err), udp.Close())
	}
	if err := errors.Join(udp.SetReadBuffer(socketBuffer), udp.SetWriteBuffer(socketBuffer)); err != nil {
		return nil, errors.Join(err, udp.Close(), tcp.Close())
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{udp: udp, tcp: tcp, queue: make(chan waiting, maxWaiting), ctx: ctx, cancel: cancel}
	s.owned.Go(s.serveUDP)
	s.owned.Go(s.accept)
	s.owned.Go(s.sendWhenDue)
	return s, nil
}

// Addr returns the listening address.
func (s *Server) Addr() netip.AddrPort {
	a, _ := s.udp.LocalAddr().(*net.UDPAddr)
	return a.AddrPort()
}

// SetDelay sets the delay of answers to queries that arrive from now on.
func (s *Server) SetDelay(d time.Duration) { s.delay.Store(int64(d)) }

// Counters returns the counts so far.
func (s *Server) Counters() Counters {
	return Counters{UDP: s.udpQueries.Load(), TCP: s.tcpQueries.Load(), Connections: s.accepted.Load()}
}

// Close ends the server and waits for its goroutines.
func (s *Server) Close() error {
	s.cancel()
	err := errors.Join(s.udp.Close(), s.tcp.Close())
	s.owned.Wait()
	return err
}

func (s *Server) serveUDP() {
	buf := make([]byte, 4096)
	var out []byte
	for {
		n, from, err := s.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		s.udpQueries.Add(1)
		if d := time.Duration(s.delay.Load()); d > 0 {
			if a := Answer(nil, buf[:n]); len(a) > 0 && !s.later(waiting{due: time.Now().Add(d), answer: a, to: from}) {
				return
			}
			continue
		}
		if out = Answer(out[:0], buf[:n]); len(out) > 0 {
			s.send(out, from)
		}
	}
}

// send drops what the socket does not accept: UDP is unreliable, and the client counts it as lost.
func (s *Server) send(answer []byte, to netip.AddrPort) {
	_, _ = s.udp.WriteToUDPAddrPort(answer, to)
}

// later queues an answer. It returns false if the server ends.
func (s *Server) later(w waiting) bool {
	select {
	case s.queue <- w:
		return true
	case <-s.ctx.Done():
		return false
	}
}

func (s *Server) accept() {
	for {
		c, err := s.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(time.Millisecond) // out of file descriptors, until some close
			continue
		}
		s.accepted.Add(1)
		if s.open.Add(1) > maxConnections {
			s.open.Add(-1)
			_ = c.Close()
			continue
		}
		s.owned.Go(func() {
			defer s.open.Add(-1)
			s.serveTCP(&connection{Conn: c})
		})
	}
}

// serveTCP answers the queries of a connection in their order. Queries that were read at once and have no delay are
// answered with one write.
func (s *Server) serveTCP(c *connection) {
	defer c.Close()
	defer context.AfterFunc(s.ctx, func() { c.Close() })()
	buf := make([]byte, 0, 1<<17) // the longest message fits twice
	var out []byte
	for {
		n, err := c.Read(buf[len(buf):cap(buf)])
		if err != nil {
			return
		}
		buf = buf[:len(buf)+n]
		now, d := time.Now(), time.Duration(s.delay.Load())
		out = out[:0]
		rest := buf
		for len(rest) >= 2 {
			size := int(binary.BigEndian.Uint16(rest))
			if len(rest) < 2+size {
				break
			}
			q := rest[2 : 2+size]
			rest = rest[2+size:]
			s.tcpQueries.Add(1)
			if d > 0 {
				a := framed(nil, q)
				if a == nil || !s.later(waiting{due: now.Add(d), answer: a, conn: c}) {
					return
				}
				continue
			}
			if out = framed(out, q); out == nil {
				return
			}
		}
		buf = buf[:copy(buf, rest)]
		if len(out) > 0 && !c.write(out) {
			return
		}
	}
}

// framed appends the answer to q with its length before it (RFC 1035, section 4.2.2); nil if q is no query.
func framed(dst, q []byte) []byte {
	at := len(dst)
	dst = Answer(append(dst, 0, 0), q)
	if len(dst) == at+2 {
		return nil
	}
	binary.BigEndian.PutUint16(dst[at:], uint16(len(dst)-at-2))
	return dst
}

func (c *connection) write(b []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return false
	}
	_, err := c.Write(b)
	return err == nil
}

// sendWhenDue sends the answers of the queue, which stand in the order of their time. Those of one
// connection that are due together go in one write.
func (s *Server) sendWhenDue() {
	// Go's timers fire up to a millisecond late, which is as long as the delay itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// An error leaves the default of 50 µs: later, but no less right.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	var out []byte
	var of *connection // whose answers are in out
	flush := func() {
		if len(out) > 0 && !of.write(out) {
			_ = of.Close() // ends its reader
		}
		out, of = out[:0], nil
	}
	for {
		var w waiting
		select {
		case w = <-s.queue:
		default:
			flush()
			select {
			case w = <-s.queue:
			case <-s.ctx.Done():
				return
			}
		}
		if d := time.Until(w.due); d > tooShortToSleep {
			flush()
			ts := unix.NsecToTimespec(int64(d))
			_ = unix.Nanosleep(&ts, nil) // ended early by a signal, an answer is early
		}
		if w.conn == nil {
			s.send(w.answer, w.to)
			continue
		}
		if of != w.conn || len(out) > maxWrite {
			flush()
		}
		of, out = w.conn, append(out, w.answer...)
	}
}

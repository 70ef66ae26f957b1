package forward

import (
	"encoding/binary"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// upstream answers every question with one A record after a delay, over UDP and TCP. Questions that
// are pipelined on one connection wait side by side, as they would on the way to a server far away.
type upstream struct {
	addr     string
	delay    atomic.Int64 // nanoseconds
	silent   atomic.Bool  // accept and read, never answer
	conns    atomic.Int64 // TCP connections accepted
	queries  atomic.Int64
	listener net.Listener
	packets  *net.UDPConn
	done     sync.WaitGroup

	mu   sync.Mutex
	open map[net.Conn]bool
}

func startUpstream(b testing.TB, delay time.Duration) *upstream {
	b.Helper()
	l, err := net.Listen("tcp", freePort(b))
	if err != nil {
		b.Fatal(err)
	}
	pc, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Addr().(*net.TCPAddr).AddrPort()))
	if err != nil {
		b.Fatal(err)
	}
	u := &upstream{addr: l.Addr().String(), listener: l, packets: pc, open: map[net.Conn]bool{}}
	u.delay.Store(int64(delay))
	u.done.Go(u.serveUDP)
	u.done.Go(u.accept)
	b.Cleanup(u.close)
	return u
}

func (u *upstream) close() {
	u.listener.Close()
	u.packets.Close()
	u.mu.Lock()
	for c := range u.open {
		c.Close()
	}
	u.mu.Unlock()
	u.done.Wait()
}

// later is an answer that is due.
type later struct {
	at  time.Time
	msg []byte
	to  net.Addr // UDP
}

func (u *upstream) serveUDP() {
	out := make(chan later, 1<<14)
	defer close(out)
	u.done.Go(func() {
		for l := range out {
			time.Sleep(time.Until(l.at))
			u.packets.WriteTo(l.msg, l.to)
		}
	})
	buf := make([]byte, 4096)
	for {
		n, from, err := u.packets.ReadFrom(buf)
		if err != nil {
			return
		}
		u.queries.Add(1)
		if !u.silent.Load() {
			out <- later{at: time.Now().Add(time.Duration(u.delay.Load())), msg: answer(nil, buf[:n]), to: from}
		}
	}
}

func (u *upstream) accept() {
	for {
		c, err := u.listener.Accept()
		if err != nil {
			return
		}
		u.conns.Add(1)
		u.mu.Lock()
		u.open[c] = true
		u.mu.Unlock()
		u.done.Go(func() {
			u.serveTCP(c)
			u.mu.Lock()
			delete(u.open, c)
			u.mu.Unlock()
		})
	}
}

func (u *upstream) serveTCP(c net.Conn) {
	out := make(chan later, 1<<12)
	var writer sync.WaitGroup
	writer.Go(func() {
		var batch []byte
		for l := range out {
			time.Sleep(time.Until(l.at))
			batch = append(batch[:0], l.msg...)
			// What is due by now goes with it.
			for more := true; more && len(out) > 0; {
				l = <-out
				if wait := time.Until(l.at); wait > 50*time.Microsecond {
					if _, err := c.Write(batch); err != nil {
						c.Close()
					}
					batch = batch[:0]
					time.Sleep(wait)
					more = false
				}
				batch = append(batch, l.msg...)
			}
			if _, err := c.Write(batch); err != nil {
				c.Close()
			}
		}
	})
	defer func() { close(out); writer.Wait(); c.Close() }()
	var length [2]byte
	in := newReader(c)
	for {
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(in, q); err != nil {
			return
		}
		u.queries.Add(1)
		if u.silent.Load() {
			continue
		}
		m := answer([]byte{0, 0}, q)
		binary.BigEndian.PutUint16(m, uint16(len(m)-2))
		out <- later{at: time.Now().Add(time.Duration(u.delay.Load())), msg: m}
	}
}

// answer appends the answer to q, which is well-formed and asks one question, to dst.
func answer(dst, q []byte) []byte {
	start, end := len(dst), 12
	for q[end] != 0 {
		end += int(q[end]) + 1
	}
	end += 5
	dst = append(dst, q[:end]...)
	h := dst[start:]
	h[2], h[3] = 0x80|q[2]&1, 0x80
	copy(h[4:12], []byte{0, 1, 0, 1, 0, 0, 0, 0})
	dst = append(dst, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1)
	if q[11] > 0 {
		dst[start+11] = 1
		dst = append(dst, 0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0)
	}
	return dst
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

// TestStuckWrite: an upstream that accepts and never reads closes its window. The connection ends long before the
// calls on it do, and blocks neither the writer's goroutine nor the callers.
func TestStuckWrite(t *testing.T) {
	// Connections get the buffer of the socket that listens. Set later, the window is open already.
	small := net.ListenConfig{Control: func(_, _ string, conn syscall.RawConn) error {
		var failed error
		err := conn.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 2048)
		})
		return errors.Join(err, failed)
	}}
	l, err := small.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	accepted := make(chan net.Conn, 64)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		l.Close()
		for c := range accepted {
			c.Close()
		}
	}()
	dial := NewDialer()
	real := dial.Stream
	dial.Stream = func(ctx context.Context, source netip.Addr, remote netip.AddrPort) (net.Conn, error) {
		c, err := real(ctx, source, remote)
		if err == nil {
			err = c.(*net.TCPConn).SetWriteBuffer(2048)
		}
		return c, err
	}
	config := GroupConfig{ForceTCP: true, Servers: []ServerConfig{{
		Addr: l.Addr().(*net.TCPAddr).AddrPort(), Health: NewHealth(), MaxConns: 1, ReadTimeout: time.Minute,
	}}}
	g := openGroupWith(t, dial, Limits{}, config)
	path := g.servers[0].stream

	const calls = 100
	results := make(chan *call, calls)
	long := strings.Repeat("a-label-of-forty-octets-to-fill-a-window.", 5)
	submit := func(i int) {
		q, err := newQuestion(ask(fmt.Sprintf("n%d.%sexample.", i, long)))
		if err != nil {
			t.Error(err)
			return
		}
		now := time.Now()
		path.submit(&call{path: path, q: q, wire: q.wire, results: results, attempt: 1, start: now, expire: now.Add(time.Minute)})
	}
	// The first ones go out together when the connection is open; the callers write the others.
	for i := range calls {
		submit(i)
		if i == calls/4 {
			for path.pool.(*streamPool).opened() == 0 {
				time.Sleep(time.Millisecond)
			}
		}
	}
	stuck := 0
	patience := time.After(30 * time.Second)
	for range calls {
		select {
		case c := <-results:
			c.report()
			if errors.Is(c.err, errStuck) {
				stuck++
			}
			if c.outcome != observe.Reset {
				t.Errorf("a call ended with %s, %v", c.outcome, c.err)
			}
		case <-patience:
			t.Fatalf("%d calls of %d have ended by the stuck write, the others wait for it", stuck, calls)
		}
	}
	if stuck == 0 {
		t.Error("no call ended by the stuck write")
	}
}

// TestSlowLorisIsAFailure: a server that worked and then answers octet by octet fails, unlike one that closes a
// connection.
func TestSlowLorisIsAFailure(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true, Budget: 2 * time.Second, Servers: []ServerConfig{
		{Addr: f.addr, Health: NewHealth(), ReadTimeout: time.Minute}, // so that no other failure is counted
	}})
	g.mustAnswer(t, "works.example.", observe.TCP)
	f.set(func(*dns.Msg, observe.Proto, int) fault { return fault{slow: true} })
	if _, err := g.Exchange(context.Background(), Query{Msg: ask("slow.example."), Proto: observe.TCP}); err == nil {
		t.Fatal("it answered")
	}
	path := g.servers[0].stream
	path.mu.Lock()
	defer path.mu.Unlock()
	if path.fails == 0 {
		t.Error("no failure was counted")
	}
}

// opened is how many connections are open.
func (p *streamPool) opened() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		if c.conn != nil {
			n++
		}
	}
	return n
}

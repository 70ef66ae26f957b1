package sockets

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

// TestLeaveUDP makes a socket leave with a query in its queue: that query is still answered, and the next one passes
// it, at first to no socket and then to that of another process.
func TestLeaveUDP(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		t.Run(local, func(t *testing.T) {
			nettest.NewNamespace(t)
			old := listenReusePort(t, netip.AddrPortFrom(netip.MustParseAddr(local), 0))
			at := old.LocalAddr().(*net.UDPAddr).AddrPort()
			bound := at.Addr().Unmap()
			to := net.JoinHostPort(map[bool]string{true: "::1", false: "127.0.0.1"}[bound.Is6()], port(at))

			queued := dial(t, to)
			send(t, queued, "queued")
			want := 1
			addrs, wildcard := []netip.Addr{bound}, false
			if bound.IsUnspecified() {
				if n, err := LeaveUDP([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, at.Port(), false); n != 0 || err != nil {
					t.Errorf("left %d sockets bound to everything, %v: they are not ours", n, err)
				}
				addrs, wildcard = nil, true
			}
			if n, err := LeaveUDP(addrs, at.Port(), wildcard); n != want || err != nil {
				t.Fatalf("left %d sockets, %v, want %d", n, err, want)
			}

			late := dial(t, to)
			send(t, late, "late")
			if _, err := late.Read(make([]byte, 16)); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a query after that: %v, want it refused", err)
			}
			answer(t, old, "queued")
			receive(t, queued, "answer to queued")

			// Another process would have its socket in the same group.
			other := listenReusePort(t, at)
			for range 20 { // the group would share them out
				c := dial(t, to)
				send(t, c, "new")
				answer(t, other, "new")
				receive(t, c, "answer to new")
			}
		})
	}
}

func port(at netip.AddrPort) string {
	_, p, _ := net.SplitHostPort(at.String())
	return p
}

func listenReusePort(t *testing.T, addr netip.AddrPort) *net.UDPConn {
	t.Helper()
	lc := net.ListenConfig{Control: reusePort}
	network := map[bool]string{true: "udp6", false: "udp4"}[addr.Addr().Is6()]
	conn, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn.(*net.UDPConn)
}

func reusePort(_, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
	})
	return errors.Join(err, set)
}

func dial(t *testing.T, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func send(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// answer reads one query and answers it like a DNS server: to the address that it came from.
func answer(t *testing.T, conn *net.UDPConn, want string) {
	t.Helper()
	buf := make([]byte, 64)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("read %q, %v, want %q", buf[:n], err, want)
	}
	if _, err := conn.WriteToUDPAddrPort([]byte("answer to "+want), from); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, want string) {
	t.Helper()
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil || string(buf[:n]) != want {
		t.Fatalf("received %q, %v, want %q", buf[:n], err, want)
	}
}

// TestLeaveTCP makes a listener leave while a connection waits to be accepted and another one's query is unread: both
// are still answered, and later ones go to the listener of another process.
func TestLeaveTCP(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1", "0.0.0.0"} {
		t.Run(local, func(t *testing.T) {
			nettest.NewNamespace(t)
			old := listenTCPReusePort(t, netip.AddrPortFrom(netip.MustParseAddr(local), 0))
			at := old.Addr().(*net.TCPAddr).AddrPort()
			bound := at.Addr().Unmap()
			to := net.JoinHostPort(map[bool]string{true: "::1", false: "127.0.0.1"}[bound.Is6()], port(at))

			unread := dialTCP(t, to)
			accepted := acceptTCP(t, old)
			send(t, unread, "unread")
			waiting := dialTCP(t, to)
			send(t, waiting, "waiting")

			addrs, wildcard := []netip.Addr{bound}, bound.IsUnspecified()
			if n, err := LeaveTCP([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, at.Port(), false); n != 0 || err != nil {
				t.Errorf("left %d listeners, %v: they are not ours", n, err)
			}
			type result struct {
				n   int
				err error
			}
			left := make(chan result)
			go func() {
				n, err := LeaveTCP(addrs, at.Port(), wildcard)
				left <- result{n, err}
			}()
			late := acceptTCP(t, old)
			if r := <-left; r.n != 1 || r.err != nil {
				t.Fatalf("left %d listeners, %v, want 1", r.n, r.err)
			}
			answerTCP(t, late, "waiting")
			receive(t, waiting, "answer to waiting")
			answerTCP(t, accepted, "unread")
			receive(t, unread, "answer to unread")

			if c, err := net.DialTimeout("tcp", to, 10*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("a connection after that: %v, %v, want it refused", c, err)
			}
			other := listenTCPReusePort(t, at)
			for range 20 { // the group would share them out
				c := dialTCP(t, to)
				send(t, c, "new")
				answerTCP(t, acceptTCP(t, other), "new")
				receive(t, c, "answer to new")
			}
		})
	}
}

func listenTCPReusePort(t *testing.T, addr netip.AddrPort) *net.TCPListener {
	t.Helper()
	lc := net.ListenConfig{Control: reusePort}
	network := map[bool]string{true: "tcp6", false: "tcp4"}[addr.Addr().Is6()]
	l, err := lc.Listen(context.Background(), network, addr.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

func dialTCP(t *testing.T, to string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", to, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func acceptTCP(t *testing.T, l *net.TCPListener) net.Conn {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func answerTCP(t *testing.T, c net.Conn, want string) {
	t.Helper()
	receive(t, c, want)
	send(t, c, "answer to "+want)
}

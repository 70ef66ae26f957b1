package nodenet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLeaveUDP has a socket leave with a query in its queue: that one is still answered, and the next goes
// past it, to nobody at first and then to the socket of another.
func TestLeaveUDP(t *testing.T) {
	for _, local := range []string{"127.0.0.1", "::1", "0.0.0.0", "::"} {
		t.Run(local, func(t *testing.T) {
			newNamespace(t)
			old := listenReusePort(t, netip.AddrPortFrom(netip.MustParseAddr(local), 0))
			at := old.LocalAddr().(*net.UDPAddr).AddrPort()
			bound := at.Addr().Unmap()
			to := net.JoinHostPort(map[bool]string{true: "::1", false: "127.0.0.1"}[bound.Is6()], port(at))

			queued := dial(t, to)
			send(t, queued, "queued")
			want := 1
			addrs, wildcard := []netip.Addr{bound}, false
			if bound.IsUnspecified() {
				if n, err := leaveUDP([]netip.Addr{netip.MustParseAddr("192.0.2.1")}, at.Port(), false); n != 0 || err != nil {
					t.Errorf("left %d sockets bound to everything, %v: they are not ours", n, err)
				}
				addrs, wildcard = nil, true
			}
			if n, err := leaveUDP(addrs, at.Port(), wildcard); n != want || err != nil {
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
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)
		}), err)
	}}
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

// answer reads one query and answers it, as a DNS server does: to the address that it came from.
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

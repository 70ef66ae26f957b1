package mmsg

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socket opens a UDP socket on loopback whose descriptor may be used directly.
func socket(t *testing.T) (fd int, addr *net.UDPAddr) {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := rc.Control(func(f uintptr) { fd = int(f) }); err != nil {
		t.Fatal(err)
	}
	return fd, c.LocalAddr().(*net.UDPAddr)
}

func TestReplyToManyClients(t *testing.T) {
	fd, addr := socket(t)
	b := New(8, 32, true)
	if _, err := b.Recv(fd); !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("an empty socket gives %v, want EAGAIN", err)
	}
	var clients []*net.UDPConn
	for i := range 3 {
		c, err := net.DialUDP("udp4", nil, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
		if _, err := fmt.Fprintf(c, "question %d%s", i, []string{"", "long", ""}[i]); err != nil {
			t.Fatal(err)
		}
	}
	n, err := b.Recv(fd)
	if err != nil || n != 3 {
		t.Fatalf("received %d, %v; want the 3 that were sent", n, err)
	}
	for i := range n {
		if from, want := b.From(i), clients[i].LocalAddr().String(); from.String() != want {
			t.Errorf("datagram %d came from %v, want %s", i, from, want)
		}
		b.Message(i)[0] = 'Q'
		b.SetLen(i, len(b.Message(i)))
	}
	if n, err := b.Send(fd, 0, n); err != nil || n != 3 {
		t.Fatalf("sent %d, %v", n, err)
	}
	for i, c := range clients {
		buf := make([]byte, 64)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if want := fmt.Sprintf("Question %d%s", i, []string{"", "long", ""}[i]); err != nil || string(buf[:n]) != want {
			t.Errorf("client %d got %q, %v; want %q", i, buf[:n], err, want)
		}
	}
}

func TestLongerThanItsRoom(t *testing.T) {
	fd, addr := socket(t)
	c, err := net.DialUDP("udp4", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	b := New(2, 32, true)
	if n, err := b.Recv(fd); err != nil || n != 1 || len(b.Message(0)) != 32 {
		t.Fatalf("received %d, %v, %d bytes; want one that is cut to 32", n, err, len(b.Message(0)))
	}
}

func TestNoAllocation(t *testing.T) {
	fd, addr := socket(t)
	c, err := net.DialUDP("udp4", nil, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := New(4, 64, true)
	allocs := testing.AllocsPerRun(100, func() {
		if _, err := c.Write([]byte("0123456789abcdef")); err != nil {
			t.Fatal(err)
		}
		if n, err := b.Recv(fd); err != nil || n != 1 {
			t.Fatal(n, err)
		}
		b.SetLen(0, len(b.Message(0)))
		if _, err := b.Send(fd, 0, 1); err != nil {
			t.Fatal(err)
		}
	})
	if allocs > 1 { // one for the write of the test
		t.Errorf("%v allocations for a datagram in and out", allocs)
	}
}

package udpbatch

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func listen(t testing.TB, network, addr string) *net.UDPConn {
	t.Helper()
	pc, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pc.Close() })
	return pc.(*net.UDPConn)
}

func newBatch(t testing.TB, c *net.UDPConn, o Options) (*Reader, *Writer) {
	t.Helper()
	r, err := NewReader(c, o)
	if err != nil {
		t.Fatal(err)
	}
	w, err := NewWriter(c, o.Batch)
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// echo sends datagrams back until the socket is closed.
func echo(t testing.TB, c *net.UDPConn, o Options) {
	r, w := newBatch(t, c, o)
	done := make(chan error)
	go func() {
		done <- r.Serve(func(n int) bool {
			for i := range n {
				w.Add(r.Payload(i), r.Peer(i))
			}
			w.Flush()
			return true
		})
	}()
	t.Cleanup(func() {
		c.Close()
		if err := <-done; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Serve ended with %v", err)
		}
	})
}

func exchange(t testing.TB, to string, payload []byte) []byte {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write(payload); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := c.Read(b)
	if err != nil {
		t.Fatalf("%s: %v", to, err)
	}
	return b[:n]
}

// A connected client accepts a reply only from the address that it asked.
func TestReplyLeavesFromWhereItWasAsked(t *testing.T) {
	for _, test := range []struct {
		network, bind string
		asked         []string
	}{
		{"udp4", "127.0.0.1:0", []string{"127.0.0.1"}},
		{"udp4", "0.0.0.0:0", []string{"127.0.0.1", "127.0.0.9"}},
		{"udp6", "[::1]:0", []string{"::1"}},
		{"udp", "[::]:0", []string{"127.0.0.1", "127.0.0.9", "::1"}},
	} {
		t.Run(test.network+" "+test.bind, func(t *testing.T) {
			c := listen(t, test.network, test.bind)
			echo(t, c, Options{Batch: 4, Size: 64, Local: Wildcard(c), Timestamps: true})
			_, port, _ := net.SplitHostPort(c.LocalAddr().String())
			for _, host := range test.asked {
				if got := exchange(t, net.JoinHostPort(host, port), []byte(host)); string(got) != host {
					t.Errorf("asked %s, got %q", host, got)
				}
			}
		})
	}
}

func TestPeer(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0", "[::]:0"} {
		c := listen(t, "udp", addr)
		r, _ := newBatch(t, c, Options{Batch: 4, Size: 8, Local: true, Timestamps: true})
		to := c.LocalAddr().(*net.UDPAddr).AddrPort()
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port()) // mapped on this socket
		}
		client := listen(t, "udp", netip.AddrPortFrom(to.Addr(), 0).String())
		from := client.LocalAddr().(*net.UDPAddr).AddrPort()
		begin := time.Now()
		for _, payload := range []string{"12345678", "123456789", ""} {
			if _, err := client.WriteToUDPAddrPort([]byte(payload), to); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for n < 3 {
			err := r.Serve(func(got int) bool {
				for i := range got {
					p := r.Peer(i)
					if p.AddrPort() != from || p.IPv6() != from.Addr().Is6() {
						t.Errorf("%s: from %v (IPv6 %v), want %v", addr, p.AddrPort(), p.IPv6(), from)
					}
					if at := time.Unix(0, p.Received); at.Before(begin.Add(-time.Second)) || time.Since(at) < 0 {
						t.Errorf("received at %v", at)
					}
					if want := []string{"12345678", "12345678", ""}[n+i]; string(r.Payload(i)) != want || r.Truncated(i) != (n+i == 1) {
						t.Errorf("datagram %d is %q, cut off: %v", n+i, r.Payload(i), r.Truncated(i))
					}
				}
				n += got
				return false
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A datagram that cannot be sent does not block those behind it.
func TestFailingDatagramIsSkipped(t *testing.T) {
	c := listen(t, "udp4", "127.0.0.1:0")
	_, w := newBatch(t, c, Options{Batch: 8, Size: 64})
	client := listen(t, "udp4", "127.0.0.1:0")
	to := client.LocalAddr().(*net.UDPAddr).AddrPort()
	good, bad := peerOf(to), peerOf(netip.MustParseAddrPort("127.0.0.1:0")) // EINVAL: there is no port 0
	for _, p := range []*Peer{bad, good, good, bad, bad, good, bad} {
		w.Add([]byte("x"), p)
	}
	failed, err := w.Flush()
	if failed != 4 || err != nil {
		t.Errorf("%d failed, %v", failed, err)
	}
	client.SetReadDeadline(time.Now().Add(20 * time.Second))
	for range 3 {
		if _, err := client.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
	if w.Len() != 0 {
		t.Errorf("%d are left", w.Len())
	}
}

func peerOf(a netip.AddrPort) *Peer {
	p := &Peer{nameLen: unix.SizeofSockaddrInet4}
	p.name.Family = unix.AF_INET
	p.name.Port = a.Port()>>8 | a.Port()<<8
	ip := a.Addr().As4()
	p.name.Flowinfo = uint32(ip[0]) | uint32(ip[1])<<8 | uint32(ip[2])<<16 | uint32(ip[3])<<24
	return p
}

// A socket that was connected so that it takes no more datagrams still returns those in its queue, and sends to any
// peer. Errors about its peer are ignored.
func TestConnectedSocket(t *testing.T) {
	c := listen(t, "udp4", "127.0.0.1:0")
	client := listen(t, "udp4", "127.0.0.1:0")
	for i := range 3 {
		if _, err := client.WriteTo([]byte{byte(i)}, c.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if err := unix.Connect(int(fd), &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		unix.Write(int(fd), []byte("nobody is there")) // an ICMP error comes back
	})
	r, w := newBatch(t, c, Options{Batch: 2, Size: 8})
	c.SetReadDeadline(time.Unix(1, 0))
	if err := r.Serve(func(int) bool { return true }); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Serve past its deadline: %v", err)
	}
	got := 0
	for {
		n, err := r.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for i := range n {
			w.Add(r.Payload(i), r.Peer(i))
		}
		if failed, err := w.Flush(); failed > 0 || err != nil {
			t.Errorf("%d failed: %v", failed, err)
		}
		got += n
	}
	if got != 3 {
		t.Errorf("%d of 3 were in the queue", got)
	}
	client.SetReadDeadline(time.Now().Add(20 * time.Second))
	for range 3 {
		if _, err := client.Read(make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
	}
}

// Serve waits for the next datagram without reading twice, and misses none: each is sent when the previous one was
// answered, and in bursts around the size of a batch.
func TestNothingIsMissed(t *testing.T) {
	c := listen(t, "udp4", "127.0.0.1:0")
	echo(t, c, Options{Batch: 4, Size: 64})
	client := listen(t, "udp4", "127.0.0.1:0")
	b := make([]byte, 64)
	for i := range 3000 {
		burst := i%6 + 1
		for j := range burst {
			if _, err := client.WriteTo(fmt.Appendf(nil, "%d.%d", i, j), c.LocalAddr()); err != nil {
				t.Fatal(err)
			}
		}
		for j := range burst {
			client.SetReadDeadline(time.Now().Add(20 * time.Second))
			n, err := client.Read(b)
			if want := fmt.Appendf(nil, "%d.%d", i, j); err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("%q (%v), want %q", b[:n], err, want)
			}
		}
	}
}

func TestDropsAreKnown(t *testing.T) {
	c := listen(t, "udp4", "127.0.0.1:0")
	before, err := Drops(c)
	if err != nil {
		t.Fatal(err)
	}
	client := listen(t, "udp4", "127.0.0.1:0")
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		client.WriteTo(make([]byte, 1024), c.LocalAddr())
		if now, err := Drops(c); err != nil || now > before {
			if err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Error("a full queue dropped nothing")
}

func TestSocketOptions(t *testing.T) {
	a, b := listen(t, "udp4", "127.0.0.1:0"), listen(t, "udp4", "127.0.0.1:0")
	x, err := Cookie(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := Cookie(b)
	if err != nil || x == y {
		t.Errorf("two sockets have the cookies %d and %d (%v)", x, y, err)
	}
	first, err := RaiseReadBuffer(a, 1<<20)
	if err != nil || first < 1<<12 {
		t.Errorf("the buffer is %d (%v)", first, err)
	}
	if again, err := RaiseReadBuffer(a, 1<<10); err != nil || again != first {
		t.Errorf("a smaller one made it %d (%v)", again, err)
	}
}

// The budget is zero: neither a batch read nor one written allocates.
func TestAllocations(t *testing.T) {
	c := listen(t, "udp4", "127.0.0.1:0")
	r, w := newBatch(t, c, Options{Batch: 8, Size: 64, Local: true, Timestamps: true})
	client := listen(t, "udp4", "127.0.0.1:0")
	cr, cw := newBatch(t, client, Options{Batch: 8, Size: 64})
	to := peerOf(c.LocalAddr().(*net.UDPAddr).AddrPort())
	payload := []byte("x")
	got := 0
	count := func(n int) bool { got += n; return got < 8 }
	send := func(n int) bool {
		for i := range n {
			w.Add(r.Payload(i), r.Peer(i))
		}
		w.Flush()
		return count(n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for range 8 {
			cw.Add(payload, to)
		}
		cw.Flush()
		got = 0
		if err := r.Serve(send); err != nil {
			t.Fatal(err)
		}
		got = 0
		if err := cr.Serve(count); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for a batch there and back", n)
	}
}

// The kernel attaches control messages, but a reader must handle any octets.
func FuzzControl(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{1}, 40))
	var p Peer
	p.replyFrom6(unix.Inet6Pktinfo{Addr: netip.IPv6Loopback().As16()})
	f.Add(bytes.Clone(p.Control()))
	p.replyFrom4(unix.Inet4Pktinfo{Spec_dst: [4]byte{127, 0, 0, 1}})
	f.Add(bytes.Clone(p.Control()))
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Peer
		p.readControl(append(make([]byte, 0, len(b)), b...))
		if len(p.Control()) > controlSize {
			t.Error("too long")
		}
	})
}

// BenchmarkEcho measures the cost of timestamps and local addresses, beside each other in one run.
func BenchmarkEcho(b *testing.B) {
	for name, o := range map[string]Options{
		"plain": {}, "timestamps": {Timestamps: true}, "local": {Local: true}, "both": {Timestamps: true, Local: true},
	} {
		b.Run(name, func(b *testing.B) {
			o.Batch, o.Size = 64, 512
			c := listen(b, "udp4", "127.0.0.1:0")
			echo(b, c, o)
			client := listen(b, "udp4", "127.0.0.1:0")
			r, w := newBatch(b, client, Options{Batch: 64, Size: 512})
			to := peerOf(c.LocalAddr().(*net.UDPAddr).AddrPort())
			payload := make([]byte, 40)
			got, sent := 0, 0
			top := func() {
				for sent-got < 64 && sent < b.N {
					w.Add(payload, to)
					sent++
				}
				w.Flush()
			}
			client.SetReadDeadline(time.Now().Add(time.Minute))
			begin := cpuTime(b)
			b.ResetTimer()
			top()
			if err := r.Serve(func(n int) bool { got += n; top(); return got < b.N }); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(cpuTime(b)-begin)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime is what the process has used, in nanoseconds. The client's share is in all of it.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// TestMappedLinkLocal: a reply from 169.254.25.10 on an IPv6 socket follows the routes, as one on an IPv4 socket
// does; that of an IPv6 link-local address needs its interface.
func TestMappedLinkLocal(t *testing.T) {
	for addr, want := range map[string]uint32{"::ffff:169.254.25.10": 0, "fe80::1": 7, "fd00::1": 0} {
		var p Peer
		p.replyFrom6(unix.Inet6Pktinfo{Addr: netip.MustParseAddr(addr).As16(), Ifindex: 7})
		got := (*unix.Inet6Pktinfo)(unsafe.Pointer(&p.control[unix.CmsgLen(0)]))
		if p.controlLen == 0 || got.Ifindex != want {
			t.Errorf("%s: interface %d, want %d", addr, got.Ifindex, want)
		}
	}
}

// TestRoom waits on a socket whose buffer is full until its peer reads, and gives up where it does not.
func TestRoom(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if !room(uintptr(fds[0])) {
		t.Error("no room in an empty buffer")
	}
	sent := 0
	for ; sent < 1<<16; sent++ {
		if err = unix.Sendto(fds[0], make([]byte, 1024), unix.MSG_DONTWAIT, nil); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatalf("after %d datagrams: %v", sent, err)
	}
	if room(uintptr(fds[0])) {
		t.Error("room in a full buffer")
	}
	for range sent {
		if _, err := unix.Read(fds[1], make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	if !room(uintptr(fds[0])) {
		t.Error("no room once the peer has read")
	}
}

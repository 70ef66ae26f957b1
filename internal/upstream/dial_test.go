package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

// TestUnreachableIsReported: the kernel is asked to pass ICMP errors on, for both families.
func TestUnreachableIsReported(t *testing.T) {
	for addr, option := range map[string][2]int{
		"127.0.0.1:9": {unix.SOL_IP, unix.IP_RECVERR},
		"[::1]:9":     {unix.SOL_IPV6, unix.IPV6_RECVERR},
	} {
		conn, err := dialDatagram(netip.Addr{}, netip.MustParseAddrPort(addr))
		if err != nil {
			t.Logf("%s: %v", addr, err)
			continue
		}
		defer conn.Close()
		raw, err := conn.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var value int
		var failed error
		if err := raw.Control(func(fd uintptr) { value, failed = unix.GetsockoptInt(int(fd), option[0], option[1]) }); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
		if value != 1 {
			t.Errorf("%s: RECVERR is %d", addr, value)
		}
	}
}

func TestSourceAddress(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	source := netip.MustParseAddr("127.0.0.7")
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		g := openGroup(t, GroupConfig{Servers: []ServerConfig{{Addr: f.addr, Source: source, Health: NewHealth()}}})
		if a := g.mustAnswer(t, "a.example.", proto); a.Exchange.Local.Addr() != source {
			t.Errorf("%s: asked from %s", proto, a.Exchange.Local)
		}
	}
}

func TestOutcomeOfErrors(t *testing.T) {
	op := func(err error) error {
		return &net.OpError{Op: "read", Net: "udp", Err: os.NewSyscallError("read", err)}
	}
	for _, tt := range []struct {
		err  error
		want observe.Outcome
		ours bool
	}{
		{op(syscall.ECONNREFUSED), observe.ConnRefused, false},
		{op(syscall.EHOSTUNREACH), observe.Unreachable, false},
		{op(syscall.ENETUNREACH), observe.Unreachable, false},
		{op(syscall.EPERM), observe.Unreachable, false},
		{op(syscall.ECONNRESET), observe.Reset, false},
		{op(syscall.EPIPE), observe.Reset, false},
		{io.EOF, observe.Reset, false},
		{op(syscall.ETIMEDOUT), observe.Timeout, false},
		{context.DeadlineExceeded, observe.Timeout, false},
		{os.ErrDeadlineExceeded, observe.Timeout, false},
		{fmt.Errorf("TLS handshake: %w", tls.RecordHeaderError{}), observe.BadReply, false},
		{op(syscall.EMFILE), observe.Unreachable, true},
		{op(syscall.EADDRNOTAVAIL), observe.Unreachable, true},
		{errors.Join(errTooManySockets), observe.Unreachable, true},
	} {
		if got := outcomeOf(tt.err); got != tt.want || isLocal(tt.err) != tt.ours {
			t.Errorf("%v: %s, ours %t", tt.err, got, isLocal(tt.err))
		}
	}
}

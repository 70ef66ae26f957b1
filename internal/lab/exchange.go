package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Exchange sends one query from a fresh socket of the host and returns the answer with the time that
// it took, the TCP handshake included. It waits until ctx ends, and 5 s where ctx has no deadline; it
// does not retry, nor ask again over TCP when the answer is truncated.
func (h *Host) Exchange(ctx context.Context, t Transport, server netip.AddrPort, query *dns.Msg) (*dns.Msg, time.Duration, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(5 * time.Second)
	}
	start := time.Now()
	conn, err := h.connectNow(t, server)
	if err != nil {
		return nil, 0, fmt.Errorf("%s to %s over %s: %w", h.Name, server, t, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, 0, err
	}
	// net.FileConn's UDP socket is a PacketConn, by which miekg/dns knows not to write a length.
	c := &dns.Conn{Conn: conn, UDPSize: dns.MaxMsgSize}
	answer, err := func() (*dns.Msg, error) {
		if err := c.WriteMsg(query); err != nil {
			return nil, err
		}
		for {
			m, err := c.ReadMsg()
			if err != nil || m.Id == query.Id {
				return m, err
			}
		}
	}()
	took := time.Since(start)
	if err != nil {
		return nil, took, fmt.Errorf("%s to %s over %s: %w", h.Name, server, t, err)
	}
	return answer, took, nil
}

// connectNow returns a connected socket of the host without waiting for a TCP handshake; the first write waits for
// it. Only creating the socket needs the host's thread, so that thousands of connections may be under way at once.
func (h *Host) connectNow(t Transport, server netip.AddrPort) (net.Conn, error) {
	family, kind := unix.AF_INET, unix.SOCK_DGRAM
	if server.Addr().Is6() {
		family = unix.AF_INET6
	}
	if t == TCP {
		kind = unix.SOCK_STREAM
	}
	var fd int
	err := h.onThread(func() (err error) {
		fd, err = unix.Socket(family, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	var to unix.Sockaddr
	if family == unix.AF_INET {
		to = &unix.SockaddrInet4{Port: int(server.Port()), Addr: server.Addr().As4()}
	} else {
		to = &unix.SockaddrInet6{Port: int(server.Port()), Addr: server.Addr().As16()}
	}
	f := os.NewFile(uintptr(fd), "socket of "+h.Name)
	defer f.Close() // FileConn has a duplicate
	if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
		return nil, os.NewSyscallError("connect", err)
	}
	return net.FileConn(f)
}

// Ask is Exchange for one question with EDNS, in a few words: the answer to name and type.
func (h *Host) Ask(ctx context.Context, t Transport, server netip.Addr, name string, qtype uint16) (*dns.Msg, time.Duration, error) {
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
	q.SetEdns0(maxUDPSize, false)
	return h.Exchange(ctx, t, netip.AddrPortFrom(server, 53), q)
}

package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/observe"
)

// Dialer opens sockets: the seam to the operating system.
type Dialer struct {
	// Datagram returns a UDP socket connected to remote, from a port that cannot be guessed. It is a
	// syscall.Conn, as all of package net's are.
	Datagram func(source netip.Addr, remote netip.AddrPort) (net.Conn, error)
	// Stream returns a TCP connection.
	Stream func(ctx context.Context, source netip.Addr, remote netip.AddrPort) (net.Conn, error)
}

// NewDialer returns the real one.
func NewDialer() Dialer { return Dialer{Datagram: dialDatagram, Stream: dialStream} }

// dialDatagram leaves the choice of the port to the kernel, which picks it at random from the ephemeral range
// (net/ipv4/udp.c, udp_lib_get_port).
func dialDatagram(source netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: reportErrors}
	if source.IsValid() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return d.Dial("udp", remote.String())
}

func dialStream(ctx context.Context, source netip.Addr, remote netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1} // idle connections are closed long before a keepalive
	if source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	return d.DialContext(ctx, "tcp", remote.String())
}

// reportErrors makes the kernel pass ICMP host and network unreachable to the socket. Without it a connected UDP
// socket is told of port unreachable only (ip(7), IP_RECVERR).
func reportErrors(network, _ string, conn syscall.RawConn) error {
	level, option := unix.SOL_IP, unix.IP_RECVERR
	if network == "udp6" {
		level, option = unix.SOL_IPV6, unix.IPV6_RECVERR
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
		return err
	}
	return failed
}

var (
	errTooManySockets = errors.New("too many sockets are open to this upstream")
	errTooManyQueries = errors.New("all connections to this upstream are full")
	errSilent         = errors.New("no answer in time")
	errPoolClosed     = errors.New("the forwarder was closed")
)

// isLocal reports whether err comes from this process or node and not from the upstream, so that it does not affect
// the upstream's health.
func isLocal(err error) bool {
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL, syscall.EADDRINUSE,
		errTooManySockets, errTooManyQueries, errPoolClosed,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// capped reports whether err says that nothing was sent, because of this package's own limits.
func capped(err error) bool {
	return errors.Is(err, errTooManySockets) || errors.Is(err, errTooManyQueries)
}

// noFiles reports whether err says that no file descriptor is left.
func noFiles(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// outcomeOf sorts a socket's error.
func outcomeOf(err error) observe.Outcome {
	var netErr net.Error
	var certErr *tls.CertificateVerificationError
	var alert tls.AlertError
	var record tls.RecordHeaderError
	var hostErr x509.HostnameError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return observe.ConnRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF),
		errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed):
		return observe.Reset
	case errors.As(err, &certErr), errors.As(err, &alert), errors.As(err, &record), errors.As(err, &hostErr):
		return observe.BadReply
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, errSilent):
		return observe.Timeout
	case errors.As(err, &netErr) && netErr.Timeout():
		return observe.Timeout
	}
	return observe.Unreachable
}

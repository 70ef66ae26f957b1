// Package sockets finds this process's sockets on the local addresses, and makes them take no more queries before the
// process ends, so that another process or the fallback gets them.
package sockets

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// discardPort is the port that a socket is connected to when it should take no more queries. No program sends from
// it.
const discardPort = 9

// LeaveUDP makes the UDP sockets of this process that are bound to one of addrs, or to the unspecified address if
// wildcard is set, take no more queries, and returns their number. It connects them (udp(7)) to a peer that does not
// exist: the kernel then gives new packets to another process's socket on the same address, or, in rules with a
// socket match, finds none. Queries that are already queued can still be read and answered; closing the sockets would
// drop them.
func LeaveUDP(addrs []netip.Addr, port uint16, wildcard bool) (int, error) {
	left := 0
	err := EachSocket(unix.SOCK_DGRAM, addrs, port, wildcard, func(fd int, at netip.AddrPort, local unix.Sockaddr) error {
		if err := unix.Connect(fd, nowhere(local)); err != nil {
			return fmt.Errorf("take no more queries at %s: %w", at, err)
		}
		left++
		return nil
	})
	return left, err
}

// acceptWait bounds the wait for a listener's queue to be empty, and acceptPause is the time between looks.
const (
	acceptWait  = time.Second
	acceptPause = 50 * time.Microsecond
)

// LeaveTCP makes the TCP listeners on the same addresses take no more connections, and returns their number: the
// kernel gives new connections to another process's listener on the same address. Call it only while such a listener
// exists, and some time before the sockets close, so that accepted connections are read and answered.
//
// Closing a listener resets the connections that were not accepted yet (unless net.ipv4.tcp_migrate_req is set, which
// hands them on). It is therefore closed at a moment when its queue is empty, if there is one within acceptWait; only
// a handshake in progress at that very moment is lost.
func LeaveTCP(addrs []netip.Addr, port uint16, wildcard bool) (int, error) {
	left := 0
	err := EachSocket(unix.SOCK_STREAM, addrs, port, wildcard, func(fd int, at netip.AddrPort, _ unix.Sockaddr) error {
		// An error means that it was closed since.
		if listens, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); listens == 0 {
			return nil // a connection
		}
		for deadline := time.Now().Add(acceptWait); time.Now().Before(deadline); time.Sleep(acceptPause) {
			// Of a listener, Unacked is the length of the accept queue (tcp_get_info in net/ipv4/tcp.c).
			if info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO); err != nil || info.Unacked == 0 {
				break
			}
		}
		// Not close, which the runtime puts off until the goroutine in Accept has noticed.
		if err := unix.Shutdown(fd, unix.SHUT_RD); err != nil {
			return fmt.Errorf("take no more connections at %s: %w", at, err)
		}
		left++
		return nil
	})
	return left, err
}

// EachSocket calls f for each socket of this process of the given kind that is bound to port at one of addrs, or at
// the unspecified address if wildcard is set.
//
// The sockets belong to CoreDNS, which does not expose them. They are found among the open files of the process.
func EachSocket(kind int, addrs []netip.Addr, port uint16, wildcard bool,
	f func(fd int, at netip.AddrPort, local unix.Sockaddr) error) error {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("look for the open sockets: %w", err)
	}
	var errs []error
	for _, file := range files {
		fd, err := strconv.Atoi(file.Name())
		if err != nil {
			continue
		}
		if is, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || is != kind {
			continue // no socket, or closed since
		}
		local, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		at := addrPortOf(local)
		if at.Port() == port && (slices.Contains(addrs, at.Addr()) || wildcard && at.Addr().IsUnspecified()) {
			errs = append(errs, f(fd, at, local))
		}
	}
	return errors.Join(errs...)
}

// addrPortOf returns the bound address of a socket; the zero value for other address families.
func addrPortOf(local unix.Sockaddr) netip.AddrPort {
	switch sa := local.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// nowhere returns a peer that does not exist, of the family of local and at its own address, to which a route always
// exists.
func nowhere(local unix.Sockaddr) unix.Sockaddr {
	switch sa := local.(type) {
	case *unix.SockaddrInet4:
		peer := &unix.SockaddrInet4{Port: discardPort, Addr: sa.Addr}
		if sa.Addr == [4]byte{} {
			peer.Addr = [4]byte{127, 0, 0, 1}
		}
		return peer
	case *unix.SockaddrInet6:
		peer := &unix.SockaddrInet6{Port: discardPort, Addr: sa.Addr, ZoneId: sa.ZoneId}
		if sa.Addr == [16]byte{} {
			peer.Addr = netip.IPv6Loopback().As16()
		}
		return peer
	}
	return nil
}

package nodenet

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// discardPort is the port that a socket which takes no more queries is connected to. Nobody sends from it.
const discardPort = 9

// leaveUDP has the UDP sockets of this process that are bound to one of addrs, or to the unspecified
// address where wildcard is set, take no more queries, and returns their number. They are connected
// (udp(7)) to a peer that does not exist: the kernel then looks past them, to another process's socket of
// the same address or, for the rules that ask for an open socket, to none, while what is in their queues
// can still be read and answered. To close them instead would throw the queues away.
//
// The sockets are CoreDNS's. They are found among the open files of the process, because CoreDNS has no
// way to hand them out.
func leaveUDP(addrs []netip.Addr, port uint16, wildcard bool) (int, error) {
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0, fmt.Errorf("look for the open sockets: %w", err)
	}
	left := 0
	var errs []error
	for _, f := range files {
		fd, err := strconv.Atoi(f.Name())
		if err != nil {
			continue
		}
		kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		if err != nil || kind != unix.SOCK_DGRAM {
			continue // no socket, or closed since
		}
		local, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		at, nowhere := addrPortOf(local)
		ours := slices.Contains(addrs, at.Addr()) || wildcard && at.Addr().IsUnspecified()
		if at.Port() != port || !ours {
			continue
		}
		if err := unix.Connect(fd, nowhere); err != nil {
			errs = append(errs, fmt.Errorf("take no more queries at %s: %w", at, err))
			continue
		}
		left++
	}
	return left, errors.Join(errs...)
}

// addrPortOf returns what a socket is bound to, and a peer of the same family that does not exist. The
// peer is at the socket's own address, to which there is always a route.
func addrPortOf(local unix.Sockaddr) (at netip.AddrPort, nowhere unix.Sockaddr) {
	switch sa := local.(type) {
	case *unix.SockaddrInet4:
		peer := &unix.SockaddrInet4{Port: discardPort, Addr: sa.Addr}
		if sa.Addr == [4]byte{} {
			peer.Addr = [4]byte{127, 0, 0, 1}
		}
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), peer
	case *unix.SockaddrInet6:
		peer := &unix.SockaddrInet6{Port: discardPort, Addr: sa.Addr, ZoneId: sa.ZoneId}
		if sa.Addr == [16]byte{} {
			peer.Addr = netip.IPv6Loopback().As16()
		}
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port)), peer
	}
	return netip.AddrPort{}, nil
}

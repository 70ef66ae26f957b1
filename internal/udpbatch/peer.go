package udpbatch

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// controlSize is room for one in_pktinfo or in6_pktinfo, its header included, on any machine.
const controlSize = 40

// Peer is where a datagram came from and, with Options.Local, what address it was sent to: all that a reply needs.
// It may be copied and kept.
type Peer struct {
	name       unix.RawSockaddrInet6 // of either family: a sockaddr_in is shorter
	nameLen    uint32
	control    [controlSize]byte // what has a reply leave from the address that was asked
	controlLen uint32
	// Received is the kernel's time of reception in Unix nanoseconds, or that of a datagram shortly before (see
	// Options.Timestamps); 0 without Options.Timestamps.
	Received int64
}

// AddrPort is the address of the sender, an IPv4 address as such also on an IPv6 socket.
func (p *Peer) AddrPort() netip.AddrPort {
	port := func(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }
	if p.name.Family == unix.AF_INET {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&p.name))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port(&in.Port))
	}
	addr := netip.AddrFrom16(p.name.Addr)
	if addr.Is4In6() {
		addr = addr.Unmap()
	} else if p.name.Scope_id != 0 {
		// The number, which package net takes as well as the name: to look a name up is a netlink dump.
		addr = addr.WithZone(strconv.FormatUint(uint64(p.name.Scope_id), 10))
	}
	return netip.AddrPortFrom(addr, port(&p.name.Port))
}

// IPv6 reports whether the datagram came over IPv6.
func (p *Peer) IPv6() bool {
	return p.name.Family == unix.AF_INET6 && !netip.AddrFrom16(p.name.Addr).Is4In6()
}

// Control is the control message (cmsg(3)) that has a reply leave from the address that was asked; nil where
// the socket's own address will do.
func (p *Peer) Control() []byte { return p.control[:p.controlLen] }

// headerSize is the size of a control message's header (cmsg(3)).
const headerSize = int(unsafe.Sizeof(unix.Cmsghdr{}))

// readControl reads the control messages of one datagram.
func (p *Peer) readControl(b []byte) {
	p.controlLen, p.Received = 0, 0
	for len(b) >= headerSize {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		n := int(h.Len)
		if n < headerSize || n > len(b) {
			return
		}
		data := b[unix.CmsgLen(0):n]
		switch {
		case h.Level == unix.SOL_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			p.replyFrom4(*(*unix.Inet4Pktinfo)(unsafe.Pointer(&data[0])))
		case h.Level == unix.SOL_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			p.replyFrom6(*(*unix.Inet6Pktinfo)(unsafe.Pointer(&data[0])))
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS && len(data) >= int(unsafe.Sizeof(unix.Timespec{})):
			p.Received = (*unix.Timespec)(unsafe.Pointer(&data[0])).Nano()
		}
		b = b[min(unix.CmsgSpace(n-unix.CmsgLen(0)), len(b)):]
	}
}

// replyFrom4 makes the control message of a reply. Spec_dst is the local address: that of a datagram sent
// to a broadcast address as well.
func (p *Peer) replyFrom4(info unix.Inet4Pktinfo) {
	*(*unix.Inet4Pktinfo)(p.newControl(unix.SOL_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)) =
		unix.Inet4Pktinfo{Spec_dst: info.Spec_dst}
}

// replyFrom6 makes the control message of a reply. The interface is said only where the address is of no
// use without it; elsewhere the routes decide, as for a socket that is bound to the address.
func (p *Peer) replyFrom6(info unix.Inet6Pktinfo) {
	reply := unix.Inet6Pktinfo{Addr: info.Addr}
	switch addr := netip.AddrFrom16(info.Addr); {
	case addr.IsMulticast():
		return
	case addr.Is4In6(): // netip takes 169.254.25.10 for link-local in this form too
	case addr.IsLinkLocalUnicast():
		reply.Ifindex = info.Ifindex
	}
	*(*unix.Inet6Pktinfo)(p.newControl(unix.SOL_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)) = reply
}

// newControl writes the header and returns the place of the data.
func (p *Peer) newControl(level, kind int32, size int) unsafe.Pointer {
	h := (*unix.Cmsghdr)(unsafe.Pointer(&p.control[0]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(size))
	p.controlLen = uint32(unix.CmsgSpace(size))
	return unsafe.Pointer(&p.control[unix.CmsgLen(0)])
}

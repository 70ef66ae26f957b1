// Package conntrack finds and deletes entries of the kernel's connection tracking table for flows to the local
// addresses. Such an entry remains from a time when the fallback carried the flow; it would send a later query from
// the same client port to the same DNS server.
package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// Flow names an entry of connection tracking to the kernel.
type Flow struct {
	family byte
	// Name are the attributes of a request for this entry and for no later one of the same addresses and ports:
	// the original tuple, the zone and the entry's number.
	Name []byte
}

// Service is the original destination of a flow, before any translation.
type Service struct {
	Proto rule.Proto
	At    netip.AddrPort
}

// MaxFlows is the most entries that one search returns and holds in memory, about 10 MB.
const MaxFlows = 1 << 16

// Table is connection tracking's table, of the network namespace of the calling thread.
type Table struct {
	// Find lists the entries of flows to one of the services, at most maxFlows.
	Find func(ctx context.Context, to []Service) ([]Flow, error)
	// Forget deletes entries and returns how many existed. An entry that has already expired is no error.
	Forget func(ctx context.Context, flows []Flow) (int, error)
}

// Kernel returns the table of the running kernel.
func Kernel() Table { return Table{Find: findFlows, Forget: forgetFlows} }

// The attributes of linux/netfilter/nfnetlink_conntrack.h that nl lacks, and flags of
// net/netfilter/nf_internals.h.
const (
	ctaFilter          = 25
	ctaFilterOrigFlags = 1
	filterIPDst        = 1 << 1
	filterProtoNum     = 1 << 3
	filterProtoDstPort = 1 << 5
)

// findFlows searches for the entries of one service after the other. Linux 5.8 and later filter in the kernel and
// return matching entries only. Older kernels ignore the filter attribute and return the whole table; the reader then
// checks each entry as it arrives and keeps nothing else. An entry that a concurrent resize of the table hides is not
// searched again.
func findFlows(ctx context.Context, to []Service) ([]Flow, error) {
	c, err := dialConntrack()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var found []Flow
	for _, s := range to {
		err := c.dump(ctx, s, func(attrs []byte) bool {
			if f, ok := wanted(attrs, s); ok {
				found = append(found, f)
			}
			return len(found) < MaxFlows
		})
		if err != nil {
			return nil, fmt.Errorf("read connection tracking's entries of flows to %s over %s: %w", s.At, s.Proto, err)
		}
	}
	return found, nil
}

// wanted returns the entry if it belongs to the service. Entries that it cannot parse are left alone.
func wanted(attrs []byte, to Service) (Flow, bool) {
	f := Flow{family: familyOf(to.At.Addr())}
	var dst Service
	for t, attr := range attributes(attrs) {
		switch t {
		case nl.CTA_TUPLE_ORIG:
			dst = tupleTo(attr.value)
		case nl.CTA_ZONE, nl.CTA_ID:
		default:
			continue
		}
		f.Name = append(f.Name, attr.raw...)
	}
	return f, dst == to
}

// tupleTo returns the destination of a tuple; the zero value for a protocol without ports.
func tupleTo(tuple []byte) (s Service) {
	var addr netip.Addr
	var port uint16
	for t, part := range attributes(tuple) {
		for inner, attr := range attributes(part.value) {
			switch {
			case t == nl.CTA_TUPLE_IP && (inner == nl.CTA_IP_V4_DST || inner == nl.CTA_IP_V6_DST):
				addr, _ = netip.AddrFromSlice(attr.value)
			case t == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_NUM && len(attr.value) == 1:
				for _, p := range []rule.Proto{rule.UDP, rule.TCP} {
					if p.Number() == attr.value[0] {
						s.Proto = p
					}
				}
			case t == nl.CTA_TUPLE_PROTO && inner == nl.CTA_PROTO_DST_PORT && len(attr.value) == 2:
				port = binary.BigEndian.Uint16(attr.value)
			}
		}
	}
	s.At = netip.AddrPortFrom(addr, port)
	return s
}

// attribute is one netlink attribute.
type attribute struct {
	value []byte
	raw   []byte // with its header, and padded
}

// attributes iterates over the attributes in b (linux/netlink.h, struct nlattr), up to the first malformed one.
func attributes(b []byte) iter.Seq2[uint16, attribute] {
	return func(yield func(uint16, attribute) bool) {
		for len(b) >= unix.SizeofNlAttr {
			size := int(binary.NativeEndian.Uint16(b))
			if size < unix.SizeofNlAttr || size > len(b) {
				return
			}
			padded := min((size+unix.NLA_ALIGNTO-1)&^(unix.NLA_ALIGNTO-1), len(b))
			t := binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK
			if !yield(t, attribute{value: b[unix.SizeofNlAttr:size], raw: b[:padded]}) {
				return
			}
			b = b[padded:]
		}
	}
}

// forgetFlows deletes some entries a time, and asks ctx in between.
func forgetFlows(ctx context.Context, flows []Flow) (int, error) {
	c, err := dialConntrack()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	deleted := 0
	for some := range slices.Chunk(flows, 64) {
		if err := ctx.Err(); err != nil {
			return deleted, err
		}
		n, err := c.delete(some)
		deleted += n
		if err != nil {
			return deleted, fmt.Errorf("delete entries of connection tracking: %w", err)
		}
	}
	return deleted, nil
}

// conntrackConn is a netlink socket to ctnetlink. The functions of vishvananda/netlink v1.3.1 are not used, because they read
// the whole table into memory, without a filter in the kernel and without a context. Measured by TestMemory (Linux 6.18) for
// 200 of 200,000 entries: netlink.ConntrackDeleteFilters took 878 ms and 87 MB of resident memory, this code 59 ms and
// 0.2 MB. Both grow with the table, so that a million entries would exceed the pod's memory limit.
type conntrackConn struct {
	fd  int
	seq uint32
	buf []byte
}

// conntrackWait bounds the wait for one reply of the kernel, which normally arrives at once.
const conntrackWait = 2 * time.Second

func dialConntrack() (*conntrackConn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a socket to connection tracking: %w", err)
	}
	wait := unix.NsecToTimeval(conntrackWait.Nanoseconds())
	err = errors.Join(unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("open a socket to connection tracking: %w", err)
	}
	// A dump arrives in messages of at most 32 KiB (netlink_dump in net/netlink/af_netlink.c).
	return &conntrackConn{fd: fd, buf: make([]byte, 1<<16)}, nil
}

func (c *conntrackConn) Close() { unix.Close(c.fd) } // nothing is lost when it fails

// request builds a message to ctnetlink.
func (c *conntrackConn) request(kind uint16, flags uint16, family byte, attrs []byte) []byte {
	c.seq++
	order := binary.NativeEndian
	b := order.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+nl.SizeofNfgenmsg+len(attrs)))
	b = order.AppendUint16(b, unix.NFNL_SUBSYS_CTNETLINK<<8|kind)
	b = order.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = order.AppendUint32(b, c.seq)
	b = order.AppendUint32(b, 0)
	b = append(b, family, nl.NFNETLINK_V0, 0, 0)
	return append(b, attrs...) // attributes are padded, and so is the message
}

// dump calls f with the attributes of entries, including all entries of the service, until f returns false.
//
// The kernel does not compare IPv6 addresses: ctnetlink_filter_match_tuple treats ipv6_addr_cmp as an equality and
// returns the entries with another address (seen in 6.18, present since 5.8).
func (c *conntrackConn) dump(ctx context.Context, to Service, f func(attrs []byte) bool) error {
	tuple := nl.NewRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_ORIG, nil)
	flags := uint32(filterProtoNum | filterProtoDstPort)
	if to.At.Addr().Is4() {
		flags |= filterIPDst
		tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_IP, nil).AddRtAttr(nl.CTA_IP_V4_DST, to.At.Addr().AsSlice())
	}
	proto := tuple.AddRtAttr(unix.NLA_F_NESTED|nl.CTA_TUPLE_PROTO, nil)
	proto.AddRtAttr(nl.CTA_PROTO_NUM, []byte{to.Proto.Number()})
	proto.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, to.At.Port()))
	filter := nl.NewRtAttr(unix.NLA_F_NESTED|ctaFilter, nil)
	filter.AddRtAttr(ctaFilterOrigFlags, nl.Uint32Attr(flags))
	request := c.request(nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP, familyOf(to.At.Addr()), append(tuple.Serialize(), filter.Serialize()...))
	if err := c.send(request); err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		more := true
		done, err := c.receive(func(kind uint16, _ uint32, errno unix.Errno, payload []byte) error {
			switch {
			case errno != 0:
				return Explain(errno)
			case kind == unix.NLMSG_DONE:
				more = false
			case more && kind == unix.NFNL_SUBSYS_CTNETLINK<<8|nl.IPCTNL_MSG_CT_NEW && len(payload) >= nl.SizeofNfgenmsg:
				more = f(payload[nl.SizeofNfgenmsg:])
			}
			return nil
		})
		if err != nil || done || !more {
			return err
		}
	}
}

// delete deletes entries in one system call. Only failures and the last one are answered.
func (c *conntrackConn) delete(flows []Flow) (int, error) {
	var b []byte
	for i, f := range flows {
		var flags uint16
		if i == len(flows)-1 {
			flags = unix.NLM_F_ACK
		}
		b = append(b, c.request(nl.IPCTNL_MSG_CT_DELETE, flags, f.family, f.Name)...)
	}
	last := c.seq
	if err := c.send(b); err != nil {
		return 0, err
	}
	deleted := len(flows)
	var errs []error
	for answered := false; !answered; {
		_, err := c.receive(func(kind uint16, seq uint32, errno unix.Errno, _ []byte) error {
			if kind != unix.NLMSG_ERROR {
				return nil
			}
			answered = answered || seq == last
			if errno != 0 {
				deleted--
			}
			if errno != 0 && errno != unix.ENOENT { // ENOENT: the entry has expired
				errs = append(errs, Explain(errno))
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if len(errs) > 0 {
		return deleted, errs[0]
	}
	return deleted, nil
}

func (c *conntrackConn) send(b []byte) error {
	if err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("ask connection tracking: %w", err)
	}
	return nil
}

// receive reads once and calls f with each message. done is true at the end of the dump.
func (c *conntrackConn) receive(f func(kind uint16, seq uint32, errno unix.Errno, payload []byte) error) (done bool, err error) {
	n, from, err := unix.Recvfrom(c.fd, c.buf, 0)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("wait for connection tracking's answer: %w", err)
	}
	if kernel, ok := from.(*unix.SockaddrNetlink); !ok || kernel.Pid != 0 {
		return false, nil // any process may send to the socket
	}
	order := binary.NativeEndian
	for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
		size := int(order.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return false, errors.New("connection tracking's answer is cut off")
		}
		kind, seq, payload := order.Uint16(b[4:]), order.Uint32(b[8:]), b[unix.SizeofNlMsghdr:size]
		var errno unix.Errno
		if (kind == unix.NLMSG_ERROR || kind == unix.NLMSG_DONE) && len(payload) >= 4 {
			errno = unix.Errno(-int32(order.Uint32(payload)))
		}
		done = done || kind == unix.NLMSG_DONE
		if err := f(kind, seq, errno, payload); err != nil {
			return done, err
		}
		b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return done, nil
}

// Explain adds to an error of the kernel what it means in a kernel or container that lacks the feature.
func Explain(errno unix.Errno) error {
	switch errno {
	case unix.EPERM:
		return fmt.Errorf("%w: it takes the capability NET_ADMIN", errno)
	case unix.EINVAL, unix.EOPNOTSUPP:
		return fmt.Errorf("%w: the kernel may lack the module nf_conntrack_netlink", errno)
	}
	return errno
}

func familyOf(a netip.Addr) byte {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

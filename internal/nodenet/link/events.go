package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/status"
)

// Interest is the set of objects whose events matter. A node sees hundreds of events when pods start and stop; nearly
// all are ruled out by one attribute.
type Interest struct {
	Name  string
	Index int32 // of the link as last seen, to notice a renamed link; 0 if there is none
	Addrs []netip.Addr
}

// Events signals that something happened to the link or one of the addresses, without saying what: the reader reads
// the kernel's state again, so that a lost message costs nothing.
type Events struct {
	// Changed has one element, however much happened since it was last received from.
	Changed chan struct{}
	// Done is closed when no events come any more; err says why.
	Done chan struct{}
	Err  error

	file     *os.File
	Interest *atomic.Pointer[Interest]
}

// Watch subscribes to rtnetlink(7) in the network namespace of the calling thread. recvBuffer is the size of the
// socket's receive buffer in octets; 0 leaves the system's default. The caller must call Stop.
func Watch(in *atomic.Pointer[Interest], recvBuffer int) (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, &status.SetupError{Type: status.ErrorInterfaceCheck, Err: fmt.Errorf("open a netlink socket: %w", err)}
	}
	if recvBuffer > 0 {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, recvBuffer)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK,
			Groups: unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR})
	}
	if err != nil {
		unix.Close(fd)
		return nil, &status.SetupError{Type: status.ErrorInterfaceCheck, Err: fmt.Errorf("subscribe to link and address events: %w", err)}
	}
	e := &Events{
		Changed:  make(chan struct{}, 1),
		Done:     make(chan struct{}),
		file:     os.NewFile(uintptr(fd), "rtnetlink"),
		Interest: in,
	}
	go e.Read()
	return e, nil
}

// Stop ends the subscription and waits for its goroutine.
func (e *Events) Stop() {
	e.file.Close()
	<-e.Done
}

func (e *Events) Read() {
	defer close(e.Done)
	buf := make([]byte, 64<<10) // twice the most that the kernel puts into one datagram (NLMSG_GOODSIZE and more for VFs)
	for {
		n, err := e.file.Read(buf)
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// Events were lost (netlink(7)): anything may have happened. The socket stays usable.
			e.signal()
		case err != nil:
			e.Err = err
			return
		case concerns(buf[:n], e.Interest.Load()):
			e.signal()
		}
	}
}

func (e *Events) signal() {
	select {
	case e.Changed <- struct{}{}:
	default:
	}
}

// concerns reports whether a datagram of rtnetlink has a message about one of the objects of interest. It returns
// true for one that it cannot parse: the cost is one needless check.
func concerns(b []byte, in *Interest) bool {
	if in == nil {
		return false
	}
	msgs, err := syscall.ParseNetlinkMessage(b)
	if err != nil {
		return true
	}
	for i := range msgs {
		m := &msgs[i]
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if concernsLink(m.Data, in) {
				return true
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			if concernsAddr(m.Data, in) {
				return true
			}
		}
	}
	return false
}

// concernsLink looks at the index in struct ifinfomsg (rtnetlink(7)) and at the name.
func concernsLink(b []byte, in *Interest) bool {
	if len(b) < unix.SizeofIfInfomsg {
		return true
	}
	if index := int32(binary.NativeEndian.Uint32(b[4:])); in.Index != 0 && index == in.Index {
		return true
	}
	return anyAttr(b[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) bool {
		return kind == unix.IFLA_IFNAME && unix.ByteSliceToString(value) == in.Name
	})
}

// concernsAddr looks at the addresses that follow struct ifaddrmsg, whichever link they are about.
func concernsAddr(b []byte, in *Interest) bool {
	if len(b) < unix.SizeofIfAddrmsg {
		return true
	}
	return anyAttr(b[unix.SizeofIfAddrmsg:], func(kind uint16, value []byte) bool {
		if kind != unix.IFA_LOCAL && kind != unix.IFA_ADDRESS {
			return false
		}
		ip, ok := netip.AddrFromSlice(value)
		return ok && slices.Contains(in.Addrs, ip.Unmap())
	})
}

// anyAttr reports whether match holds for one of the attributes in b (struct rtattr, rtnetlink(7)), or b holds no
// well-formed attributes. The syscall package's parser panics on a short one.
func anyAttr(b []byte, match func(kind uint16, value []byte) bool) bool {
	for len(b) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return true
		}
		if match(binary.NativeEndian.Uint16(b[2:]), b[unix.SizeofRtAttr:size]) {
			return true
		}
		b = b[min((size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1), len(b)):]
	}
	return false
}

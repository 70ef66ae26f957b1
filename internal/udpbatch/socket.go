package udpbatch

import (
	"errors"
	"net"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Wildcard reports whether c is bound to the unspecified address, so that a reply needs Options.Local.
func Wildcard(c *net.UDPConn) bool {
	a, ok := c.LocalAddr().(*net.UDPAddr)
	return ok && (a.IP == nil || a.IP.IsUnspecified())
}

// RaiseReadBuffer lets the socket's receive queue take up to size octets of the kernel's memory, unless it may
// take more already, and returns what it may take now. With CAP_NET_ADMIN it may be more than the sysctl
// net.core.rmem_max allows (socket(7)). The kernel counts about 800 octets for a small datagram.
func RaiseReadBuffer(c *net.UDPConn, size int) (int, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var now int
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		if now, sysErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF); sysErr != nil || now >= size {
			return
		}
		// The kernel doubles what it is given, for its own bookkeeping.
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size/2) != nil {
			sysErr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size/2)
		}
		if sysErr == nil {
			now, sysErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
		}
	})
	return now, errors.Join(err, os.NewSyscallError("SO_RCVBUF", sysErr))
}

// Cookie identifies the socket among all that this kernel has had (SO_COOKIE, socket(7)): it is the same for
// each descriptor of it.
func Cookie(c *net.UDPConn) (uint64, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cookie uint64
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		cookie, sysErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	})
	return cookie, errors.Join(err, os.NewSyscallError("SO_COOKIE", sysErr))
}

// Drops is how many datagrams the kernel has thrown away for the socket since it was opened, because its
// receive queue was full or a checksum was wrong. It is the number that SO_RXQ_OVFL attaches to datagrams, asked
// for when it is wanted (SO_MEMINFO, Linux 4.12), so that reading does not pay for it and the drops before
// a silence are not missed. It overflows at 2³².
func Drops(c *net.UDPConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	// SK_MEMINFO_DROPS is the last of SK_MEMINFO_VARS numbers (include/uapi/linux/sock_diag.h).
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	var sysErr error
	err = raw.Control(func(fd uintptr) {
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO,
			uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
		if errno != 0 {
			sysErr = errno
		}
	})
	return info[8], errors.Join(err, os.NewSyscallError("SO_MEMINFO", sysErr))
}

// Probe tells whether recvmmsg and sendmmsg may be used here: a seccomp profile can forbid them, and then every read
// would fail. It reads and sends nothing.
func Probe(c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var errs []error
	err = raw.Control(func(fd uintptr) {
		for _, call := range []struct {
			name   string
			number uintptr
		}{{"recvmmsg", unix.SYS_RECVMMSG}, {"sendmmsg", unix.SYS_SENDMMSG}} {
			// Of no message at all.
			if _, _, errno := unix.Syscall6(call.number, fd, 0, 0, unix.MSG_DONTWAIT, 0, 0); errno != 0 && errno != unix.EAGAIN {
				errs = append(errs, os.NewSyscallError(call.name, errno))
			}
		}
	})
	return errors.Join(append(errs, err)...)
}

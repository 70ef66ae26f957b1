package udpbatch

import (
	"errors"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Options of a Reader.
type Options struct {
	// Batch is the number of datagrams that are read at once.
	Batch int
	// Size is the room for a datagram, in octets. What is longer is cut off: see Reader.Truncated.
	Size int
	// Local has the kernel say what address each datagram was sent to. Needed on a socket that is bound to the
	// unspecified address; elsewhere it only costs, about 50 ns a datagram there and back.
	Local bool
	// Timestamps has the kernel say when datagrams arrived, which costs about 50 ns each. After a batch of 16 or more,
	// when they come as fast as they are read, only the first eight of the next and every eighth behind them are asked
	// for. The others get the time of the one before them, which came some microseconds before.
	Timestamps bool
}

const (
	stampRun  = 8
	deepBatch = 16
)

// stamped tells whether the kernel is asked when the i-th datagram of a batch behind a deep one arrived.
func stamped(i int) bool { return i < stampRun || i%stampRun == 0 }

// receivedControl is room for what the kernel says of a datagram: the larger pktinfo and a timestamp.
const receivedControl = 128

// mmsghdr is the kernel's struct of that name (recvmmsg(2)). Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// Reader reads batches from one socket. It is for one goroutine.
type Reader struct {
	raw     syscall.RawConn
	hdrs    []mmsghdr
	iovs    []unix.Iovec
	peers   []Peer
	buf     []byte
	control []byte // receivedControl for each datagram; empty where none is asked for
	local   bool   // Options.Local
	size    int
	used    int  // headers to be prepared: the kernel has written to them
	deep    bool // the last batch was

	handle   func(n int) bool
	readable func(fd uintptr) bool
	poll     func(fd uintptr)
	n        int
	err      error
}

// NewReader makes the buffers and sets the socket's options.
func NewReader(c *net.UDPConn, o Options) (*Reader, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	r := &Reader{
		raw:   raw,
		hdrs:  make([]mmsghdr, o.Batch),
		iovs:  make([]unix.Iovec, o.Batch),
		peers: make([]Peer, o.Batch),
		buf:   make([]byte, o.Batch*o.Size),
		size:  o.Size,
		local: o.Local,
		used:  o.Batch,
	}
	if o.Local || o.Timestamps {
		if err := setControl(raw, o); err != nil {
			return nil, err
		}
		r.control = make([]byte, o.Batch*receivedControl)
	}
	for i := range r.hdrs {
		r.iovs[i].Base = &r.buf[i*o.Size]
		r.iovs[i].SetLen(o.Size)
		h := &r.hdrs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&r.peers[i].name))
		if r.control != nil {
			h.Control = &r.control[i*receivedControl]
		}
	}
	r.readable, r.poll = r.onReadable, r.onPoll
	return r, nil
}

// setControl asks the kernel for what o wants to know of each datagram.
func setControl(raw syscall.RawConn, o Options) error {
	var errs []error
	set := func(fd uintptr, level, option int, name string) {
		if err := unix.SetsockoptInt(int(fd), level, option, 1); err != nil {
			errs = append(errs, os.NewSyscallError("setsockopt "+name, err))
		}
	}
	err := raw.Control(func(fd uintptr) {
		domain, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		if err != nil {
			errs = append(errs, os.NewSyscallError("getsockopt SO_DOMAIN", err))
		}
		// An IPv6 socket that takes IPv4 too says the mapped address, and takes it for a reply.
		switch {
		case o.Local && domain == unix.AF_INET:
			set(fd, unix.SOL_IP, unix.IP_PKTINFO, "IP_PKTINFO")
		case o.Local:
			set(fd, unix.SOL_IPV6, unix.IPV6_RECVPKTINFO, "IPV6_RECVPKTINFO")
		}
		if o.Timestamps {
			set(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, "SO_TIMESTAMPNS")
		}
	})
	return errors.Join(append(errs, err)...)
}

// Serve reads until handle returns false, the socket's read deadline passes (os.ErrDeadlineExceeded) or the
// socket is closed (net.ErrClosed). It calls handle with each batch's number of datagrams, at least 1; they are
// valid until the next batch. handle must not call Serve or Poll.
func (r *Reader) Serve(handle func(n int) bool) error {
	r.handle, r.err = handle, nil
	err := r.raw.Read(r.readable)
	r.handle = nil
	return errors.Join(err, r.err)
}

// onReadable reads batch after batch while the socket has datagrams, and reports whether Serve is to end.
func (r *Reader) onReadable(fd uintptr) bool {
	for errs := 0; ; {
		n, errno := r.receive(fd)
		switch errno {
		case 0:
			errs = 0
			if !r.handle(n) {
				return true
			}
			if n < len(r.hdrs) {
				// The kernel found the queue empty. It is not asked again: whatever comes from now on
				// makes the poller's wait end.
				return false
			}
		case unix.EAGAIN:
			return false
		case unix.EINTR:
		default:
			// So many in a row are not about datagrams: the system call itself is not allowed, say.
			if errs++; !transient(errno) || errs > len(r.hdrs) {
				r.err = os.NewSyscallError("recvmmsg", errno)
				return true
			}
		}
	}
}

// transient tells errors that are about a datagram sent earlier: reading goes on.
func transient(errno unix.Errno) bool {
	switch errno {
	case unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EHOSTDOWN, unix.ENETDOWN,
		unix.EMSGSIZE, unix.EPROTO, unix.ENOPROTOOPT, unix.EACCES, unix.EPERM:
		return true
	}
	return false
}

// Poll reads one batch without waiting and without regard to deadlines. It returns 0 where there is nothing.
func (r *Reader) Poll() (int, error) {
	r.n, r.err = 0, nil
	err := r.raw.Control(r.poll)
	return r.n, errors.Join(err, r.err)
}

func (r *Reader) onPoll(fd uintptr) {
	// The errors of earlier datagrams are few; each look takes one.
	for range len(r.hdrs) {
		n, errno := r.receive(fd)
		switch {
		case errno == 0:
			r.n = n
			return
		case errno == unix.EAGAIN:
			return
		case errno == unix.EINTR || transient(errno):
		default:
			r.err = os.NewSyscallError("recvmmsg", errno)
			return
		}
	}
}

// receive is one recvmmsg(2).
func (r *Reader) receive(fd uintptr) (int, unix.Errno) {
	for i := range r.used {
		h := &r.hdrs[i].hdr
		h.Namelen = unix.SizeofSockaddrInet6
		h.Flags = 0
		// Where there is no room, the kernel writes nothing and sets MSG_CTRUNC.
		h.SetControllen(r.controlRoom(i))
	}
	r.used = 0
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&r.hdrs[0])), uintptr(len(r.hdrs)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		// The one that failed may have been written to.
		r.used = 1
		return 0, errno
	}
	r.used = int(got)
	if r.used < len(r.hdrs) {
		r.used++ // and so may the one behind the last
	}
	if deep := got >= deepBatch; deep != r.deep {
		r.deep, r.used = deep, len(r.hdrs) // the room of all is another one now
	}
	var received int64
	for i := range int(got) {
		p, h := &r.peers[i], &r.hdrs[i].hdr
		p.nameLen = h.Namelen
		if r.control == nil {
			continue
		}
		p.readControl(r.control[i*receivedControl:][:h.Controllen])
		if p.Received == 0 {
			p.Received = received
		}
		received = p.Received
	}
	return int(got), 0
}

// controlRoom is how much the kernel may say of the i-th datagram.
func (r *Reader) controlRoom(i int) int {
	if r.control == nil || r.deep && !r.local && !stamped(i) {
		return 0
	}
	return receivedControl
}

// Payload is the i-th datagram of the last batch. It is valid until the next one.
func (r *Reader) Payload(i int) []byte {
	return r.buf[i*r.size:][:min(int(r.hdrs[i].len), r.size)]
}

// Truncated reports whether the i-th datagram of the last batch was longer than Options.Size.
func (r *Reader) Truncated(i int) bool { return r.hdrs[i].hdr.Flags&unix.MSG_TRUNC != 0 }

// Peer is where the i-th datagram of the last batch came from. It is valid until the next one.
func (r *Reader) Peer(i int) *Peer { return &r.peers[i] }

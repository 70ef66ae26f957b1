package udpbatch

import (
	"errors"
	"net"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sendTimeout is how long Flush waits for a socket whose send buffer is full. A buffer that has no room for so
// long belongs to an interface that sends nothing, and who waits for it does not read.
const sendTimeout = 20 * time.Millisecond

// Writer sends batches over one socket. It is for one goroutine.
type Writer struct {
	raw   syscall.RawConn
	hdrs  []mmsghdr
	iovs  []unix.Iovec
	peers []Peer
	n     int

	writable func(fd uintptr) bool
	off      int
	failed   int
	retried  bool // the datagram at off, after an error that was not its own
	waited   bool // for room, once a Flush
}

// NewWriter makes a Writer for batches of up to batch datagrams.
func NewWriter(c *net.UDPConn, batch int) (*Writer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	w := &Writer{
		raw:   raw,
		hdrs:  make([]mmsghdr, batch),
		iovs:  make([]unix.Iovec, batch),
		peers: make([]Peer, batch),
	}
	for i := range w.hdrs {
		h := &w.hdrs[i].hdr
		h.Iov = &w.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&w.peers[i].name))
	}
	w.writable = w.onWritable
	return w, nil
}

// Len is the number of datagrams that were added since the last Flush.
func (w *Writer) Len() int { return w.n }

// Add puts one datagram for p into the batch, which must not be full. payload must stay as it is until Flush.
func (w *Writer) Add(payload []byte, p *Peer) {
	i := w.n
	w.n++
	w.iovs[i].Base = unsafe.SliceData(payload)
	w.iovs[i].SetLen(len(payload))
	to, h := &w.peers[i], &w.hdrs[i].hdr
	to.name = p.name
	h.Namelen = p.nameLen
	if p.controlLen == 0 {
		h.Control = nil
		h.SetControllen(0)
		return
	}
	to.control = p.control
	h.Control = &to.control[0]
	h.SetControllen(int(p.controlLen))
}

// Flush sends the batch and returns how many of its datagrams could not be sent. The error is that of a socket
// which cannot be used any more; no datagram behind it was sent.
func (w *Writer) Flush() (failed int, err error) {
	w.off, w.failed, w.retried, w.waited = 0, 0, false, false
	err = w.raw.Write(w.writable)
	failed = w.failed + w.n - w.off
	w.n = 0
	return failed, err
}

// room waits for room in the send buffer, for sendTimeout at most.
func room(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for end := time.Now().Add(sendTimeout); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		// The runtime's own signals interrupt it, whenever they come.
		if !errors.Is(err, unix.EINTR) || !time.Now().Before(end) {
			return err == nil && n == 1
		}
	}
}

func (w *Writer) onWritable(fd uintptr) bool {
	for w.off < w.n {
		sent, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&w.hdrs[w.off])), uintptr(w.n-w.off), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			w.off += int(sent)
			w.retried = false
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			// Not the poller's wait: its deadline is the socket's, and others who send set theirs.
			if w.waited || !room(fd) {
				return true
			}
			w.waited = true
		case errno == unix.ECONNREFUSED && !w.retried:
			// What the kernel had to say of an earlier datagram; this one was not looked at.
			w.retried = true
		default:
			w.off++
			w.failed++
			w.retried = false
		}
	}
	return true
}

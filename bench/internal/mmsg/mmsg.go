// Package mmsg receives and sends many datagrams with one system call, recvmmsg(2) and sendmmsg(2), on
// IPv4 sockets that do not block. It allocates when a Batch is made and never after.
package mmsg

import (
	"errors"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// header is struct mmsghdr of recvmmsg(2).
type header struct {
	hdr unix.Msghdr
	n   uint32
}

// Batch is a buffer for a fixed number of datagrams and peer addresses. Its memory must not move, because the kernel
// gets pointers into it.
type Batch struct {
	headers []header
	vectors []unix.Iovec
	names   []unix.RawSockaddrInet4
	buffers []byte
	size    int
}

// New returns a batch of n datagrams of up to size bytes each. With named, each has the address of its peer: Recv
// sets it, Send uses it. Without, the socket must be connected.
func New(n, size int, named bool) *Batch {
	b := &Batch{
		headers: make([]header, n), vectors: make([]unix.Iovec, n), names: make([]unix.RawSockaddrInet4, n),
		buffers: make([]byte, n*size), size: size,
	}
	for i := range b.headers {
		b.vectors[i].Base = &b.buffers[i*size]
		b.vectors[i].SetLen(size)
		b.headers[i].hdr.Iov = &b.vectors[i]
		b.headers[i].hdr.SetIovlen(1)
		if named {
			b.headers[i].hdr.Name = (*byte)(unsafe.Pointer(&b.names[i]))
			b.headers[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
	}
	return b
}

// Len is the number of datagrams that there is room for.
func (b *Batch) Len() int { return len(b.headers) }

// Buffer is the whole memory of datagram i.
func (b *Batch) Buffer(i int) []byte { return b.buffers[i*b.size : (i+1)*b.size] }

// Message returns the datagram i that Recv received.
func (b *Batch) Message(i int) []byte {
	return b.Buffer(i)[:min(int(b.headers[i].n), b.size)]
}

// SetLen says that datagram i is n bytes long when it is sent.
func (b *Batch) SetLen(i, n int) { b.vectors[i].SetLen(n) }

// From returns the source of datagram i of a named batch.
func (b *Batch) From(i int) netip.AddrPort {
	p := (*[2]byte)(unsafe.Pointer(&b.names[i].Port)) // in network byte order
	return netip.AddrPortFrom(netip.AddrFrom4(b.names[i].Addr), uint16(p[0])<<8|uint16(p[1]))
}

// Recv receives the available datagrams, at most Len, and returns their number. It does not wait: if there is none
// the error is unix.EAGAIN. It reverts every SetLen.
func (b *Batch) Recv(fd int) (int, error) {
	for i := range b.headers {
		b.vectors[i].SetLen(b.size)
		if b.headers[i].hdr.Name != nil {
			b.headers[i].hdr.Namelen = unix.SizeofSockaddrInet4
		}
	}
	// Raw, because it returns at once: the scheduler need not know.
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[0])), uintptr(len(b.headers)), unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// Send sends datagrams from up to before to, and returns how many the socket accepted before it failed. If the socket
// is full the error is unix.EAGAIN.
func (b *Batch) Send(fd, from, to int) (int, error) {
	sent := 0
	for from+sent < to {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.headers[from+sent])), uintptr(to-from-sent), unix.MSG_DONTWAIT, 0, 0)
		if errors.Is(errno, unix.EINTR) {
			continue
		}
		if errno != 0 {
			return sent, errno
		}
		sent += int(n)
	}
	return sent, nil
}

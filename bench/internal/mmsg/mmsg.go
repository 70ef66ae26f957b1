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

// Batch is room for a fixed number of datagrams and the addresses of the other ends. Its memory stays
// where it is, because the kernel is given pointers into it.
type Batch struct {
	headers []header
	vectors []unix.Iovec
	names   []unix.RawSockaddrInet4
	buffers []byte
	size    int
}

// New makes a batch of n datagrams of up to size bytes each. With named, each has the address of its other
// end: Recv fills it in, Send takes it. Without, the socket must be connected.
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

// Message is what Recv put into datagram i.
func (b *Batch) Message(i int) []byte {
	return b.Buffer(i)[:min(int(b.headers[i].n), b.size)]
}

// SetLen says that datagram i is n bytes long when it is sent.
func (b *Batch) SetLen(i, n int) { b.vectors[i].SetLen(n) }

// From is where datagram i of a named batch came from.
func (b *Batch) From(i int) netip.AddrPort {
	p := (*[2]byte)(unsafe.Pointer(&b.names[i].Port)) // in network byte order
	return netip.AddrPortFrom(netip.AddrFrom4(b.names[i].Addr), uint16(p[0])<<8|uint16(p[1]))
}

// Recv receives what is there, at most Len datagrams, and returns their number. It does not wait: with
// nothing there the error is unix.EAGAIN. It undoes every SetLen.
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

// Send sends datagrams from up to before to, and returns how many the socket took before it failed. With a
// full socket the error is unix.EAGAIN.
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

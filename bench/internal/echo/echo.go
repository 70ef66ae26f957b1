// Package echo is the minimal DNS server over UDP: it sends every datagram back with the QR bit (RFC 1035, section
// 4.1.1) set. Its cost is that of the socket, the limit for any server.
package echo

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/bench/internal/mmsg"
)

// size is the room for a datagram, as CoreDNS has it with EDNS.
const size = 4096

// receiveBuffer is requested from the kernel, in bytes, so that the batched echo does not lose datagrams while it
// writes. The kernel grants up to net.core.rmem_max.
const receiveBuffer = 4 << 20

// Single answers with one system call to read a datagram and one to write it, until the context ends.
func Single(ctx context.Context, addr string) error {
	c, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	buf := make([]byte, size)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil || n < 12 {
			continue // an ICMP error of a client that has gone
		}
		buf[2] |= 0x80
		// A reply that does not fit into the socket is lost, as UDP may lose it.
		_, _ = c.WriteToUDPAddrPort(buf[:n], from)
	}
}

// Batched answers as many datagrams as are there, up to batch, with one system call each way, until the
// context ends. It sleeps in Go's poller, as any Go server must that shares its process with others.
func Batched(ctx context.Context, addr string, batch int) error {
	c, err := listen(ctx, addr)
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { c.Close() })()
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	b := mmsg.New(batch, size, true)
	var got, done int
	read := func(fd uintptr) bool {
		var err error
		got, err = b.Recv(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	}
	write := func(fd uintptr) bool {
		for done < got {
			n, err := b.Send(int(fd), done, got)
			done += n
			if errors.Is(err, unix.EAGAIN) {
				return false
			}
			if err != nil {
				done++ // the client of this datagram cannot be reached
			}
		}
		return true
	}
	for {
		if err := rc.Read(read); err != nil {
			return ended(ctx, err)
		}
		for i := range got {
			m := b.Message(i)
			if len(m) > 2 {
				m[2] |= 0x80
			}
			b.SetLen(i, len(m))
		}
		done = 0
		if err := rc.Write(write); err != nil {
			return ended(ctx, err)
		}
	}
}

// ended is no error where the context is the reason.
func ended(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return nil
}

func listen(ctx context.Context, addr string) (*net.UDPConn, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp4", addr)
	if err != nil {
		return nil, fmt.Errorf("echo: %w", err)
	}
	c, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("echo: %T is no UDP socket", pc), pc.Close())
	}
	if err := c.SetReadBuffer(receiveBuffer); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

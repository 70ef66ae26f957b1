package upstream

import (
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Non-blocking sockets are written and read without informing Go's scheduler. If informed of a system call that takes
// 20 µs, as on a busy core, the scheduler hands the processor to another thread, and its monitor wakes every 20 µs
// meanwhile. That was a tenth of the CPU time of a miss.

// rawWrite is write(2).
func rawWrite(fd uintptr, b []byte) (int, unix.Errno) { return rawCall(unix.SYS_WRITE, fd, b) }

// rawRead is read(2).
func rawRead(fd uintptr, b []byte) (int, unix.Errno) { return rawCall(unix.SYS_READ, fd, b) }

func rawCall(call, fd uintptr, b []byte) (int, unix.Errno) {
	for {
		n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		switch errno {
		case 0:
			return int(n), 0
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// rawReader reads a stream. It holds the poller's reference only during the system call and the wait: closing the
// connection waits for that.
type rawReader struct {
	raw  syscall.RawConn
	step func(fd uintptr) bool // once, bound once
	into []byte
	n    int
	err  error
}

func newRawReader(raw syscall.RawConn) *rawReader {
	r := &rawReader{raw: raw}
	r.step = r.once
	return r
}

// Read implements io.Reader.
func (r *rawReader) Read(b []byte) (int, error) {
	r.into, r.n, r.err = b, 0, nil
	err := r.raw.Read(r.step)
	r.into = nil
	if err != nil {
		return 0, err
	}
	return r.n, r.err
}

// once makes one system call; it returns false if there is nothing to read yet.
func (r *rawReader) once(fd uintptr) bool {
	n, errno := rawRead(fd, r.into)
	switch {
	case errno == unix.EAGAIN:
		return false
	case errno != 0:
		r.err = os.NewSyscallError("read", errno)
	case n == 0:
		r.err = io.EOF
	default:
		r.n = n
	}
	return true
}

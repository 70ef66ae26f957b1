package udpbatch

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func loopback(t *testing.T) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestProbe(t *testing.T) {
	c := loopback(t)
	if err := Probe(c); err != nil {
		t.Errorf("a socket as any other: %v", err)
	}
	// What waits to be read is still there.
	if _, err := c.WriteTo([]byte("x"), c.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := Probe(c); err != nil {
		t.Error(err)
	}
	if n, err := c.Read(make([]byte, 10)); n != 1 || err != nil {
		t.Errorf("read %d octets, %v", n, err)
	}
}

// TestProbeForbidden runs a process whose seccomp profile forbids a system call: it finds out without losing a query.
func TestProbeForbidden(t *testing.T) {
	if name := os.Getenv("UDPBATCH_FORBID"); name != "" {
		number := map[string]uint32{"recvmmsg": unix.SYS_RECVMMSG, "sendmmsg": unix.SYS_SENDMMSG}[name]
		forbid(t, number)
		err := Probe(loopback(t))
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: %v", name, err)
		}
		return
	}
	for _, name := range []string{"recvmmsg", "sendmmsg"} {
		child := exec.Command(os.Args[0], "-test.run=^TestProbeForbidden$", "-test.v")
		child.Env = append(os.Environ(), "UDPBATCH_FORBID="+name)
		out, err := child.CombinedOutput()
		if strings.Contains(string(out), "--- SKIP") {
			t.Skipf("%s", out)
		}
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

// forbid makes a system call fail with EPERM for the rest of this thread's life (seccomp(2)). It does not check the
// architecture and is for this test only.
func forbid(t *testing.T, number uint32) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // the number
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: number, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x00050000 | uint32(unix.EPERM)}, // SECCOMP_RET_ERRNO
		{Code: unix.BPF_RET | unix.BPF_K, K: 0x7fff0000},                      // SECCOMP_RET_ALLOW
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Skip("no_new_privs:", err)
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		t.Skip("this kernel has no seccomp filters: ", err)
	}
}

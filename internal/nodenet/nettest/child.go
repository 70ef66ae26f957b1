package nettest

import (
	"bufio"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// childVar holds the childSpec of a test process that is another process of the node.
const childVar = "NODENET_TEST_CHILD"

// ChildSpec says what another process of the node does: it takes names and opens sockets.
type ChildSpec struct {
	UID    int    // 0: the test's own
	Owner  string // "": takes no names
	Lock   bool   // holds the lock
	Listen []netip.AddrPort
}

// Stranger is a user that the test is not, and has no rights.
const Stranger = 4711

// StartChild starts a process in the namespace of the test and waits until it has done what s says. The returned func
// ends it and waits; it may be called twice.
func StartChild(t *testing.T, s ChildSpec) (pid int, end func()) {
	t.Helper()
	if s.UID != 0 && os.Geteuid() != 0 {
		t.Skip("needs root, to start a process of another user")
	}
	text, err := json.Marshal(s)
	Must(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	// It has the test's namespaces already.
	cmd.Env = append(os.Environ(), childVar+"="+string(text), lab.StayOutside)
	in, err := cmd.StdinPipe()
	Must(t, err)
	out, err := cmd.StdoutPipe()
	Must(t, err)
	cmd.Stderr = os.Stderr
	Must(t, cmd.Start())
	end = func() {
		_ = in.Close()
		_ = cmd.Process.Kill() // it may have ended already
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "child: cannot be user") {
			t.Skip(sc.Text())
		}
		if sc.Text() == "child: ready" {
			return cmd.Process.Pid, end
		}
	}
	t.Fatal("the child ended")
	return 0, nil
}

// RunChild is the body of TestChild, the main function of a child. The function take takes the names and the lock.
func RunChild(t *testing.T, take func(ChildSpec) error) {
	text := os.Getenv(childVar)
	if text == "" {
		t.Skip("for a child of other tests")
	}
	var s ChildSpec
	Must(t, json.Unmarshal([]byte(text), &s))
	for _, a := range s.Listen { // before it gives up the right to open port 53
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		Must(t, err)
		defer c.Close()
	}
	if s.UID != 0 {
		if err := syscall.Setuid(s.UID); err != nil {
			// The user namespace of an ordinary user's tests has only one.
			os.Stdout.WriteString("child: cannot be user: " + err.Error() + "\n")
			return
		}
	}
	Must(t, take(s))
	os.Stdout.WriteString("child: ready\n")
	end := make(chan struct{})
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // ends when the parent closes it
		close(end)
	}()
	select {
	case <-end:
	case <-time.After(time.Minute): // the parent was killed
	}
}

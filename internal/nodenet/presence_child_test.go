package nodenet

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childVar holds the childSpec of a test process that is another process of the node.
const childVar = "NODENET_TEST_CHILD"

// childSpec is what another process of the node does: it takes names and opens sockets.
type childSpec struct {
	UID    int    // 0: the test's own
	Owner  string // "": takes no names
	Lock   bool   // holds the lock
	Listen []netip.AddrPort
}

// stranger is a user that the test is not, and has no rights.
const stranger = 4711

// startChild starts a process in the namespace of the test and waits until it has done what s says. The
// returned func ends it and waits; it may be called twice.
func startChild(t *testing.T, s childSpec) (pid int, end func()) {
	t.Helper()
	if s.UID != 0 && os.Geteuid() != 0 {
		t.Skip("needs root, to start a process of another user")
	}
	text, err := json.Marshal(s)
	must(t, err)
	cmd := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
	// It has the test's namespaces already.
	cmd.Env = append(os.Environ(), childVar+"="+string(text), insideVar+"=a child has no namespaces of its own")
	in, err := cmd.StdinPipe()
	must(t, err)
	out, err := cmd.StdoutPipe()
	must(t, err)
	cmd.Stderr = os.Stderr
	must(t, cmd.Start())
	end = func() { in.Close(); cmd.Process.Kill(); cmd.Wait() }
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

// TestChild is the main function of a child.
func TestChild(t *testing.T) {
	text := os.Getenv(childVar)
	if text == "" {
		t.Skip("for a child of other tests")
	}
	var s childSpec
	must(t, json.Unmarshal([]byte(text), &s))
	for _, a := range s.Listen { // before it gives up the right to take port 53
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		must(t, err)
		defer c.Close()
	}
	if s.UID != 0 {
		if err := syscall.Setuid(s.UID); err != nil {
			// The user namespace of an ordinary user's tests has only one.
			os.Stdout.WriteString("child: cannot be user: " + err.Error() + "\n")
			return
		}
	}
	if s.Owner != "" {
		p := &presence{owner: s.Owner}
		must(t, p.join())
		must(t, p.keep())
	}
	if s.Lock {
		_, err := (&presence{owner: s.Owner}).lock(context.Background())
		must(t, err)
	}
	os.Stdout.WriteString("child: ready\n")
	end := make(chan struct{})
	go func() { os.Stdin.Read(make([]byte, 1)); close(end) }()
	select {
	case <-end:
	case <-time.After(time.Minute): // the parent was killed
	}
}

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envReached makes the test program one that is reachable from outside of its world.
const envReached = "LOCALCACHE_LAB_TEST_REACHED"

// beReached greets its own connection and two others, and prints its address.
func beReached() int {
	outside, inside, status, err := EnterWithOutside()
	if err == nil && !inside {
		return status
	}
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err != nil {
		return fail(err)
	}
	// Programs of the lab inherit none of the sockets.
	ls := exec.Command("sh", "-c", "ls -l /proc/self/fd | grep -c socket:")
	if out, err := ls.Output(); strings.TrimSpace(string(out)) != "0" {
		return fail(fmt.Errorf("a program has %s sockets: %w", strings.TrimSpace(string(out)), err))
	}
	go func() {
		for range 3 {
			c, err := outside.Listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello\n") // who does not get it complains
			_ = c.Close()
		}
	}()
	hello, err := bufio.NewReader(outside.Conn).ReadString('\n')
	if err != nil {
		return fail(err)
	}
	if c, err := net.Dial("tcp", outside.Listener.Addr().String()); err == nil {
		return fail(fmt.Errorf("the world's own loopback leads to %v", c.RemoteAddr()))
	}
	fmt.Printf("%s at %s\n", strings.TrimSpace(hello), outside.Listener.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin) // until the end
	return 0
}

// A served socket is reachable from the network in which the program was started, and ends with the program.
func TestOutside(t *testing.T) {
	Start(t, Config{}) // skips where there is no lab
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envReached+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_, address, ok := strings.Cut(strings.TrimSpace(line), "hello at ")
	if !ok {
		t.Fatalf("it said %q and ended: %v", line, cmd.Wait())
	}
	if host, _, err := net.SplitHostPort(address); err != nil || host != "127.0.0.1" {
		t.Errorf("it listens at %s", address)
	}
	for range 2 {
		c, err := net.DialTimeout("tcp", address, 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if hello, err := io.ReadAll(c); err != nil || string(hello) != "hello\n" {
			t.Errorf("it said %q: %v", hello, err)
		}
		_ = c.Close()
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if c, err := net.Dial("tcp", address); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the end: %v, %v; want nobody there", c, err)
	}
}

// Without the sockets there is a reason.
func TestNoOutside(t *testing.T) {
	t.Setenv(envOutside, "no such loopback")
	if o, err := takeOutside(); o != nil || !errors.Is(err, ErrNoOutside) || !strings.Contains(err.Error(), "no such loopback") {
		t.Errorf("%v, %v", o, err)
	}
}

// Package nettest gives tests of the node's network disposable network namespaces, links, pods and DNS servers. Nothing of it
// touches the machine's own network.
package nettest

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// insideVar is set to "yes" in a test process inside the namespaces, or to the reason why there are none.
const insideVar = "NODENET_TEST_INSIDE"

// Main is the body of TestMain. It runs the tests in a network and a mount namespace of their own, so that they do
// not affect the machine's links, rules, /run/xtables.lock or abstract sockets. An ordinary user gets both inside a
// user namespace. If the kernel allows none of it, or with -short, the tests that need a namespace are skipped and
// say why.
func Main(m *testing.M) int {
	flag.Parse()
	if testing.Short() && os.Getenv(insideVar) == "" {
		setInside("-short leaves out tests in network namespaces")
	}
	if os.Getenv(insideVar) == "" {
		code, err := runInside()
		if err == nil {
			return code
		}
		setInside(fmt.Sprintf("no namespaces for tests: %v", err))
	}
	if os.Getenv(insideVar) == "yes" {
		if err := ownMounts(); err != nil {
			fmt.Fprintln(os.Stderr, "nodenet tests:", err)
			return 1
		}
	}
	return m.Run()
}

func setInside(value string) {
	if err := os.Setenv(insideVar, value); err != nil {
		panic(err) // the name is a constant without an equals sign: this cannot fail
	}
}

// runInside runs this very test binary again inside new namespaces and returns its exit status. An
// error means that it could not be started there.
func runInside() (int, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVar+"=yes")
	attr := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		attr.Cloneflags |= syscall.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	// The terminal sends an interrupt to both processes; this one only has to outlive the other.
	signal.Ignore(os.Interrupt)
	defer signal.Reset(os.Interrupt)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1), nil // -1 after a signal
	}
	return 0, err
}

// ownMounts gives the process its own /run, for the lock files of iptables.
func ownMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "size=4m"); err != nil {
		return fmt.Errorf("mount a tmpfs on /run: %w", err)
	}
	return nil
}

// Namespace is a network namespace that lives as long as a test.
type Namespace struct {
	T      *testing.T
	Handle netns.NsHandle
}

// NewNamespace creates a network namespace with only lo, up, and moves the calling goroutine, the test's own, into
// it. Its thread is locked and ends with it. Other goroutines of the test must be started with Go to be in the
// namespace as well.
func NewNamespace(t *testing.T) *Namespace {
	t.Helper()
	n := NewPod(t)
	runtime.LockOSThread() // never unlocked: the thread cannot be used for anything else afterwards
	if err := netns.Set(n.Handle); err != nil {
		t.Fatalf("enter the network namespace: %v", err)
	}
	return n
}

// NewPod creates a network namespace like NewNamespace, but leaves the test where it is.
func NewPod(t *testing.T) *Namespace {
	t.Helper()
	if s := os.Getenv(insideVar); s != "yes" {
		t.Skip(s)
	}
	n := &Namespace{T: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
		made <- n.enterNew()
	}()
	if err := <-made; err != nil {
		t.Fatalf("new network namespace: %v", err)
	}
	t.Cleanup(func() { _ = n.Handle.Close() })
	return n
}

func (n *Namespace) enterNew() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	n.Handle, err = netns.Get()
	return err
}

// Go runs f on a goroutine with a disposable thread in the namespace, as the go statement would. It
// fits KeeperConfig.Go.
func (n *Namespace) Go(f func()) {
	go n.Run(f)
}

// Run moves the calling thread into the namespace and runs f on it.
func (n *Namespace) Run(f func()) {
	runtime.LockOSThread() // never unlocked, so that the thread ends with the goroutine
	if err := netns.Set(n.Handle); err != nil {
		n.T.Errorf("enter the network namespace: %v", err)
		return
	}
	f()
}

// Do runs f in the namespace and waits for it.
func (n *Namespace) Do(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.Run(f)
	}()
	<-done
}

// Log hands a Logger's lines to the test's log and keeps them for inspection.
type Log struct {
	t     *testing.T
	lines chan string
}

// NewLog returns a Log for t.
func NewLog(t *testing.T) *Log { return &Log{t: t, lines: make(chan string, 1000)} }

func (l *Log) put(level, format string, v []any) {
	s := level + " " + fmt.Sprintf(format, v...)
	l.t.Log(s)
	select {
	case l.lines <- s:
	default:
	}
}

// Infof implements rule.Logger.
func (l *Log) Infof(format string, v ...any) { l.put("INFO", format, v) }

// Warningf implements rule.Logger.
func (l *Log) Warningf(format string, v ...any) { l.put("WARN", format, v) }

// Errorf implements rule.Logger.
func (l *Log) Errorf(format string, v ...any) { l.put("ERROR", format, v) }

// All returns the lines that were logged since the last call.
func (l *Log) All() []string {
	var lines []string
	for {
		select {
		case s := <-l.lines:
			lines = append(lines, s)
		default:
			return lines
		}
	}
}

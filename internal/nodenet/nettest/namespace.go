// Package nettest gives tests of the node's network disposable network namespaces, links, pods and DNS servers. Nothing of it
// touches the machine's own network.
package nettest

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/lab"
)

// Main is the body of TestMain. It runs the tests in a network and a mount namespace of their own, so that they do not affect
// the machine's links, rules, /run/xtables.lock or abstract sockets; see lab.Main.
func Main(m *testing.M) int { return lab.Main(m) }

// StayOutside is an environment variable for processes of the test binary that a test starts; see lab.StayOutside.
const StayOutside = lab.StayOutside

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
	lab.Require(t)
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

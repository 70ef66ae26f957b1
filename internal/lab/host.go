package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Host is a machine of the lab: a network namespace and a mount namespace with its own /etc/resolv.conf, /etc/hosts
// and /etc/nsswitch.conf.
//
// Both namespaces belong to one operating system thread which lives as long as the host. Programs are started by that
// thread, because the kernel sends a parent-death signal when the starting thread ends, not when the process does.
type Host struct {
	Name string
	IPv4 netip.Addr
	IPv6 netip.Addr // invalid where the kernel has no IPv6

	// TID is the id of the host's thread. /proc/TID/ns/net and /proc/TID/ns/mnt are the host's
	// namespaces, so `nsenter -t TID -n -m` enters it from a shell.
	TID int

	dir   string // holds the files seen below /etc
	netns *os.File
	mntns *os.File
	jobs  chan func()
	ended chan struct{} // closed when the thread has ended

	mu       sync.Mutex
	programs []*Program
	closed   bool
}

// newHost creates a host's namespaces. Links and addresses are added later.
func newHost(name, dir string, etc etcFiles) (*Host, error) {
	h := &Host{Name: name, dir: filepath.Join(dir, name), jobs: make(chan func()), ended: make(chan struct{})}
	if err := os.Mkdir(h.dir, 0o755); err != nil {
		return nil, err
	}
	ready := make(chan error, 1)
	onOwnThread(func() {
		defer close(h.ended)
		if err := h.unshare(etc); err != nil {
			ready <- err
			return
		}
		ready <- nil
		for job := range h.jobs {
			job()
		}
	})
	if err := <-ready; err != nil {
		<-h.ended
		return nil, fmt.Errorf("host %s: %w", name, errors.Join(err, h.closeNamespaces()))
	}
	return h, nil
}

// unshare gives the calling thread namespaces of its own.
func (h *Host) unshare(etc etcFiles) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return refusal(fmt.Errorf("make namespaces: %w", err))
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return refusal(fmt.Errorf("make the mounts private: %w", err))
	}
	if err := etc.mount(h.dir); err != nil {
		return err
	}
	h.TID = unix.Gettid()
	var err error
	if h.netns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return err
	}
	h.mntns, err = os.Open("/proc/thread-self/ns/mnt")
	return err
}

// onOwnThread runs f on a thread which ends with it, so that changes of the thread's namespaces affect nothing else.
// The main thread cannot end and is passed over.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime then ends the thread with the goroutine
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		passed := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			defer close(passed)
			f()
		}()
		<-passed
		runtime.UnlockOSThread()
	}()
}

// Do runs f on a thread inside the host's namespaces and returns f's error. Sockets that f opens and
// programs that it runs to their end belong to the host; goroutines that it starts do not. It may be
// called from many goroutines at once. In tests f must return an error rather than call t.Fatal.
func (h *Host) Do(f func() error) error {
	result := make(chan error, 1)
	onOwnThread(func() {
		err := errors.New("the closure ended its goroutine instead of returning")
		defer func() { result <- err }()
		if enterErr := h.enter(); enterErr != nil {
			err = fmt.Errorf("enter host %s: %w", h.Name, enterErr)
			return
		}
		err = f()
	})
	return <-result
}

// enter moves the calling thread into the host. The thread must not be used for anything else afterwards.
func (h *Host) enter() error {
	h.mu.Lock()
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return fmt.Errorf("host %s is closed: %w", h.Name, net.ErrClosed)
	}
	wd, err := os.Getwd()
	if err != nil {
		return err
	}
	// A thread that shares its working directory with others may not change mount namespaces.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	if err := unix.Setns(int(h.mntns.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.Chdir(wd)
}

// onThread runs a short f on the host's own thread, one at a time.
func (h *Host) onThread(f func() error) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return fmt.Errorf("host %s: %w", h.Name, net.ErrClosed)
	}
	result := make(chan error, 1)
	h.jobs <- func() { result <- f() }
	h.mu.Unlock()
	return <-result
}

// Dial connects from the host; address must be an IP address and port. It may block a thread until
// ctx ends.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := h.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// ListenUDP opens a UDP socket bound to addr inside the host.
func (h *Host) ListenUDP(addr netip.AddrPort) (*net.UDPConn, error) {
	var conn *net.UDPConn
	err := h.onThread(func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	return conn, err
}

// ListenTCP opens a TCP listener bound to addr inside the host.
func (h *Host) ListenTCP(addr netip.AddrPort) (*net.TCPListener, error) {
	var l *net.TCPListener
	err := h.onThread(func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr))
		return err
	})
	return l, err
}

// WriteResolvConf replaces the content of the host's /etc/resolv.conf, for programs that start or
// read it later.
func (h *Host) WriteResolvConf(content string) error {
	return os.WriteFile(filepath.Join(h.dir, "resolv.conf"), []byte(content), 0o644)
}

// String returns the host's name.
func (h *Host) String() string { return h.Name }

// close ends the host's programs, its thread and, with the last socket, its namespaces.
func (h *Host) close() error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	close(h.jobs)
	programs := h.programs
	h.programs = nil
	h.mu.Unlock()

	var errs []error
	for _, p := range programs {
		if err := p.Kill(); err != nil {
			errs = append(errs, err)
			continue
		}
		<-p.Done()
	}
	<-h.ended
	return errors.Join(append(errs, h.closeNamespaces())...)
}

func (h *Host) closeNamespaces() error {
	var errs []error
	for _, f := range []*os.File{h.netns, h.mntns} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Space is a place in which programs run: the namespaces of the control plane, or those of a node. It is held
// by descriptors of the namespaces, so that no process is needed to keep it.
type Space struct {
	name  string
	files map[string]*os.File // by the name in /proc/PID/ns
}

// kinds are the namespaces of a Space in the order in which they are joined: the mounts come last, because
// what this process finds in /proc changes with them. All spaces of a cluster share one PID namespace.
var kinds = []struct {
	file string
	flag int
}{
	{"net", unix.CLONE_NEWNET}, {"uts", unix.CLONE_NEWUTS}, {"ipc", unix.CLONE_NEWIPC},
	{"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
}

// priority is the nice value of the cluster's programs: see setpriority(2).
const priority = -10

// openSpace opens the namespaces of a process or thread, given by its folder in /proc.
func openSpace(name, proc string) (*Space, error) {
	s := &Space{name: name, files: make(map[string]*os.File)}
	for _, k := range kinds {
		file := k.file
		if file == "pid" {
			file = "pid_for_children" // a thread's own never changes
		}
		f, err := os.Open(proc + "/ns/" + file)
		if err != nil {
			return nil, errors.Join(err, s.close())
		}
		s.files[k.file] = f
	}
	return s, nil
}

func (s *Space) close() error {
	var err error
	for _, f := range s.files {
		err = errors.Join(err, f.Close())
	}
	return err
}

// Do runs f on a thread of the space: sockets that f opens, files that it names and programs that it starts
// are the space's. f must not start goroutines that need the space.
func (s *Space) Do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked, so that the thread ends with the goroutine.
		runtime.LockOSThread()
		err := s.join()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (s *Space) join() error {
	// A thread that shares its root and working directory with others may not change the mounts.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("%s: a root of its own: %w", s.name, err)
	}
	for _, k := range kinds {
		if err := unix.Setns(int(s.files[k.file].Fd()), k.flag); err != nil {
			return fmt.Errorf("join %s's %s namespace: %w", s.name, k.file, err)
		}
	}
	// What the cluster runs goes before what else the machine does, as on a machine of its own. Where that is
	// not permitted, it takes its turn.
	_ = unix.Setpriority(unix.PRIO_PROCESS, 0, priority)
	return nil
}

// split makes a space with network, mounts and host name of its own, and the PID namespace of s. setUp runs
// on its first thread.
func (s *Space) split(name string, setUp func() error) (*Space, error) {
	var child *Space
	err := s.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("namespaces of %s: %w", name, err)
		}
		// The cluster's /proc does not have this thread; that of another thread of ours does.
		opened := make(chan error)
		self := "/proc/self/task/" + strconv.Itoa(unix.Gettid())
		go func() {
			var err error
			child, err = openSpace(name, self)
			opened <- err
		}()
		if err := <-opened; err != nil {
			return err
		}
		return setUp()
	})
	if err != nil && child != nil {
		err = errors.Join(err, child.close())
	}
	return child, err
}

// Start starts a program in the space. The caller waits for it.
func (s *Space) Start(cmd *exec.Cmd) error {
	return s.Do(cmd.Start)
}

// Run runs a program in the space and returns its standard output. The error has its standard error.
func (s *Space) Run(ctx context.Context, name string, args ...string) (string, error) {
	return s.Feed(ctx, "", name, args...)
}

// Feed is Run with something on standard input.
func (s *Space) Feed(ctx context.Context, input, name string, args ...string) (string, error) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &out, &errs
	err := s.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s %s: %w: %s", s.name, name, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), err
}

// DialContext connects from the space, for http.Transport.
func (s *Space) DialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = s.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is the default path of the unix socket.
const DefaultSocket = "/run/localcache/diag.sock"

// watchEvery is how often the socket's name is checked for a living owner.
const watchEvery = 5 * time.Second

// Socket serves the API at a path in the file system that only the user of this process may open.
//
// During an upgrade two processes want the same path. The new one takes it by renaming its own socket over the other,
// so that it always exists. The old one leaves it as long as the new one answers, and takes it again if that process
// ends. A process that ends removes the path only if it is its own.
type Socket struct {
	path  string
	log   Logger
	serve func(net.Listener) *Listening

	cancel context.CancelFunc
	done   sync.WaitGroup

	// Of the watching goroutine, and of Close when that has ended.
	listening *Listening
	mine      fileID
	warned    string
}

// fileID distinguishes a file from another one that has the same path later.
type fileID struct{ dev, ino uint64 }

// ServeSocket serves s at path until Close. Where that is not possible it says so once, and keeps trying.
func (s *Server) ServeSocket(path string, logger Logger) *Socket {
	ctx, cancel := context.WithCancel(context.Background())
	k := &Socket{path: path, log: logger, cancel: cancel}
	k.serve = func(ln net.Listener) *Listening { return s.Serve(ln, nil, "unix "+path, logger) }
	k.attempt(true)
	k.done.Go(func() { k.watch(ctx) })
	return k
}

// Close ends the Socket, and removes the path if it is this one's.
func (k *Socket) Close() {
	k.cancel()
	k.done.Wait()
	if k.listening == nil {
		return
	}
	k.unname()
	k.listening.Close()
}

func (k *Socket) watch(ctx context.Context) {
	ticker := time.NewTicker(watchEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			k.attempt(false)
		}
	}
}

// attempt takes the path if it is free, and the first time even if it is not.
func (k *Socket) attempt(first bool) {
	err := k.take(first)
	if err == nil {
		k.warned = ""
		return
	}
	if text := err.Error(); text != k.warned {
		k.warned = text
		k.log.Warningf("no diagnostics at %s: %v; 'localcache top' and the like do not work, DNS does", k.path, err)
	}
}

func (k *Socket) take(first bool) error {
	id, err := identify(k.path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := os.MkdirAll(filepath.Dir(k.path), 0o755); err != nil {
			return err
		}
	case err != nil:
		return err
	case id == k.mine:
		return nil
	case !first && answers(k.path):
		return nil // the next one of an upgrade
	}
	return k.bind()
}

// identify is the socket that has the name.
func identify(path string) (fileID, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, &os.PathError{Op: "lstat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return fileID{}, fmt.Errorf("%s is there already and is no socket: move it away", path)
	}
	return fileID{st.Dev, st.Ino}, nil
}

// answers reports whether a process listens there.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close() // nothing was written to it
		return true
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// bind creates a socket under a temporary name and renames it to the path.
func (k *Socket) bind() error {
	own := fmt.Sprintf("%s.%d", k.path, os.Getpid())
	if err := os.Remove(own); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The mode is set before the name exists: unix(7) and bind(2) take it from the socket's inode.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmod error
		err := c.Control(func(fd uintptr) { chmod = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmod)
	}}
	ln, err := config.Listen(context.Background(), "unix", own)
	if err != nil {
		return err
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	id, err := identify(own)
	if err == nil {
		err = os.Rename(own, k.path)
	}
	if err != nil {
		return errors.Join(err, ln.Close(), os.Remove(own))
	}
	if k.listening != nil {
		k.listening.Close()
	}
	k.mine, k.listening = id, k.serve(ln)
	return nil
}

// unname removes the path if it is this process's. Another process may take it between check and removal: so the file
// is moved aside first, and moved back if it belongs to the other.
func (k *Socket) unname() {
	if id, err := identify(k.path); err != nil || id != k.mine {
		return
	}
	aside := fmt.Sprintf("%s.%d", k.path, os.Getpid())
	if err := os.Rename(k.path, aside); err != nil {
		return
	}
	if id, err := identify(aside); err == nil && id != k.mine {
		_ = os.Link(aside, k.path) // if a third process has the path meanwhile, nothing has to be done
	}
	if err := os.Remove(aside); err != nil {
		k.log.Warningf("%s could not be removed: %v", aside, err)
	}
}

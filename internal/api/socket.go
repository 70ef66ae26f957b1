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

// DefaultSocket is where the unix socket is unless it is said otherwise.
const DefaultSocket = "/run/localcache/diag.sock"

// watchEvery is how often it is looked whether the socket's name is still somebody's.
const watchEvery = 5 * time.Second

// Socket is the API at a name in the file system, which only the user of this process may open.
//
// Two processes during an upgrade want the same name. The newcomer takes it, by renaming its own socket over the
// other: at no moment is there none. The older one lets it be as long as the newcomer answers, and takes the
// name again when that has ended. Who ends removes the name only where it is its own.
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

// fileID tells one file from another that has the same name later.
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

// Close ends it, and removes the name if it is this one's.
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

// attempt takes the name where it is free, and, the first time, from anybody.
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

// answers tells whether a process listens there.
func answers(path string) bool {
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close() // nothing was written to it
		return true
	}
	return !errors.Is(err, unix.ECONNREFUSED) && !errors.Is(err, unix.ENOENT)
}

// bind makes a socket under a name of its own and gives it the name that all know.
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

// unname removes the name if it is ours. Between the look and the deed another one may have taken it: so it is moved
// aside first, and put back where it turns out to be theirs.
func (k *Socket) unname() {
	if id, err := identify(k.path); err != nil || id != k.mine {
		return
	}
	aside := fmt.Sprintf("%s.%d", k.path, os.Getpid())
	if err := os.Rename(k.path, aside); err != nil {
		return
	}
	if id, err := identify(aside); err == nil && id != k.mine {
		_ = os.Link(aside, k.path) // where a third one has the name meanwhile, that is fine too
	}
	if err := os.Remove(aside); err != nil {
		k.log.Warningf("%s is left behind: %v", aside, err)
	}
}

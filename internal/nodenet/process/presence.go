// Package process finds the other localcache processes of a node and agrees with them which one maintains the rules.
// A process is known by an abstract unix socket name, which belongs to the network namespace, needs no file and
// vanishes with the process. The package also finds the process that holds a port which localcache needs.
package process

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/status"
)

// Several localcache processes share a node's network while one replaces another. They run in pods that share no file
// system and cannot see each other's processes. They find each other by abstract names of unix sockets (unix(7)),
// which belong to the shared network namespace and vanish with the process, however it ends. Nothing connects to
// these sockets; the name in /proc/net/unix carries the information:
//
//	@localcache/OWNER/present/START/PID   the process uses the owner's interface and rules
//	@localcache/OWNER/keeper/START/PID    its sockets are open: it can maintain the rules
//	@localcache/OWNER/lock                held during a change that depends on the other processes
//
// START is the CLOCK_BOOTTIME in nanoseconds at which the name was taken, in 16 hexadecimal digits, and PID the
// process's number in its own PID namespace. The newest keeper maintains the rules: two processes would undo each
// other's repairs if their specs differ. The newest wins because an upgrade's new spec must win; older processes take
// over when it ends. A process that is only present, for example one that never starts to serve, prevents others from
// removing what it needs, but not from repairing rules.
//
// Any process in the namespace can take such a name without privileges. So a name counts only if its socket belongs
// to this process's effective user; see socketUser. localcache processes of different users therefore ignore each
// other: each maintains its own rules, and only the other's open sockets prevent a removal (see HoldersOf). A process
// of the same user can prevent repairs and removals; if the kernel does not report socket owners, every process can.
// Neither can cause anything else. Names with a START in the future do not count, so that no name stays the newest
// for ever.

// PeerRole is the role that a process announces.
type PeerRole string

// The roles.
const (
	RolePresent PeerRole = "present"
	RoleKeeper  PeerRole = "keeper"
)

const (
	presencePrefix = "localcache/"
	presenceLock   = "lock"
)

// Peer is one announced name.
type Peer struct {
	Role  PeerRole
	start uint64 // CLOCK_BOOTTIME, ns
	pid   int    // in the process's own PID namespace
	inode uint64 // of the socket; 0 for a name of our own
}

func (p Peer) name(owner string) string {
	return fmt.Sprintf("%s%s/%s/%016x/%d", presencePrefix, owner, p.Role, p.start, p.pid)
}

// compare orders by age, the oldest first.
func (p Peer) compare(q Peer) int {
	if p.start != q.start {
		if p.start < q.start {
			return -1
		}
		return 1
	}
	return p.pid - q.pid
}

func lockName(owner string) string { return presencePrefix + owner + "/" + presenceLock }

// parsePeer parses a name without its leading @.
func parsePeer(name, owner string) (Peer, bool) {
	rest, ok := strings.CutPrefix(name, presencePrefix+owner+"/")
	if !ok {
		return Peer{}, false
	}
	f := strings.Split(rest, "/")
	if len(f) != 3 || len(f[1]) != 16 || f[0] != string(RolePresent) && f[0] != string(RoleKeeper) {
		return Peer{}, false
	}
	start, err := strconv.ParseUint(f[1], 16, 64)
	if err != nil {
		return Peer{}, false
	}
	pid, err := strconv.ParseUint(f[2], 10, 31)
	if err != nil {
		return Peer{}, false
	}
	p := Peer{Role: PeerRole(f[0]), start: start, pid: int(pid)}
	// A name that is spelled differently (a sign, capitals) was not written by localcache.
	return p, p.name(owner) == name
}

// maxUnixLines bounds how many lines of /proc/net/unix are read; more are not expected on any node.
const maxUnixLines = 1 << 20

// peerSet holds the announced names of one owner.
type peerSet struct {
	peers []Peer
	lock  uint64 // inode of the socket that holds the lock; 0 if the lock is free
}

// parseUnixTable returns the names of owner from a table in the format of proc_pid_net(5): after a heading, lines of
// "Num RefCount Protocol Flags Type St Inode Path", where Path of an abstract name begins with @. It skips malformed
// lines: a path may contain anything but NUL, even line breaks.
func parseUnixTable(r io.Reader, owner string) (peerSet, error) {
	var found peerSet
	br := bufio.NewReader(r)
	for range maxUnixLines {
		// A line longer than the reader's buffer cannot hold a localcache name; the rest of it is skipped.
		line, long, err := br.ReadLine()
		for more := long; more && err == nil; {
			_, more, err = br.ReadLine()
		}
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return found, err
		}
		// Inode and path are the last two fields; localcache names contain no space.
		f := bytes.Fields(line)
		if long || len(f) != 8 {
			continue
		}
		name, ok := strings.CutPrefix(string(f[7]), "@")
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(string(f[6]), 10, 64)
		if err != nil {
			continue
		}
		if p, ok := parsePeer(name, owner); ok {
			p.inode = inode
			found.peers = append(found.peers, p)
		} else if name == lockName(owner) {
			found.lock = inode
		}
	}
	return found, fmt.Errorf("more than %d unix sockets: the rest was not read", maxUnixLines)
}

// Presence announces this process to the other processes of its owner in the network namespace of the calling thread.
// It is not safe for concurrent use.
type Presence struct {
	Owner   string
	present *nameSocket // nil before join
	keeper  *nameSocket // nil before keep
}

// nameSocket is an abstract name that is held.
type nameSocket struct {
	peer Peer
	fd   int
}

// Join announces the process: from now on, others remove nothing of the owner. It may be repeated.
func (p *Presence) Join() (err error) {
	if p.present == nil {
		p.present, err = p.take(RolePresent)
	}
	return err
}

// Keep says that this process keeps the rules unless a newer one does. It may be repeated.
func (p *Presence) Keep() (err error) {
	if p.keeper == nil {
		p.keeper, err = p.take(RoleKeeper)
	}
	return err
}

// Leave gives up both names.
func (p *Presence) Leave() error {
	var errs []error
	for _, s := range []*nameSocket{p.keeper, p.present} {
		if s != nil {
			errs = append(errs, unix.Close(s.fd))
		}
	}
	p.keeper, p.present = nil, nil
	return errors.Join(errs...)
}

func (p *Presence) take(role PeerRole) (*nameSocket, error) {
	// Two Keepers of one process may ask in the same nanosecond, where the clock is coarse.
	for range 10 {
		now, err := boottime()
		if err != nil {
			return nil, err
		}
		s := &nameSocket{peer: Peer{Role: role, start: now, pid: os.Getpid()}}
		s.fd, err = bindAbstract(s.peer.name(p.Owner))
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return nil, &status.SetupError{Type: status.ErrorPresence, Err: err}
		}
	}
	return nil, &status.SetupError{Type: status.ErrorPresence, Err: fmt.Errorf("no free name for this process among %s's", p.Owner)}
}

// Others returns the other processes, oldest first. A keeper appears twice, once for each role.
func (p *Presence) Others() ([]Peer, error) {
	now, err := boottime()
	if err != nil {
		return nil, err
	}
	r, err := p.Read()
	if err != nil {
		return nil, err
	}
	peers := slices.DeleteFunc(r.peers, func(q Peer) bool { return q.start > now || p.isOwn(q) })
	peers = believed(peers)
	slices.SortFunc(peers, Peer.compare)
	return peers, nil
}

// Read returns all names of the owner in the namespace of the calling thread, including this process's own.
func (p *Presence) Read() (peerSet, error) {
	// thread-self and not self: the namespace is the thread's.
	f, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return peerSet{}, &status.SetupError{Type: status.ErrorPresence, Err: fmt.Errorf("look for other localcache processes: %w", err)}
	}
	defer f.Close()
	r, err := parseUnixTable(f, p.Owner)
	if err != nil {
		return peerSet{}, &status.SetupError{Type: status.ErrorPresence, Err: fmt.Errorf("look for other localcache processes: %w", err)}
	}
	return r, nil
}

func (p *Presence) isOwn(q Peer) bool {
	for _, s := range []*nameSocket{p.present, p.keeper} {
		if s != nil && s.peer.name(p.Owner) == q.name(p.Owner) {
			return true
		}
	}
	return false
}

// Newer returns the newest keeper among peers that started to keep after this process did, or before it has started.
func (p *Presence) Newer(peers []Peer) (Peer, bool) {
	for _, q := range slices.Backward(peers) {
		if q.Role == RoleKeeper && (p.keeper == nil || q.compare(p.keeper.peer) > 0) {
			return q, true
		}
	}
	return Peer{}, false
}

// Bounds of the wait for the lock. Its holder may itself wait for the xtables lock. A holder that needs longer is
// stuck and must not stop this process.
const (
	PresenceWait     = 10 * time.Second
	presenceFirstTry = 5 * time.Millisecond
	presenceLastTry  = 100 * time.Millisecond
)

// ErrLockBusy reports that the lock was not free in time.
var ErrLockBusy = errors.New("another localcache process is changing the node's network and does not come to an end")

// StrangerLockError says that a process which is not believed holds the lock.
type StrangerLockError struct{ UID uint32 }

func (e *StrangerLockError) Error() string {
	return fmt.Sprintf("a process of another user (uid %d) holds the lock among localcache processes, and is not waited for: end it", e.UID)
}

// Lock waits for the owner's lock, at most presenceWait, and not at all while a process of another user holds it. The
// returned func releases it and is never nil; after an error it does nothing.
func (p *Presence) Lock(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, PresenceWait)
	defer cancel()
	for pause := presenceFirstTry; ; pause = min(2*pause, presenceLastTry) {
		fd, err := bindAbstract(lockName(p.Owner))
		if err == nil {
			return func() { unix.Close(fd) }, nil // a failing close loses nothing: the name ends with the process
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			return func() {}, &status.SetupError{Type: status.ErrorPresence, Err: err}
		}
		if r, err := p.Read(); err == nil && r.lock != 0 { // otherwise the holder of the lock is unknown
			if uid, known := socketUser(r.lock); known && uid != ownUser() {
				return func() {}, &status.SetupError{Type: status.ErrorPresence, Err: &StrangerLockError{uid}}
			}
		}
		select {
		case <-ctx.Done():
			return func() {}, &status.SetupError{Type: status.ErrorPresence, Err: ErrLockBusy}
		case <-time.After(pause):
		}
	}
}

// bindAbstract holds an abstract name until the descriptor is closed. The socket never listens, so that it receives
// nothing, and child processes do not inherit it.
func bindAbstract(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open a unix socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: "@" + name}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("take the abstract name %s: %w", name, err)
	}
	return fd, nil
}

func boottime() (uint64, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0, &status.SetupError{Type: status.ErrorPresence, Err: fmt.Errorf("read CLOCK_BOOTTIME: %w", err)}
	}
	return uint64(ts.Nano()), nil
}

// DescribePeers describes each process once, for messages. A process in another PID namespace is shown with its
// number there.
func DescribePeers(procfs string, peers []Peer) string {
	var inodes []uint64
	for _, p := range peers {
		inodes = append(inodes, p.inode)
	}
	owners := socketOwners(procfs, inodes)
	var names []string
	for _, p := range peers {
		name := fmt.Sprintf("pid %d of another container", p.pid)
		if pid := owners[p.inode]; pid != 0 {
			name = fmt.Sprintf("%s (pid %d)", processName(procfs, pid), pid)
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

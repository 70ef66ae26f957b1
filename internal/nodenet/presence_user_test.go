package nodenet

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/status"
)

// Of two processes that take names and the lock, one of another user does not count, and one of the same user does.
func TestPresenceOfOtherUser(t *testing.T) {
	for _, uid := range []int{nettest.Stranger, 0} {
		nettest.NewNamespace(t)
		if len(socketUsersOfOne(t)) == 0 {
			t.Skip("this kernel does not tell whose a socket is")
		}
		nettest.StartChild(t, nettest.ChildSpec{UID: uid, Owner: "nodelocaldns", Lock: true})
		var want []process.PeerRole
		if uid == 0 {
			want = []process.PeerRole{process.RolePresent, process.RoleKeeper}
		}
		p := &process.Presence{Owner: "nodelocaldns"}
		if r := peerRoles(t, p); !slices.Equal(r, want) {
			t.Errorf("user %d: sees %v, want %v", uid, r, want)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := p.Lock(ctx)
		waited := ctx.Err() != nil
		cancel()
		var strange *process.StrangerLockError
		if errors.As(err, &strange) != (uid != 0) || errors.Is(err, process.ErrLockBusy) != (uid == 0) {
			t.Errorf("user %d: the lock: %v", uid, err)
		}
		if waited != (uid == 0) {
			t.Errorf("user %d: waited for the lock: %v", uid, waited)
		}
		if strange != nil && strange.UID != nettest.Stranger {
			t.Errorf("the lock is held by user %d", strange.UID)
		}
	}
}

// socketUsersOfOne opens a socket and lists the users.
func socketUsersOfOne(t *testing.T) map[uint64]uint32 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	nettest.Must(t, err)
	defer unix.Close(fd)
	users := process.SocketUsers()
	var st unix.Stat_t
	nettest.Must(t, unix.Fstat(fd, &st))
	if uid, ok := users[st.Ino]; users != nil && (!ok || uid != uint32(os.Geteuid())) {
		t.Errorf("our own socket %d is not ours in %v", st.Ino, users)
	}
	return users
}

// A process without rights that takes every name prevents nothing: neither repairs, nor the fallback during a drain,
// nor the removal, and nothing waits for it.
func TestKeeperSquattedByOtherUser(t *testing.T) {
	n := nettest.NewNamespace(t)
	if len(socketUsersOfOne(t)) == 0 {
		t.Skip("this kernel does not tell whose a socket is")
	}
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	p.start(spec)
	nettest.StartChild(t, nettest.ChildSpec{UID: nettest.Stranger, Owner: "nodelocaldns", Lock: true})

	ctx, cancel := context.WithTimeout(context.Background(), process.PresenceWait)
	defer cancel()
	m.set(func() { clear(m.rules) })
	nettest.Must(t, p.k.checkRules(ctx))
	if s := p.k.Status(); !s.Keeper || s.Repairs[status.RepairRules] != 1 {
		t.Errorf("status %+v", s)
	}
	m.takeCalls()
	nettest.Must(t, p.k.Drain(ctx))
	nettest.Must(t, p.k.Close(ctx))
	if want, calls := []string{"apply memory-auto draining", "remove memory-auto"}, m.takeCalls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	if nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
	if ctx.Err() != nil {
		t.Error("it waited for the lock")
	}
}

// Nor does it prevent a teardown.
func TestTeardownSquattedByOtherUser(t *testing.T) {
	nettest.NewNamespace(t)
	if len(socketUsersOfOne(t)) == 0 {
		t.Skip("this kernel does not tell whose a socket is")
	}
	nettest.StartChild(t, nettest.ChildSpec{UID: nettest.Stranger, Owner: "nodelocaldns", Lock: true})
	r := Teardown(context.Background(), TeardownConfig{Log: nettest.NewLog(t), All: newMemory().All, Interfaces: []string{"nodelocaldns"}})
	nettest.Must(t, r.Err())
}

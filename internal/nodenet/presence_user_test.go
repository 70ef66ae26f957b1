package nodenet

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Of two processes that take names and the lock, one of another user is nobody, and one of ours is not.
func TestPresenceOfOtherUser(t *testing.T) {
	for _, uid := range []int{stranger, 0} {
		newNamespace(t)
		if len(socketUsersOfOne(t)) == 0 {
			t.Skip("this kernel does not tell whose a socket is")
		}
		startChild(t, childSpec{UID: uid, Owner: "nodelocaldns", Lock: true})
		var want []peerRole
		if uid == 0 {
			want = []peerRole{rolePresent, roleKeeper}
		}
		p := &presence{owner: "nodelocaldns"}
		if r := rolesOf(t, p); !slices.Equal(r, want) {
			t.Errorf("user %d: sees %v, want %v", uid, r, want)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, err := p.lock(ctx)
		waited := ctx.Err() != nil
		cancel()
		var strange *strangerLockError
		if errors.As(err, &strange) != (uid != 0) || errors.Is(err, errLockBusy) != (uid == 0) {
			t.Errorf("user %d: the lock: %v", uid, err)
		}
		if waited != (uid == 0) {
			t.Errorf("user %d: waited for the lock: %v", uid, waited)
		}
		if strange != nil && strange.uid != stranger {
			t.Errorf("the lock is held by user %d", strange.uid)
		}
	}
}

// socketUsersOfOne opens a socket and lists the users.
func socketUsersOfOne(t *testing.T) map[uint64]uint32 {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	users := socketUsers()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if uid, ok := users[st.Ino]; users != nil && (!ok || uid != uint32(os.Geteuid())) {
		t.Errorf("our own socket %d is not ours in %v", st.Ino, users)
	}
	return users
}

// A process without rights that takes every name keeps a Keeper from nothing: neither repairs, nor the
// fallback while it drains, nor the removal, and none of it waits.
func TestKeeperSquattedByOtherUser(t *testing.T) {
	n := newNamespace(t)
	if len(socketUsersOfOne(t)) == 0 {
		t.Skip("this kernel does not tell whose a socket is")
	}
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	spec.OnExit = ExitRemove
	p.start(spec)
	startChild(t, childSpec{UID: stranger, Owner: "nodelocaldns", Lock: true})

	ctx, cancel := context.WithTimeout(context.Background(), presenceWait)
	defer cancel()
	m.set(func() { clear(m.rules) })
	must(t, p.k.checkRules(ctx))
	if s := p.k.Status(); !s.Keeper || s.Repairs[RepairRules] != 1 {
		t.Errorf("status %+v", s)
	}
	m.takeCalls()
	must(t, p.k.Drain(ctx))
	must(t, p.k.Close(ctx))
	if want, calls := []string{"apply memory-auto draining", "remove memory-auto"}, m.takeCalls(); !slices.Equal(calls, want) {
		t.Errorf("calls %q", calls)
	}
	if linkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
	if ctx.Err() != nil {
		t.Error("it waited for the lock")
	}
}

// Nor is a teardown kept from anything.
func TestTeardownSquattedByOtherUser(t *testing.T) {
	newNamespace(t)
	if len(socketUsersOfOne(t)) == 0 {
		t.Skip("this kernel does not tell whose a socket is")
	}
	startChild(t, childSpec{UID: stranger, Owner: "nodelocaldns", Lock: true})
	r := Teardown(context.Background(), TeardownConfig{Log: newTestLog(t), All: newMemory().all, Interfaces: []string{"nodelocaldns"}})
	must(t, r.Err())
}

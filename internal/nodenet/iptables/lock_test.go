package iptables

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// TestLocked holds the xtables lock.
func TestLocked(t *testing.T) {
	nettest.NewNamespace(t)
	b, err := New(t.Context(), rule.IPTablesLegacy, "lc0", Find(t.Context()), time.Second)
	if err != nil {
		t.Skip(err)
	}
	rules := testRules()
	lock := int(nettest.XtablesLock(t).Fd())
	nettest.Must(t, unix.Flock(lock, unix.LOCK_EX))
	start := time.Now()
	if err := b.Apply(nettest.Context(t), rules); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("Apply: %v, want ErrLocked", err)
	}
	if err := b.SocketMatch(nettest.Context(t), testAddrs); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("SocketMatch: %v, want ErrLocked", err)
	}
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("it took %s to give up after 1 s", took)
	}
	nettest.Must(t, unix.Flock(lock, unix.LOCK_UN))
	apply(t, b, rules)

	// While the lock is held again, the rules stay.
	nettest.Must(t, unix.Flock(lock, unix.LOCK_EX))
	if _, err := b.Check(nettest.Context(t), rules); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("Check: %v, want ErrLocked", err)
	}
	if removed, err := b.Remove(nettest.Context(t)); !errors.Is(err, rule.ErrLocked) || len(removed) > 0 {
		t.Errorf("Remove: %v, %v, want ErrLocked", removed, err)
	}
	nettest.Must(t, unix.Flock(lock, unix.LOCK_UN))
	clean(t, b, rules)
}

// TestLockMissing has no place for the lock, as with a read-only /run.
func TestLockMissing(t *testing.T) {
	nettest.NewNamespace(t)
	t.Setenv("XTABLES_LOCKFILE", filepath.Join(t.TempDir(), "none", "xtables.lock"))
	err := open(t, rule.IPTablesLegacy).Apply(nettest.Context(t), testRules())
	if !errors.Is(err, fs.ErrNotExist) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "xtables.lock") {
		t.Errorf("got %v", err)
	}
}

// TestLockContention has another program hold the lock most of the time, so that there is no time for all
// calls: the error names the lock.
func TestLockContention(t *testing.T) {
	nettest.NewNamespace(t)
	b := open(t, rule.IPTablesLegacy)
	rules := testRules()
	nettest.Run(t, "iptables-legacy -t raw -S; iptables-legacy -t filter -S; ip6tables-legacy -t raw -S")
	lock := int(nettest.XtablesLock(t).Fd())
	stop, ended := make(chan struct{}), make(chan struct{})
	held := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			if err := unix.Flock(lock, unix.LOCK_EX); err != nil {
				t.Error(err)
				return
			}
			if i == 0 {
				close(held)
			}
			select {
			case <-stop:
				return
			case <-time.After(1500 * time.Millisecond):
			}
			if err := unix.Flock(lock, unix.LOCK_UN); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	<-held
	defer func() { close(stop); <-ended }()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err := b.Apply(ctx, rules)
	if !errors.Is(err, rule.ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply: %v, want ErrLocked and the deadline", err)
	}
	// The next call of the same operation fails for the same reason.
	if _, err := b.Check(ctx, rules); !errors.Is(err, rule.ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Check: %v, want ErrLocked and the deadline", err)
	}
}

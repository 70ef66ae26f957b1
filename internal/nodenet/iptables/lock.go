package iptables

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

const (
	// LockWait is how long a program waits for the xtables lock, its option --wait. Programs hold the
	// lock for milliseconds; on nodes with tens of thousands of rules for a second or two.
	LockWait = 5 * time.Second
	// lockPatience is the duration from which on a call counts as one that waited for the lock.
	lockPatience = time.Second
	// lockMemory is how long such a wait explains that no time was left for the rest of the work. It is
	// longer than any such work is given.
	lockMemory = 30 * time.Second
)

// lockWatch remembers when the programs of one Backend had to wait for the xtables lock.
type lockWatch struct{ waited time.Time }

// note records a wait if a call that took so long and ended with err had to wait for the lock.
func (w *lockWatch) note(took time.Duration, err error) {
	ended := err == nil || exitStatus(err) != 0
	if ended && took >= lockPatience || exitStatus(err) == exitLocked || !ended && lockHeld() {
		w.waited = time.Now()
	}
}

// explain makes err wrap rule.ErrLocked if a program waited for the lock within lockMemory.
func (w *lockWatch) explain(err error) error {
	if w.waited.IsZero() || time.Since(w.waited) > lockMemory {
		return err
	}
	return fmt.Errorf("%w: %w", rule.ErrLocked, err)
}

// openLock opens the file of the xtables lock as iptables does (xtables_lock in iptables/xshared.c).
func openLock() (*os.File, error) {
	name := os.Getenv("XTABLES_LOCKFILE")
	if name == "" {
		name = "/run/xtables.lock"
	}
	return os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o600)
}

// lockHeld reports whether another process holds the xtables lock at this moment.
func lockHeld() bool {
	file, err := openLock()
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

const (
	// callMargin is how long a call may take beyond its wait for the lock. Tens of thousands of rules
	// are listed within a second or two. With lockWait it is less than any step is given, so that
	// the error says that the program hangs.
	callMargin = 3 * time.Second
	// versionLimit bounds the question for a program's version, which needs neither lock nor kernel.
	versionLimit = 5 * time.Second
	// killWait is how long a killed program is waited for, and how long its output once it has ended.
	killWait = time.Second
	// cleanupLimit bounds what is cleaned up after the caller has run out of time.
	cleanupLimit = 2 * time.Second
	// lockPatience tells a call that waited for the lock from one that got it at once.
	lockPatience = time.Second
	// lockMemory is how long such a wait explains that there was no time for the rest of the work. It
	// is longer than any such work is given.
	lockMemory = 30 * time.Second
)

// exitLocked is the exit status of iptables where it did not get the lock (RESOURCE_PROBLEM in
// xtables.h).
const exitLocked = 4

// exitNotThere is the exit status of iptables for a chain or a rule that does not exist, and for any
// other thing that it could not do (OTHER_PROBLEM).
const exitNotThere = 1

// ErrHung is wrapped by errors of a call that was given up because the program did not end.
var ErrHung = errors.New("it does not end")

// Unanswered tells whether err says nothing of the rules or the kernel: the lock was held, or the
// program did not end.
func Unanswered(err error) bool { return errors.Is(err, rule.ErrLocked) || errors.Is(err, ErrHung) }

// exitError says that a program ended with a status other than 0.
type exitError struct {
	args   []string
	status int
	stderr string
}

func (e *exitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", strings.Join(e.args, " "), e.status, strings.TrimSpace(e.stderr))
}

// exitStatus returns the exit status behind an error, or 0.
func exitStatus(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.status
	}
	return 0
}

// RunProgram runs the program at path with stdin as its input and returns what it writes. The calling
// thread starts it, and so decides on its network namespace.
//
// When ctx is done, or after limit, the program is killed. The kernel does not end one that it is
// working for itself; such a program is left behind after killWait, and left is closed when it ends.
//
// Errors: *exitError; one that wraps ctx.Err(); one that wraps errHung; what kept it from starting.
func RunProgram(ctx context.Context, limit time.Duration, stdin, path string, args ...string) (out []byte, left <-chan struct{}, err error) {
	callCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(callCtx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.WaitDelay = killWait
	if err := cmd.Start(); err != nil {
		if ctx.Err() != nil {
			return nil, nil, fmt.Errorf("%s: %w", path, ctx.Err())
		}
		return nil, nil, err // it names the path
	}
	ended := make(chan struct{})
	var waitErr error
	go func() {
		defer close(ended)
		waitErr = cmd.Wait()
	}()
	select {
	case <-ended:
	case <-callCtx.Done():
		select {
		case <-ended:
		case <-time.After(2 * killWait):
			return nil, ended, fmt.Errorf("%s: %w, even after SIGKILL", strings.Join(cmd.Args, " "), giveUp(ctx, limit))
		}
	}
	var exit *exec.ExitError
	switch {
	case waitErr == nil:
		return stdout.Bytes(), nil, nil
	case callCtx.Err() != nil:
		return nil, nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), giveUp(ctx, limit))
	case errors.As(waitErr, &exit) && exit.Exited():
		return nil, nil, &exitError{cmd.Args, exit.ExitCode(), stderr.String()}
	default:
		return nil, nil, fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), waitErr)
	}
}

// giveUp says why a call was given up.
func giveUp(ctx context.Context, limit time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("%w: given up after %s", ErrHung, limit)
}

// LockWatch remembers that the programs of one Firewall had to wait for the xtables lock.
type LockWatch struct{ waited time.Time }

// note looks at a call that took so long and ended with err.
func (w *LockWatch) note(took time.Duration, err error) {
	ended := err == nil || exitStatus(err) != 0
	if ended && took >= lockPatience || exitStatus(err) == exitLocked || !ended && lockHeld() {
		w.waited = time.Now()
	}
}

// explain makes err one of the lock if the lock was waited for not long ago.
func (w *LockWatch) explain(err error) error {
	if w.waited.IsZero() || time.Since(w.waited) > lockMemory {
		return err
	}
	return fmt.Errorf("%w: %w", rule.ErrLocked, err)
}

// OpenLock opens the file of the xtables lock as iptables does (xtables_lock in iptables/xshared.c).
func OpenLock() (*os.File, error) {
	name := os.Getenv("XTABLES_LOCKFILE")
	if name == "" {
		name = "/run/xtables.lock"
	}
	return os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o600)
}

// lockHeld tells whether somebody holds the xtables lock at this moment.
func lockHeld() bool {
	file, err := OpenLock()
	if err != nil {
		return false
	}
	defer file.Close()
	return errors.Is(unix.Flock(int(file.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

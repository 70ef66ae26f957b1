package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// killWait is how long call waits for the end of a program that it has killed.
	killWait = 2 * time.Second
	// killPause is the time between two attempts to kill the processes of a call.
	killPause = 10 * time.Millisecond
)

// errHung is wrapped by errors of a call that was given up because the program did not end.
var errHung = errors.New("the program does not end")

// abandoned holds, by the path of a program, the channel that is closed when a call that not even
// SIGKILL has ended comes to its end.
var abandoned sync.Map

// call runs f, which starts the program at path, and returns its result. go-iptables takes no context,
// so call bounds it: when ctx is done, and after limit at the latest, the processes that f has started
// are killed.
//
// The kernel does not end a process that waits inside it, for a dead file system for instance. Such a
// call is abandoned after killWait, and further calls with the same path fail until it has ended, so
// that at most one is left behind for each program.
//
// f runs on a goroutine of its own, locked to a thread in the network namespace of the calling thread.
// Its variables belong to it: call's caller uses the returned value only.
//
// Errors: that of f; one that wraps ctx.Err(); one that wraps errHung.
func call[T any](ctx context.Context, path string, limit time.Duration, f func() (T, error)) (value T, err error) {
	if err := ctx.Err(); err != nil {
		return value, fmt.Errorf("%s: %w", path, err)
	}
	if left, ok := abandoned.Load(path); ok {
		select {
		case <-left.(chan struct{}):
			abandoned.Delete(path)
		default:
			return value, fmt.Errorf("%s: an earlier call was killed: %w", path, errHung)
		}
	}
	namespace, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return value, fmt.Errorf("open the network namespace: %w", err)
	}
	callCtx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	thread, ended := make(chan int, 1), make(chan struct{})
	var result T
	var failure error
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		changed, err := enterNamespace(namespace)
		thread <- unix.Gettid()
		if failure = err; err == nil {
			result, failure = f()
		}
		if !changed {
			runtime.UnlockOSThread() // else the thread ends with the goroutine
		}
	}()
	tid := <-thread
	select {
	case <-ended:
		return result, failure
	case <-callCtx.Done():
	}
	reason := ctx.Err()
	if reason == nil {
		reason = fmt.Errorf("%w: given up after %s", errHung, limit)
	}
	if !endCall(tid, ended) {
		abandoned.Store(path, ended)
		return value, fmt.Errorf("%s: %w, even after SIGKILL", path, reason)
	}
	if failure == nil {
		return result, nil // it ended by itself at the last moment
	}
	return value, fmt.Errorf("%s: %w", path, reason)
}

// enterNamespace moves the calling thread to a network namespace, closes the file, and reports whether the
// thread was elsewhere. Where it was not, as in the deployed program, no capability is needed (setns(2)
// needs CAP_SYS_ADMIN).
func enterNamespace(namespace *os.File) (changed bool, err error) {
	defer namespace.Close()
	want, wantErr := namespace.Stat()
	have, haveErr := os.Stat("/proc/thread-self/ns/net")
	if err := errors.Join(wantErr, haveErr); err != nil || os.SameFile(want, have) {
		return false, err
	}
	return true, os.NewSyscallError("setns", unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET))
}

// endCall kills the processes that a thread has started until ended is closed, and reports whether that
// was within killWait. The first attempt spares processes that have children: a program whose child
// hangs, such as modprobe, may then reap it and end by itself.
func endCall(tid int, ended <-chan struct{}) bool {
	pause := time.NewTicker(killPause)
	defer pause.Stop()
	deadline := time.After(killWait)
	for parents := false; ; parents = true {
		killChildren(fmt.Sprintf("/proc/self/task/%d", tid), parents)
		select {
		case <-ended:
			return true
		case <-pause.C:
		case <-deadline:
			return false
		}
	}
}

// killChildren kills the processes started by the thread at task, a directory of /proc, and by those
// processes, and returns how many the thread has. Those that have children are spared unless parents is
// set. A process can be reaped meanwhile; its number is then not in use again so soon, because Linux
// assigns ascending numbers.
func killChildren(task string, parents bool) int {
	pids := children(task)
	for _, pid := range pids {
		below := 0
		tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid)) // fails for a bad pattern only
		for _, t := range tasks {
			below += killChildren(t, parents)
		}
		if below == 0 || parents {
			_ = unix.Kill(pid, unix.SIGKILL) // fails if it has ended
		}
	}
	return len(pids)
}

// children returns the processes that the thread at task has started and not yet reaped (proc(5); needs
// CONFIG_PROC_CHILDREN, which distributions set). A thread that has ended has none.
func children(task string) (pids []int) {
	text, _ := os.ReadFile(filepath.Join(task, "children"))
	for field := range strings.FieldsSeq(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

package machine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Allowed lists the cores that this process may run on, in order.
func Allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("sched_getaffinity: %w", err)
	}
	var cores []int
	for i := range len(set) * strconv.IntSize {
		if set.IsSet(i) {
			cores = append(cores, i)
		}
	}
	return cores, nil
}

// Siblings returns, for each of the cores, the lowest-numbered hardware thread of the same physical core. If the
// kernel does not tell, each core is its own.
func Siblings(cores []int) map[int]int {
	of := map[int]int{}
	for _, c := range cores {
		of[c] = c
		b, err := os.ReadFile(fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/thread_siblings_list", c))
		if err != nil {
			continue
		}
		first, _, _ := strings.Cut(strings.TrimSpace(string(b)), ",")
		first, _, _ = strings.Cut(first, "-")
		if n, err := strconv.Atoi(first); err == nil {
			of[c] = n
		}
	}
	return of
}

// Choose picks cores for the server, the generator and the upstream: different physical ones if possible, because two
// threads of one core take time from each other. The upstream shares the generator's core if there are only two.
func Choose(allowed []int, sibling map[int]int) (server, generator, upstream int, err error) {
	if len(allowed) < 2 {
		return 0, 0, 0, fmt.Errorf("%d core allowed: server and generator need one each", len(allowed))
	}
	var apart, rest []int
	taken := map[int]bool{}
	for _, c := range allowed {
		if taken[sibling[c]] {
			rest = append(rest, c)
			continue
		}
		taken[sibling[c]] = true
		apart = append(apart, c)
	}
	if len(apart) < 2 {
		apart = append(apart, rest...)
	}
	server, generator, upstream = apart[0], apart[1], apart[1]
	if len(apart) > 2 {
		upstream = apart[2]
	}
	return server, generator, upstream, nil
}

// PinSelf pins all threads of this process, and threads that they start, to one core. Call it before NewLauncher: an
// existing launcher would be moved too, and would then refuse to start programs.
func PinSelf(core int) error {
	return eachThread(func(tid int) error { return pin(tid, core) })
}

// eachThread does something to all threads of this process.
func eachThread(do func(tid int) error) error {
	// A thread may start another while the list is read, so that one pass is not enough.
	for range 3 {
		tasks, err := filepath.Glob("/proc/self/task/*")
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(filepath.Base(task))
			if err != nil {
				return err
			}
			if err := do(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

func pin(tid, core int) error {
	var set unix.CPUSet
	set.Set(core)
	if err := unix.SchedSetaffinity(tid, &set); err != nil {
		return fmt.Errorf("pin thread %d to core %d: %w", tid, core, err)
	}
	return nil
}

// foremost is the nice value of the measured programs, setpriority(2).
const foremost = -20

// Foremost gives this process and the programs that it starts priority over other programs of the machine, as far as
// the kernel allows: that takes root. It makes the process the leader of a session, because the scheduler weighs
// sessions first if it groups them (sched(7), autogroup). The error says what was refused; samples are then disturbed
// more often.
func Foremost() error {
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) { // it is a leader already
		return fmt.Errorf("setsid: %w", err)
	}
	err := os.WriteFile("/proc/self/autogroup", []byte(strconv.Itoa(foremost)), 0)
	if errors.Is(err, os.ErrNotExist) {
		err = nil // no groups
	}
	return errors.Join(err, eachThread(func(tid int) error {
		if err := unix.Setpriority(unix.PRIO_PROCESS, tid, foremost); err != nil {
			return fmt.Errorf("setpriority: %w", err)
		}
		return nil
	}))
}

// Launcher starts programs on one core. They die with this process, also when it is killed.
type Launcher struct {
	start chan launch
	ended chan struct{}
}

type launch struct {
	cmd    *exec.Cmd
	result chan error
}

// NewLauncher returns a launcher for a core. Close it after its programs have ended: it ends them.
func NewLauncher(core int) (*Launcher, error) {
	l := &Launcher{start: make(chan launch), ended: make(chan struct{})}
	pinned := make(chan error)
	go l.run(core, pinned)
	return l, <-pinned
}

// run keeps a thread on the core: a child inherits its thread's affinity and priority, and gets its death signal when
// that thread ends (PR_SET_PDEATHSIG(2const)). It never unlocks the thread, which must not be used for anything else.
func (l *Launcher) run(core int, pinned chan<- error) {
	defer close(l.ended)
	runtime.LockOSThread()
	err := pin(0, core)
	pinned <- err
	if err != nil {
		return
	}
	for s := range l.start {
		if s.cmd.SysProcAttr == nil {
			s.cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		s.cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
		if allowed, err := Allowed(); err != nil || len(allowed) != 1 || allowed[0] != core {
			s.result <- errors.Join(fmt.Errorf("launcher of core %d was moved to %v", core, allowed), err)
			continue
		}
		s.result <- s.cmd.Start()
	}
}

// Start starts a program, as exec.Cmd.Start does.
func (l *Launcher) Start(cmd *exec.Cmd) error {
	s := launch{cmd: cmd, result: make(chan error)}
	l.start <- s
	return <-s.result
}

// Close ends the launcher's thread.
func (l *Launcher) Close() {
	close(l.start)
	<-l.ended
}

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Program is a process that runs inside a host. It leads a process group of its own, which is killed when the program
// ends, when the lab closes and when the lab's process dies.
type Program struct {
	Cmd  *exec.Cmd
	host *Host
	done chan struct{}
	err  error // of Cmd.Wait, once done is closed
}

// Start starts cmd inside the host. It sets cmd's process attributes; the rest of cmd (output, environment, working
// directory) belongs to the caller. Relative paths of the program are resolved outside, as by exec.Command.
func (h *Host) Start(cmd *exec.Cmd) (*Program, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = slices.DeleteFunc(slices.Clone(cmd.Env), func(kv string) bool { return strings.HasPrefix(kv, envWorld+"=") })
	if cmd.WaitDelay == 0 {
		// A grandchild that keeps the output pipe open must not keep Wait.
		cmd.WaitDelay = 2 * time.Second
	}
	if err := h.onThread(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s in host %s: %w", cmd.Path, h.Name, err)
	}
	p := &Program{Cmd: cmd, host: h, done: make(chan struct{})}
	go p.wait()
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.programs = append(h.programs, p)
	}
	h.mu.Unlock()
	if closed {
		return nil, errors.Join(fmt.Errorf("host %s closed while %s started", h.Name, cmd.Path), p.Kill())
	}
	return p, nil
}

// Run starts cmd inside the host and waits for its end.
func (h *Host) Run(cmd *exec.Cmd) error {
	p, err := h.Start(cmd)
	if err != nil {
		return err
	}
	return p.Wait()
}

// wait reaps the program after killing the rest of its process group: until the leader is reaped, its process id, and
// therefore the group's, cannot be reused.
func (p *Program) wait() {
	defer close(p.done)
	pid := p.PID()
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	killErr := unix.Kill(-pid, unix.SIGKILL)
	if errors.Is(killErr, unix.ESRCH) {
		killErr = nil
	}
	if p.err = p.Cmd.Wait(); killErr != nil {
		p.err = errors.Join(p.err, fmt.Errorf("kill the process group of %s (pid %d): %w", p.Cmd.Path, pid, killErr))
	}

	p.host.mu.Lock()
	defer p.host.mu.Unlock()
	p.host.programs = slices.DeleteFunc(p.host.programs, func(q *Program) bool { return q == p })
}

// PID is the process id, the same inside and outside of the lab.
func (p *Program) PID() int { return p.Cmd.Process.Pid }

// Done is closed when the program has ended.
func (p *Program) Done() <-chan struct{} { return p.done }

// Wait waits for the program's end and returns exec.Cmd.Wait's error. It may be called many times.
func (p *Program) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal to the program, not to its group. A program that has ended is no error.
func (p *Program) Signal(s os.Signal) error {
	if err := p.Cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal %v to %s (pid %d): %w", s, p.Cmd.Path, p.PID(), err)
	}
	return nil
}

// Kill sends SIGKILL to the program; its group follows. A program that has ended is no error.
func (p *Program) Kill() error { return p.Signal(unix.SIGKILL) }

// Stop sends SIGTERM and waits; after grace it sends SIGKILL, waits, and says so in its error.
func (p *Program) Stop(grace time.Duration) error {
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-time.After(grace):
	}
	err := p.Kill()
	if err == nil {
		<-p.done
	}
	return errors.Join(fmt.Errorf("%s (pid %d) did not end within %v of SIGTERM and was killed", p.Cmd.Path, p.PID(), grace), err)
}

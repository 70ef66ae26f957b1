package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of a pod, as the machine sees it.
type Process struct {
	PID int
}

// Process finds the process of a pod whose program has this name. There must be one.
func (n *Node) Process(podUID, program string) (Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return Process{}, err
	}
	var found []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Processes come and go while the list is read.
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(comm)) != program {
			continue
		}
		if groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil && strings.Contains(string(groups), podUID) {
			found = append(found, Process{PID: pid})
		}
	}
	if len(found) != 1 {
		return Process{}, fmt.Errorf("%s has %d processes %s in pod %s, not one", n.Name, len(found), program, podUID)
	}
	return found[0], nil
}

// Kill sends SIGKILL and returns when the process has closed its sockets. Between since and until it died.
func (p Process) Kill() (since, until time.Time, err error) {
	pid, err := p.open()
	if err != nil {
		return since, until, err
	}
	defer pid.Close()
	since = time.Now()
	if err := unix.PidfdSendSignal(int(pid.Fd()), unix.SIGKILL, nil, 0); err != nil {
		return since, since, fmt.Errorf("kill process %d: %w", p.PID, err)
	}
	err = p.awaitEnd(pid, 10*time.Second)
	return since, time.Now(), err
}

// open gives a descriptor of the process; see pidfd_open(2).
func (p Process) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", p.PID, err)
	}
	return os.NewFile(uintptr(fd), "process"), nil
}

// awaitEnd waits until the last thread of the process has ended. Its first may be a zombie long before that,
// while another still holds the sockets.
func (p Process) awaitEnd(pid *os.File, limit time.Duration) error {
	poll := []unix.PollFd{{Fd: int32(pid.Fd()), Events: unix.POLLIN}}
	for deadline := time.Now().Add(limit); ; {
		n, err := unix.Poll(poll, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return fmt.Errorf("wait for the end of process %d: %w", p.PID, err)
		case time.Now().After(deadline):
			return fmt.Errorf("process %d lives on after %v", p.PID, limit)
		}
	}
}

// spareMemory is what the limit of OutOfMemory leaves above what is used.
const spareMemory = 8 << 20

// OutOfMemory sets the memory limit of the process's container to little more than it uses, and has filler
// (a program with the arguments FILE and PID, which writes to FILE until PID is dead) take the rest from
// within the container's cgroup. The kernel kills the largest process there. Between since and until that
// was done.
func (p Process) OutOfMemory(ctx context.Context, filler ...string) (since, until time.Time, err error) {
	group, limit, usage, err := p.memoryGroup()
	if err != nil {
		return since, until, err
	}
	used, err := os.ReadFile(filepath.Join(group, usage))
	if err != nil {
		return since, until, err
	}
	bytes, err := strconv.ParseInt(strings.TrimSpace(string(used)), 10, 64)
	if err != nil {
		return since, until, err
	}
	if err := os.WriteFile(filepath.Join(group, limit), []byte(strconv.FormatInt(bytes+spareMemory, 10)), 0); err != nil {
		return since, until, fmt.Errorf("a smaller limit: %w", err)
	}
	pid, err := p.open()
	if err != nil {
		return since, until, err
	}
	defer pid.Close()
	since = time.Now()
	// The shell moves itself into the cgroup, and becomes the filler there. /dev/shm is in memory.
	script := `echo $$ >"$0/cgroup.procs" && exec "$@"`
	file := fmt.Sprintf("/dev/shm/fill-%d", p.PID)
	args := append([]string{"-c", script, group}, append(filler, file, strconv.Itoa(p.PID))...)
	out := make(chan error, 1)
	go func() {
		// Outside of the cluster's namespaces, because PID is the machine's.
		out <- run(ctx, "sh", args...)
	}()
	err = p.awaitEnd(pid, 20*time.Second)
	until = time.Now()
	filled := <-out
	if err != nil {
		err = errors.Join(err, filled)
	}
	if removed := os.Remove(file); removed != nil && !errors.Is(removed, fs.ErrNotExist) {
		err = errors.Join(err, removed)
	}
	return since, until, err
}

// memoryGroup is the folder of the process's memory cgroup, with the names of its limit and its use.
func (p Process) memoryGroup() (folder, limit, usage string, err error) {
	groups, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return "", "", "", err
	}
	unified := ""
	for line := range strings.Lines(string(groups)) {
		// ID:CONTROLLERS:PATH, with no controllers for version 2; cgroups(7)
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == "memory" {
			return filepath.Join(cgroupRoot, "memory", f[2]), "memory.limit_in_bytes", "memory.usage_in_bytes", nil
		}
		if len(f) == 3 && f[1] == "" {
			unified = filepath.Join(cgroupRoot, f[2])
		}
	}
	if unified == "" {
		return "", "", "", fmt.Errorf("process %d is in no memory cgroup", p.PID)
	}
	return unified, "memory.max", "memory.current", nil
}

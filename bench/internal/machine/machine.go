// Package machine pins programs to cores and reads from the kernel what they and the machine have used: proc(5),
// sched_setaffinity(2), clock_gettime(2).
package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// CPUTime is the time that a process has run so far, all threads, user and system, in nanoseconds also where
// the kernel shows ticks elsewhere.
func CPUTime(pid int) (time.Duration, error) {
	// The clock of a process's scheduled time: clock_getcpuclockid(3), include/linux/posix-timers.h.
	const scheduled = 2
	clock := int32(^uint32(pid)<<3 | scheduled)
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// Memory is the resident memory of a process, in KiB.
type Memory struct {
	Anonymous int `json:"anonymous"` // its heap and stacks
	File      int `json:"file"`      // of its program and libraries, and shared memory
}

// Total is the resident set size, in KiB.
func (m Memory) Total() int { return m.Anonymous + m.File }

// MemoryOf reads the memory of a process.
func MemoryOf(pid int) (Memory, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Memory{}, err
	}
	return parseMemory(string(status))
}

// parseMemory reads the lines RssAnon, RssFile and RssShmem of /proc/PID/status.
func parseMemory(status string) (Memory, error) {
	var m Memory
	found := 0
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(line, ":")
		var into *int
		switch name {
		case "RssAnon":
			into = &m.Anonymous
		case "RssFile", "RssShmem":
			into = &m.File
		default:
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != 2 || fields[1] != "kB" {
			return Memory{}, fmt.Errorf("/proc/PID/status: cannot read %q", line)
		}
		n, err := strconv.Atoi(fields[0])
		if err != nil {
			return Memory{}, fmt.Errorf("/proc/PID/status: %q: %w", line, err)
		}
		*into += n
		found++
	}
	if found != 3 {
		return Memory{}, fmt.Errorf("/proc/PID/status has %d of RssAnon, RssFile and RssShmem: Linux 4.5 or later is needed", found)
	}
	return m, nil
}

// Switches is how often the threads of a process gave up a core.
type Switches struct {
	Voluntary   int64 // because there was nothing to do; each is followed by a wake-up
	Involuntary int64 // preempted by another thread
}

// SwitchesOf reads the context switches of the threads that a process has now. Those of threads that have
// ended are missing.
func SwitchesOf(pid int) (Switches, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return Switches{}, err
	}
	var sum Switches
	read := 0
	for _, f := range files {
		status, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		s, err := parseSwitches(string(status))
		if err != nil {
			return Switches{}, err
		}
		read++
		sum.Voluntary += s.Voluntary
		sum.Involuntary += s.Involuntary
	}
	if read == 0 {
		return Switches{}, fmt.Errorf("process %d has no threads: it has ended", pid)
	}
	return sum, nil
}

func parseSwitches(status string) (Switches, error) {
	var s Switches
	found := 0
	for line := range strings.Lines(status) {
		name, rest, _ := strings.Cut(line, ":")
		var into *int64
		switch name {
		case "voluntary_ctxt_switches":
			into = &s.Voluntary
		case "nonvoluntary_ctxt_switches":
			into = &s.Involuntary
		default:
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
		if err != nil {
			return Switches{}, fmt.Errorf("/proc/PID/status: %q: %w", line, err)
		}
		*into = n
		found++
	}
	if found != 2 {
		return Switches{}, fmt.Errorf("/proc/PID/status has %d of the two lines of context switches", found)
	}
	return s, nil
}

// tick is the unit of /proc/stat: USER_HZ, 100 a second on every architecture that Go runs on.
const tick = 10 * time.Millisecond

// Core holds the times of a core since the machine's start.
type Core struct {
	Busy   time.Duration // for any process or interrupt
	Stolen time.Duration // taken by the hypervisor for another machine
}

// Cores returns the times of each core, by its number.
func Cores() (map[int]Core, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, err
	}
	return parseCores(string(stat))
}

func parseCores(stat string) (map[int]Core, error) {
	cores := map[int]Core{}
	for line := range strings.Lines(stat) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		number, ok := strings.CutPrefix(fields[0], "cpu")
		if !ok || number == "" {
			continue
		}
		id, err := strconv.Atoi(number)
		if err != nil || len(fields) < 9 {
			return nil, fmt.Errorf("/proc/stat: cannot read %q", line)
		}
		// user nice system idle iowait irq softirq steal, proc(5)
		var t [8]time.Duration
		for i := range t {
			n, err := strconv.ParseInt(fields[i+1], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("/proc/stat: %q: %w", line, err)
			}
			t[i] = time.Duration(n) * tick
		}
		cores[id] = Core{Busy: t[0] + t[1] + t[2] + t[5] + t[6], Stolen: t[7]}
	}
	if len(cores) == 0 {
		return nil, fmt.Errorf("/proc/stat names no core")
	}
	return cores, nil
}

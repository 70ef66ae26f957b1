package memory

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// forgetText removes the program's code and constants from the process's resident memory: the start touches nearly
// all of them, a running cache a fifth. They stay in the page cache: used pages are mapped again without a read, some
// dozens of faults, and the others are the first to go when memory is short. Resident memory is smaller by as much.
func forgetText() error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	clean, err := cleanMappings(f, program)
	var errs []error
	for _, m := range clean {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, os.NewSyscallError("madvise", errno))
		}
	}
	return errors.Join(append(errs, err)...)
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// cleanMappings parses proc_pid_smaps(5) and returns the mappings of a file that can be dropped without loss: not
// writable, and without pages that differ from the file. A program that is relocated at its start has some that were
// written and then protected; those are left out.
func cleanMappings(smaps io.Reader, file string) ([]mapping, error) {
	var all []mapping
	var m mapping
	ours := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		line := lines.Text()
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		if !strings.HasSuffix(fields[0], ":") { // the head of a mapping
			if len(fields) < 5 {
				return nil, fmt.Errorf("smaps: %q is no mapping", line)
			}
			from, to, _ := strings.Cut(fields[0], "-")
			low, err1 := strconv.ParseUint(from, 16, 64)
			high, err2 := strconv.ParseUint(to, 16, 64)
			if err := errors.Join(err1, err2); err != nil || low >= high {
				return nil, fmt.Errorf("smaps: %q is no mapping", line)
			}
			m = mapping{uintptr(low), uintptr(high)}
			mode := fields[1]
			ours = len(fields) == 6 && fields[5] == file && strings.HasPrefix(mode, "r") && !strings.Contains(mode, "w")
			continue
		}
		// Pages of the process that differ from the file. The line occurs once in each mapping.
		if ours && fields[0] == "Anonymous:" && len(fields) > 1 && fields[1] == "0" {
			all = append(all, m)
		}
	}
	return all, lines.Err()
}

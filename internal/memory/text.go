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

// forgetText has the kernel forget that the program's code and constants are in use, of which the start touches nearly all
// and a cache that runs a fifth. They stay in the page cache, where they came from: what is used again is mapped again
// without being read, some dozens of faults, and the rest is the first that goes when memory is short, where a page in use
// would be the last. Resident memory is less by as much.
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

// cleanMappings reads proc_pid_smaps(5) for the mappings of a file that can be dropped without losing anything: those that
// cannot be written and of which no page is other than the file's. A program that is relocated at its start has some that
// are not: they were written and then protected.
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
		// Pages of its own, which are not the file's any more. It comes once in each mapping.
		if ours && fields[0] == "Anonymous:" && len(fields) > 1 && fields[1] == "0" {
			all = append(all, m)
		}
	}
	return all, lines.Err()
}

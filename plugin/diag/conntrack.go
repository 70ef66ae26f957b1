package diag

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// conntrackStat has the connection tracker's counters of this network namespace, a line for each processor
// (net/netfilter/nf_conntrack_standalone.c of the kernel). It is there where the module is loaded.
const conntrackStat = "/proc/net/stat/nf_conntrack"

// insertFailed returns how many new connections lost the race for their conntrack entry, on all processors together:
// the fault of DNS over UDP through DNAT, which does not affect queries to the link-local address.
func insertFailed() (uint64, error) {
	f, err := os.Open(conntrackStat)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return sumColumn(f, "insert_failed")
}

// sumColumn adds up a column of hexadecimal numbers under a head of names. The counters are the kernel's, of 32 bits, and
// begin at 0 again.
func sumColumn(r io.Reader, name string) (sum uint64, err error) {
	lines := bufio.NewScanner(r)
	column := -1
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if column < 0 {
			for i, f := range fields {
				if f == name {
					column = i
				}
			}
			if column < 0 {
				return 0, fmt.Errorf("there is no column %s", name)
			}
			continue
		}
		if len(fields) <= column {
			return 0, fmt.Errorf("a line has %d columns", len(fields))
		}
		n, err := strconv.ParseUint(fields[column], 16, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	if err := lines.Err(); err != nil {
		return 0, err
	}
	if column < 0 {
		return 0, errors.New("it is empty")
	}
	return sum, nil
}

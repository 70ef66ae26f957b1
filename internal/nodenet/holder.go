package nodenet

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder is a socket that keeps an address and port from being bound.
type Holder struct {
	Proto Proto
	Local netip.AddrPort // what the socket is bound to, perhaps the unspecified address
	PID   int            // 0 where the process cannot be seen, in another PID namespace for instance
	Name  string         // of the process, from /proc/PID/comm
}

func (h Holder) String() string {
	who := "a process that cannot be seen from here"
	if h.PID != 0 {
		who = fmt.Sprintf("%s (pid %d)", h.Name, h.PID)
	}
	return fmt.Sprintf("%s/%s is held by %s", h.Local, h.Proto, who)
}

// Holders lists the sockets of other processes that stand in the way of binding at: those bound to the
// very address or to the unspecified one, over UDP or listening over TCP. It reads proc(5)'s net tables
// and the open files of the processes that it may see. procfs is /proc but in tests.
func Holders(procfs string, at netip.AddrPort) ([]Holder, error) {
	var holders []Holder
	var inodes []uint64
	var errs []error
	for _, proto := range []Proto{UDP, TCP} {
		for _, suffix := range []string{"", "6"} {
			f, err := os.Open(filepath.Join(procfs, "thread-self/net", string(proto)+suffix))
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel without IPv6
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			sockets, err := parseSockets(f, proto)
			errs = append(errs, err, f.Close())
			for _, s := range sockets {
				if s.local.Port() != at.Port() || !blocks(s.local.Addr(), at.Addr()) {
					continue
				}
				holders = append(holders, Holder{Proto: proto, Local: s.local})
				inodes = append(inodes, s.inode)
			}
		}
	}
	if len(holders) == 0 {
		return nil, errors.Join(errs...)
	}
	owners := socketOwners(procfs, inodes)
	own := os.Getpid()
	for i := range holders {
		holders[i].PID = owners[inodes[i]]
		if holders[i].PID != 0 {
			comm, _ := os.ReadFile(filepath.Join(procfs, strconv.Itoa(holders[i].PID), "comm"))
			holders[i].Name = strings.TrimSpace(string(comm))
		}
	}
	holders = slices.DeleteFunc(holders, func(h Holder) bool { return h.PID == own })
	return holders, errors.Join(errs...)
}

// blocks tells whether a socket bound to has keeps want from being bound. [::] takes IPv4 too, unless
// the socket is IPv6 only, which the tables do not say.
func blocks(has, want netip.Addr) bool {
	return has == want || has == netip.IPv6Unspecified() || has.IsUnspecified() && has.Is4() == want.Is4()
}

// procSocket is one line of /proc/net/{udp,tcp}{,6}.
type procSocket struct {
	local netip.AddrPort
	inode uint64
}

// tcpListen is TCP_LISTEN of include/net/tcp_states.h as the tables print it.
const tcpListen = "0A"

// maxSockets bounds what is read of a table: a node with more sockets on it has other troubles.
const maxSockets = 1 << 20

// parseSockets reads a table in the format of proc_pid_net(5): after a heading, lines of
// "sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …". Of TCP only listening
// sockets are returned. Lines that do not have that form are skipped.
func parseSockets(r io.Reader, proto Proto) ([]procSocket, error) {
	var sockets []procSocket
	sc := bufio.NewScanner(r)
	for n := 0; sc.Scan() && n < maxSockets; n++ {
		f := strings.Fields(sc.Text())
		if len(f) < 10 || proto == TCP && f[3] != tcpListen {
			continue
		}
		local, ok := parseProcAddr(f[1])
		if !ok {
			continue
		}
		inode, err := strconv.ParseUint(f[9], 10, 64)
		if err != nil {
			continue
		}
		sockets = append(sockets, procSocket{local, inode})
	}
	return sockets, sc.Err()
}

// parseProcAddr reads ADDRESS:PORT in hexadecimal. The address is printed as 32-bit words in the
// machine's byte order, the port as a number.
func parseProcAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return netip.AddrPort{}, false
	}
	b, err := hex.DecodeString(host)
	if err != nil || len(b) != 4 && len(b) != 16 {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	if nativeLittleEndian {
		for i := 0; i < len(b); i += 4 {
			slices.Reverse(b[i : i+4])
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

// socketOwners finds the processes that have the sockets of the given inodes open. Processes whose
// files may not be read are left out.
func socketOwners(procfs string, inodes []uint64) map[uint64]int {
	owners := map[uint64]int{}
	links, _ := filepath.Glob(filepath.Join(procfs, "[0-9]*", "fd", "*")) // the pattern is well formed
	for _, l := range links {
		target, err := os.Readlink(l)
		if err != nil {
			continue
		}
		var inode uint64
		if _, err := fmt.Sscanf(target, "socket:[%d]", &inode); err != nil || !slices.Contains(inodes, inode) {
			continue
		}
		rel, err := filepath.Rel(procfs, l)
		if err != nil {
			continue
		}
		pid, err := strconv.Atoi(strings.SplitN(rel, string(filepath.Separator), 2)[0])
		if err == nil && owners[inode] == 0 {
			owners[inode] = pid
		}
	}
	return owners
}

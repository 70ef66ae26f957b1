package process

import (
	"bufio"
	"encoding/binary"
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

	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// Holder is a socket that keeps an address and port from being bound.
type Holder struct {
	Proto rule.Proto
	Local netip.AddrPort // the bound address, perhaps the unspecified one
	PID   int            // 0 where the process cannot be seen, in another PID namespace for instance
	Name  string         // of the process, from /proc/PID/comm
}

func (h Holder) String() string {
	return fmt.Sprintf("%s/%s is held by %s", h.Local, h.Proto, h.process())
}

func (h Holder) process() string {
	if h.PID == 0 {
		return "a process that cannot be seen from here"
	}
	return fmt.Sprintf("%s (pid %d)", h.Name, h.PID)
}

// Holders lists the sockets of other processes that stand in the way of binding at: those bound to the
// very address or to the unspecified one, over UDP or listening over TCP. It reads proc(5)'s net tables
// and the open files of the processes that it may see. procfs is /proc but in tests.
func Holders(procfs string, at netip.AddrPort) ([]Holder, error) {
	sockets, err := blockers(procfs, at)
	if len(sockets) == 0 {
		return nil, err
	}
	var inodes []uint64
	for _, s := range sockets {
		inodes = append(inodes, s.inode)
	}
	owners := socketOwners(procfs, inodes)
	// A socket whose process is not found may have been closed since, even one of this process. Only a socket that
	// still exists belongs to a process that cannot be seen.
	again, againErr := blockers(procfs, at)
	own := os.Getpid()
	var holders []Holder
	for _, s := range sockets {
		pid := owners[s.inode]
		if pid == own || pid == 0 && !slices.ContainsFunc(again, func(t blocker) bool { return t.inode == s.inode }) {
			continue
		}
		h := Holder{Proto: s.proto, Local: s.local, PID: pid}
		if pid != 0 {
			h.Name = processName(procfs, pid)
		}
		holders = append(holders, h)
	}
	return holders, errors.Join(err, againErr)
}

// blocker is a socket, of any process, that prevents the bind.
type blocker struct {
	procSocket
	proto rule.Proto
}

// blockers reads the tables for Holders.
func blockers(procfs string, at netip.AddrPort) ([]blocker, error) {
	var found []blocker
	var errs []error
	for _, proto := range []rule.Proto{rule.UDP, rule.TCP} {
		for _, suffix := range []string{"", "6"} {
			f, err := os.Open(filepath.Join(procfs, "thread-self/net", string(proto)+suffix))
			if errors.Is(err, fs.ErrNotExist) {
				continue // the kernel has no IPv6
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			sockets, err := parseSockets(f, proto)
			errs = append(errs, err, f.Close())
			for _, s := range sockets {
				if s.local.Port() == at.Port() && blocks(s.local.Addr(), at.Addr()) {
					found = append(found, blocker{s, proto})
				}
			}
		}
	}
	return found, errors.Join(errs...)
}

// processName returns the kernel's name of a process (proc_pid_comm(5)); "" if it has just ended.
func processName(procfs string, pid int) string {
	comm, _ := os.ReadFile(filepath.Join(procfs, strconv.Itoa(pid), "comm")) // "" is good enough
	return strings.TrimSpace(string(comm))
}

// DNSPort is the port of node-cache's sockets, whatever localcache's own port.
const DNSPort = 53

// HoldersOf returns the sockets of other processes that are bound to exactly one of addrs at one of ports: there a
// DNS server is alive that takes no localcache names, such as node-cache. A socket bound to the unspecified address
// does not depend on localcache's addresses.
func HoldersOf(addrs []netip.Addr, ports ...uint16) ([]Holder, error) {
	slices.Sort(ports)
	var found []Holder
	var errs []error
	for _, a := range addrs {
		for _, port := range slices.Compact(ports) {
			holders, err := Holders("/proc", netip.AddrPortFrom(a, port))
			errs = append(errs, err)
			for _, h := range holders {
				if h.Local.Addr() == a {
					found = append(found, h)
				}
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return found, &status.SetupError{Type: status.ErrorPresence, Err: fmt.Errorf("look for other processes' sockets: %w", err)}
	}
	return found, nil
}

// DescribeHolders describes each process once, with its sockets, for messages.
func DescribeHolders(holders []Holder) string {
	var names []string
	for _, h := range holders {
		if name := fmt.Sprintf("%s at %s", h.process(), h.Local); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return strings.Join(names, ", ")
}

// HeldAddrs are the addresses of holders' sockets.
func HeldAddrs(holders []Holder) []netip.Addr {
	var addrs []netip.Addr
	for _, h := range holders {
		addrs = append(addrs, h.Local.Addr())
	}
	return addrs
}

// blocks reports whether a socket bound to has prevents binding want. [::] takes IPv4 too, unless the socket is
// IPv6-only, which the tables do not show.
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

// maxSockets bounds how many lines of a table are read; more sockets than that are not expected on any node.
const maxSockets = 1 << 20

// parseSockets reads a table in the format of proc_pid_net(5): after a heading, lines of
// "sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode …". Of TCP only listening
// sockets are returned. Lines that do not have that form are skipped.
func parseSockets(r io.Reader, proto rule.Proto) ([]procSocket, error) {
	var sockets []procSocket
	sc := bufio.NewScanner(r)
	for n := 0; sc.Scan() && n < maxSockets; n++ {
		f := strings.Fields(sc.Text())
		if len(f) < 10 || proto == rule.TCP && f[3] != tcpListen {
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

// socketOwners returns the processes that have the given socket inodes open. Processes whose files cannot be read are
// left out.
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

// nativeLittleEndian is the byte order in which /proc prints addresses.
var nativeLittleEndian = binary.NativeEndian.Uint16([]byte{1, 0}) == 1

package uml

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// dump reads a list from the kernel, again if it changed during the reading.
func dump[T any](t *testing.T, list func() (T, error)) T {
	t.Helper()
	var all T
	var err error
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		t.Fatalf("read from the kernel: %v", err)
	}
	return all
}

// addressesOf reads the IPv4 addresses of a link.
func addressesOf(t *testing.T, l netlink.Link) []netlink.Addr {
	t.Helper()
	return dump(t, func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_V4) })
}

// nodeState is all that localcache could leave on a node, a line each.
type nodeState []string

// readState reads links, addresses and packet rules of both families.
func readState(t *testing.T) nodeState {
	t.Helper()
	var s nodeState
	for _, l := range dump(t, netlink.LinkList) {
		s = append(s, fmt.Sprintf("link %s (%s)", l.Attrs().Name, l.Type()))
		for _, a := range addressesOf(t, l) {
			s = append(s, fmt.Sprintf("link %s has %s", l.Attrs().Name, a.IPNet))
		}
	}
	for _, program := range []string{"iptables-legacy-save", "ip6tables-legacy-save"} {
		out, err := exec.Command(program).Output()
		if err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		for _, line := range ruleLines(string(out)) {
			s = append(s, program+": "+line)
		}
	}
	return s
}

// ruleLines returns the rules and the user-defined chains from the output of iptables-save, each with its table.
// Empty tables and the kernel's own chains do not count.
func ruleLines(save string) []string {
	var lines []string
	table := ""
	for line := range strings.Lines(save) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"):
			// ":NAME POLICY [0:0]", with the policy "-" where the chain is not the kernel's
			if f := strings.Fields(line[1:]); len(f) > 1 && f[1] == "-" {
				lines = append(lines, table+" chain "+f[0])
			}
		case strings.HasPrefix(line, "-"):
			lines = append(lines, table+" "+line)
		}
	}
	return lines
}

// minus returns the lines of s that are not in other.
func (s nodeState) minus(other nodeState) []string {
	return slices.DeleteFunc(slices.Clone(s), func(line string) bool { return slices.Contains(other, line) })
}

// matching counts the lines that have all of the parts.
func (s nodeState) matching(parts ...string) int {
	n := 0
	for _, line := range s {
		if !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			n++
		}
	}
	return n
}

// missingNotrack returns each missing or duplicate rule of those that keep packets of the local address out of
// connection tracking: incoming queries while a socket is open, queries of the node itself, and answers.
func (s nodeState) missingNotrack() []string {
	var missing []string
	for _, proto := range []string{"udp", "tcp"} {
		p := "-p " + proto + " "
		for what, parts := range map[string][]string{
			"queries to the node":   {"-PRE-", "-d 169.254.25.10/32", p, "--dport 53", "-m socket", "--notrack"},
			"queries from the node": {"-OUT-", "-d 169.254.25.10/32", p, "--dport 53", "--notrack"},
			"answers":               {"-OUT-", "-s 169.254.25.10/32", p, "--sport 53", "--notrack"},
		} {
			if n := s.matching(append(parts, "iptables-legacy-save: raw -A")...); n != 1 {
				missing = append(missing, fmt.Sprintf("%s over %s (%d rules)", what, proto, n))
			}
		}
	}
	slices.Sort(missing)
	for _, chain := range []string{"PREROUTING", "OUTPUT"} {
		if s.matching("iptables-legacy-save: raw -A "+chain+" ") == 0 {
			missing = append(missing, "a way into it from "+chain)
		}
	}
	return missing
}

// requireNotrack fails the test where the rules are not in place.
func requireNotrack(t *testing.T) {
	t.Helper()
	s := readState(t)
	if missing := s.missingNotrack(); len(missing) > 0 {
		t.Errorf("missing from table raw: %s; the node has:\n%s", strings.Join(missing, ", "), strings.Join(s, "\n"))
	}
}

// requireSame fails the test where the node is not as it was.
func requireSame(t *testing.T, when string, before, after nodeState) {
	t.Helper()
	for _, line := range after.minus(before) {
		t.Errorf("%s: left on the node: %s", when, line)
	}
	for _, line := range before.minus(after) {
		t.Errorf("%s: taken from the node: %s", when, line)
	}
}

// tracked counts the entries of the connection tracking table that lead to an address.
func tracked(t *testing.T, to netip.Addr) int {
	t.Helper()
	flows := dump(t, func() ([]*netlink.ConntrackFlow, error) {
		return netlink.ConntrackTableList(netlink.ConntrackTable, netlink.FAMILY_V4)
	})
	n := 0
	for _, f := range flows {
		if a, ok := netip.AddrFromSlice(f.Forward.DstIP); ok && a.Unmap() == to {
			n++
		}
	}
	return n
}

package nodenet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// backends are the front ends that kernel tests run with.
var backends = []string{nameIPTablesNFT, nameIPTablesLegacy, nameNFTables}

// openBackend opens a front end inside the calling test's namespace, or skips the test where it is not
// to be had.
func openBackend(t *testing.T, name, owner string) Firewall {
	t.Helper()
	found := findIPTables(t.Context())
	if name == nameNFTables {
		programs, err := openAll(t.Context(), found, lockWait)
		if err != nil {
			t.Fatal(err)
		}
		fw := newNFTables(owner, programs)
		if err := fw.try(t.Context()); err != nil {
			t.Skip(err)
		}
		return fw
	}
	fw, err := newIPTables(t.Context(), name, owner, found, lockWait)
	if err != nil {
		t.Skip(err)
	}
	return fw
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// sh runs commands, one a line, in the namespace of the calling thread.
func sh(t *testing.T, commands string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", commands).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out)
	}
	return string(out)
}

func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
}

var volatile = regexp.MustCompile(`(?m)^#.*\n|\[\d+:\d+\]|counter packets \d+ bytes \d+`)

// ruleset is everything that every front end sees of the namespace's rules, without counters.
func ruleset(t *testing.T) string {
	t.Helper()
	need(t, "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save", "ip6tables-legacy-save", "nft")
	out := sh(t, `for f in iptables ip6tables; do for v in nft legacy; do echo "== $f-$v"; $f-$v-save 2>/dev/null; done; done
echo == nft; nft -s list ruleset 2>/dev/null`)
	return volatile.ReplaceAllString(out, "")
}

// foreignRules fills every chain that this package looks at with rules of others.
func foreignRules(t *testing.T) {
	t.Helper()
	need(t, "iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore", "nft")
	var rules strings.Builder
	for _, table := range []string{"raw PREROUTING OUTPUT", "nat PREROUTING", "filter INPUT OUTPUT"} {
		names := strings.Fields(table)
		fmt.Fprintf(&rules, "*%s\n", names[0])
		for _, chain := range names[1:] {
			fmt.Fprintf(&rules, ":FOREIGN-%s -\n", chain)
			fmt.Fprintf(&rules, "-A FOREIGN-%s -p udp -m udp --dport 5353 -m comment --comment \"it's \\\"foreign\\\"\" -j RETURN\n", chain)
			fmt.Fprintf(&rules, "-A %s -m comment --comment \"a b\" -j FOREIGN-%s\n", chain, chain)
			fmt.Fprintf(&rules, "-A %s -p tcp -m tcp --dport 22 -j ACCEPT\n", chain)
		}
		rules.WriteString("COMMIT\n")
	}
	file := filepath.Join(t.TempDir(), "rules")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, `for p in iptables-nft ip6tables-nft iptables-legacy ip6tables-legacy; do $p-restore -w < `+file+`; done
nft add table inet foreign; nft add chain inet foreign c '{ type filter hook input priority 5; }'
nft add rule inet foreign c udp dport 53 counter`)
}

// testSpec has both families, a fallback of two servers for each, and a health address.
func testSpec() Spec {
	return Spec{
		Interface: "lc0",
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.25.10"), netip.MustParseAddr("fd00:25::10")},
		Port:      53,
		Health:    []netip.AddrPort{netip.MustParseAddrPort("169.254.25.10:9254")},
		Notrack:   ChoiceAuto,
		Fallback: []netip.AddrPort{
			netip.MustParseAddrPort("10.233.74.65:53"), netip.MustParseAddrPort("10.233.74.66:1053"),
			netip.MustParseAddrPort("[fd00:74::65]:53"), netip.MustParseAddrPort("[fd00:74::66]:1053"),
		},
		Check:  DefaultCheck,
		OnExit: ExitKeep,
	}
}

// clean fails the test unless Check finds the rules in place.
func clean(t *testing.T, fw Firewall, rules []Rule) {
	t.Helper()
	diffs, err := fw.Check(testContext(t), rules)
	if err != nil || len(diffs) > 0 {
		t.Fatalf("Check: %v\n%s", err, strings.Join(diffs, "\n"))
	}
}

func apply(t *testing.T, fw Firewall, rules []Rule) {
	t.Helper()
	if err := fw.Apply(testContext(t), rules); err != nil {
		t.Fatal(err)
	}
}

// topology is a pod and two kube-dns servers around the node, which is the namespace of the test:
//
//	pod 10.233.64.2 ── node 169.254.25.10 ── dns 10.233.74.65, .66
type topology struct {
	node *namespace
	pod  *namespace
	dns  *namespace
}

// newTopology makes the namespaces, links and addresses of both families.
func newTopology(t *testing.T) *topology {
	t.Helper()
	top := &topology{node: newNamespace(t), pod: newPod(t), dns: newPod(t)}
	node := handleAt(t, top.node.ns)
	addAddrs(t, node, "lo", "169.254.25.10/32", "fd00:25::10/128")
	for _, side := range []struct {
		name  string
		ns    *namespace
		node  []string
		other []string
	}{
		{"v0", top.pod, []string{"10.233.64.1/24", "fd00:64::1/64"}, []string{"10.233.64.2/24", "fd00:64::2/64"}},
		{"v1", top.dns, []string{"10.233.74.1/24", "fd00:74::1/64"},
			[]string{"10.233.74.65/24", "10.233.74.66/24", "fd00:74::65/64", "fd00:74::66/64"}},
	} {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(side.ns.ns)}
		veth.Name = side.name
		if err := node.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		other := handleAt(t, side.ns.ns)
		addAddrs(t, node, side.name, side.node...)
		addAddrs(t, other, "eth0", side.other...)
		for _, gw := range side.node {
			eth, err := other.LinkByName("eth0")
			if err != nil {
				t.Fatal(err)
			}
			via, _, err := net.ParseCIDR(gw)
			if err != nil {
				t.Fatal(err)
			}
			if err := other.RouteAdd(&netlink.Route{LinkIndex: eth.Attrs().Index, Gw: via}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, sysctl := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+sysctl, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
	}
	return top
}

func handleAt(t *testing.T, ns netns.NsHandle) *netlink.Handle {
	t.Helper()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	return h
}

// addAddrs sets the link up and gives it addresses, those of IPv6 without duplicate address detection.
func addAddrs(t *testing.T, h *netlink.Handle, link string, addrs ...string) {
	t.Helper()
	l, err := h.LinkByName(link)
	if err == nil {
		err = h.LinkSetUp(l)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		const ifaFlagNoDAD = 0x02
		a.Flags = ifaFlagNoDAD
		if err := h.AddrAdd(l, a); err != nil {
			t.Fatalf("%s %s: %v", link, s, err)
		}
	}
}

// server answers each message, over UDP and TCP, with its name in front. An empty message over TCP,
// a newline alone, has it close the connection.
type server struct {
	name  string
	seen  atomic.Int32 // messages
	udp   net.PacketConn
	tcp   net.Listener
	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

// serve opens sockets at addr inside the namespace. Those of [::] are there for IPv4 as well, as those
// of a server usually are.
func (n *namespace) serve(name, addr string) *server {
	n.t.Helper()
	s := &server{name: name}
	family, config := "4", net.ListenConfig{}
	if strings.HasPrefix(addr, "[") {
		family = "6"
		config.Control = func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) {
				set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0)
			})
			return errors.Join(err, set)
		}
	}
	var errs [2]error
	n.do(func() {
		s.udp, errs[0] = config.ListenPacket(n.t.Context(), "udp"+family, addr)
		s.tcp, errs[1] = config.Listen(n.t.Context(), "tcp"+family, addr)
	})
	if err := errors.Join(errs[:]...); err != nil {
		n.t.Fatal(err)
	}
	s.wg.Add(2)
	go func() {
		defer s.wg.Done()
		buf := make([]byte, 2048)
		for {
			k, from, err := s.udp.ReadFrom(buf)
			if err != nil {
				return
			}
			s.seen.Add(1)
			if _, err := s.udp.WriteTo([]byte(name+"|"+string(buf[:k])), from); err != nil {
				return
			}
		}
	}()
	go func() {
		defer s.wg.Done()
		for {
			c, err := s.tcp.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.wg.Add(1)
			go func() {
				defer s.wg.Done()
				defer c.Close()
				buf := make([]byte, 2048)
				for {
					k, err := c.Read(buf)
					if err != nil || string(buf[:k]) == "\n" {
						return
					}
					s.seen.Add(1)
					if _, err := c.Write([]byte(name + "|" + string(buf[:k]))); err != nil {
						return
					}
				}
			}()
		}
	}()
	n.t.Cleanup(s.close)
	return s
}

// close closes the sockets, those of open connections too, as the end of a process does.
func (s *server) close() {
	s.udp.Close()
	s.tcp.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// dial opens a client's socket in the namespace.
func (n *namespace) dial(network string, from, to string) net.Conn {
	n.t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		ap := netip.MustParseAddrPort(from)
		d.LocalAddr = net.TCPAddrFromAddrPort(ap)
	}
	var c net.Conn
	var err error
	n.do(func() { c, err = d.DialContext(n.t.Context(), network, to) })
	if err != nil {
		n.t.Fatalf("%s to %s: %v", network, to, err)
	}
	n.t.Cleanup(func() { c.Close() })
	return c
}

// ask sends a message and returns the name of the server that answered it.
func ask(c net.Conn) string {
	if err := c.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err.Error()
	}
	if _, err := io.WriteString(c, "query"); err != nil {
		return err.Error()
	}
	buf := make([]byte, 2048)
	k, err := c.Read(buf)
	if err != nil {
		return err.Error()
	}
	name, echo, _ := strings.Cut(string(buf[:k]), "|")
	if echo != "query" {
		return "garbled answer " + string(buf[:k])
	}
	return name
}

// askFresh asks times times, each with a socket of its own, and counts the answers by server. The UDP
// sockets stay open until the test ends: a port that the kernel handed out again would make the query one
// of an older flow, which connection tracking sends where it went before.
func (n *namespace) askFresh(network, to string, times int) map[string]int {
	n.t.Helper()
	answers := make(map[string]int)
	for range times {
		c := n.dial(network, "", to)
		answers[ask(c)]++
		if network != "udp" {
			c.Close()
		}
	}
	return answers
}

// conntracked counts the node's conntrack entries of flows to addr. It is called on the test's thread.
func conntracked(t *testing.T, addr netip.Addr) int {
	t.Helper()
	family := netlink.InetFamily(netlink.FAMILY_V4)
	if addr.Is6() {
		family = netlink.FAMILY_V6
	}
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	if err != nil {
		t.Fatal(err)
	}
	return len(slices.DeleteFunc(flows, func(f *netlink.ConntrackFlow) bool {
		return !f.Forward.DstIP.Equal(addr.AsSlice())
	}))
}

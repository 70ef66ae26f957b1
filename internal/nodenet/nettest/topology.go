package nettest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
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

// Topology is a pod and two kube-dns servers around the node, which is the namespace of the test:
//
//	pod 10.233.64.2 ── node 169.254.25.10 ── dns 10.233.74.65, .66
type Topology struct {
	Node *Namespace
	Pod  *Namespace
	DNS  *Namespace
}

// NewTopology creates the namespaces, links and addresses of both families.
func NewTopology(t *testing.T) *Topology {
	t.Helper()
	top := &Topology{Node: NewNamespace(t), Pod: NewPod(t), DNS: NewPod(t)}
	node := handleAt(t, top.Node.Handle)
	addAddrs(t, node, "lo", "169.254.25.10/32", "fd00:25::10/128")
	for _, side := range []struct {
		name   string
		Handle *Namespace
		node   []string
		other  []string
	}{
		{"v0", top.Pod, []string{"10.233.64.1/24", "fd00:64::1/64"}, []string{"10.233.64.2/24", "fd00:64::2/64"}},
		{"v1", top.DNS, []string{"10.233.74.1/24", "fd00:74::1/64"},
			[]string{"10.233.74.65/24", "10.233.74.66/24", "fd00:74::65/64", "fd00:74::66/64"}},
	} {
		veth := &netlink.Veth{LinkAttrs: netlink.NewLinkAttrs(), PeerName: "eth0", PeerNamespace: netlink.NsFd(side.Handle.Handle)}
		veth.Name = side.name
		if err := node.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		other := handleAt(t, side.Handle.Handle)
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

// addAddrs sets the link up and adds addresses, those of IPv6 without duplicate address detection.
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

// Server answers each message, over UDP and TCP, with its name in front. An empty message over TCP,
// a newline alone, has it close the connection.
type Server struct {
	name  string
	Seen  atomic.Int32 // messages
	udp   net.PacketConn
	tcp   net.Listener
	mu    sync.Mutex
	conns []net.Conn
	wg    sync.WaitGroup
}

// Serve opens sockets at addr inside the namespace. Those of [::] are there for IPv4 as well, as those
// of a server usually are.
func (n *Namespace) Serve(name, addr string) *Server {
	n.T.Helper()
	s := &Server{name: name}
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
	n.Do(func() {
		s.udp, errs[0] = config.ListenPacket(n.T.Context(), "udp"+family, addr)
		s.tcp, errs[1] = config.Listen(n.T.Context(), "tcp"+family, addr)
	})
	if err := errors.Join(errs[:]...); err != nil {
		n.T.Fatal(err)
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
			s.Seen.Add(1)
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
					s.Seen.Add(1)
					if _, err := c.Write([]byte(name + "|" + string(buf[:k]))); err != nil {
						return
					}
				}
			}()
		}
	}()
	n.T.Cleanup(s.Close)
	return s
}

// Close closes the sockets, those of open connections too, as the end of a process does.
func (s *Server) Close() {
	s.udp.Close()
	s.tcp.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// Dial opens a client's socket in the namespace.
func (n *Namespace) Dial(network string, from, to string) net.Conn {
	n.T.Helper()
	d := net.Dialer{Timeout: 5 * time.Second}
	if from != "" {
		ap := netip.MustParseAddrPort(from)
		d.LocalAddr = net.TCPAddrFromAddrPort(ap)
	}
	var c net.Conn
	var err error
	n.Do(func() { c, err = d.DialContext(n.T.Context(), network, to) })
	if err != nil {
		n.T.Fatalf("%s to %s: %v", network, to, err)
	}
	n.T.Cleanup(func() { c.Close() })
	return c
}

// Ask sends a message and returns the name of the server that answered it.
func Ask(c net.Conn) string {
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

// AskFresh asks times times, each with a new socket, and counts the answers by server. The UDP sockets stay open
// until the test ends: a reused port would make the query part of an older flow, which connection tracking sends to
// the same server again.
func (n *Namespace) AskFresh(network, to string, times int) map[string]int {
	n.T.Helper()
	answers := make(map[string]int)
	for range times {
		c := n.Dial(network, "", to)
		answers[Ask(c)]++
		if network != "udp" {
			c.Close()
		}
	}
	return answers
}

// Conntracked counts the node's conntrack entries of flows to addr. It is called on the test's thread.
func Conntracked(t *testing.T, addr netip.Addr) int {
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

// DialFrom opens a client's socket with a given source port, which another socket may have used just before.
func (n *Namespace) DialFrom(network, from, to string) (c net.Conn, err error) {
	at := netip.MustParseAddrPort(from)
	d := net.Dialer{Timeout: 1500 * time.Millisecond, LocalAddr: net.Addr(net.TCPAddrFromAddrPort(at)),
		Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			if err == nil {
				err = set
			}
			return err
		}}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(at)
	}
	n.Do(func() { c, err = d.DialContext(n.T.Context(), network, to) })
	if err == nil {
		n.T.Cleanup(func() { c.Close() })
	}
	return c, err
}

// AskFrom asks from a given source port and returns the name of the server, or the error.
func (n *Namespace) AskFrom(network, from, to string) (string, net.Conn) {
	c, err := n.DialFrom(network, from, to)
	if err != nil {
		return err.Error(), nil
	}
	return Ask(c), c
}

// Tracked lists the entries of a family as PROTOCOL FROM TO SERVER, sorted.
func Tracked(t *testing.T, family netlink.InetFamily) []string {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	Must(t, err)
	var lines []string
	for _, f := range flows {
		lines = append(lines, fmt.Sprintf("%d %s %s %s", f.Forward.Protocol,
			net.JoinHostPort(f.Forward.SrcIP.String(), fmt.Sprint(f.Forward.SrcPort)),
			net.JoinHostPort(f.Forward.DstIP.String(), fmt.Sprint(f.Forward.DstPort)),
			net.JoinHostPort(f.Reverse.SrcIP.String(), fmt.Sprint(f.Reverse.SrcPort))))
	}
	slices.Sort(lines)
	return lines
}

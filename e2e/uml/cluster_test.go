package uml

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The address plan, after a kubespray cluster.
var (
	localIP   = netip.MustParseAddr("169.254.25.10")
	serviceIP = netip.MustParseAddr("10.233.0.3")  // of kube-dns
	uplinkIP  = netip.MustParseAddr("192.0.2.10")  // the node's own
	nodeIP    = netip.MustParseAddr("10.233.64.1") // the pods' gateway
	podIP     = netip.MustParseAddr("10.233.64.11")
	kubeDNSIP = netip.MustParseAddr("10.233.74.65")
)

// fillerPort is where kube-dns' host accepts connections that only stay open.
const fillerPort = 9000

// cluster is a node, which is the guest's own namespace, with a pod and a kube-dns on it, routed as by
// Calico, and kube-dns' Service address translated as by kube-proxy.
type cluster struct {
	pod, dnsHost *host
	// asked counts kube-dns' queries over UDP and TCP.
	askedUDP, askedTCP atomic.Int64
}

// startCluster raises a cluster and takes it down at the end of the test.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if err := setUp("lo"); err != nil {
		t.Fatal(err)
	}
	addUplink(t)
	c.pod = newHost(t, "veth-pod", podIP)
	c.dnsHost = newHost(t, "veth-kube-dns", kubeDNSIP)
	c.serve(t)
	c.acceptFillers(t)

	// What kube-proxy makes of a Service with one endpoint, less its marks and comments.
	for _, proto := range []string{"udp", "tcp"} {
		for _, rule := range [][]string{
			{"PREROUTING", "-d", serviceIP.String(), "-p", proto, "--dport", "53", "-j", "KUBE-SERVICES"},
			{"OUTPUT", "-d", serviceIP.String(), "-p", proto, "--dport", "53", "-j", "KUBE-SERVICES"},
			{"KUBE-SERVICES", "-p", proto, "-j", "DNAT", "--to-destination", kubeDNSIP.String() + ":53"},
		} {
			if rule[0] == "PREROUTING" && proto == "udp" {
				iptables(t, "-t", "nat", "-N", "KUBE-SERVICES")
			}
			iptables(t, append([]string{"-t", "nat", "-A"}, rule...)...)
		}
	}
	t.Cleanup(func() {
		iptables(t, "-t", "nat", "-F")
		iptables(t, "-t", "nat", "-X", "KUBE-SERVICES")
	})
	return c
}

// serve starts kube-dns. Any name has an address, so that each test asks for names of its own.
func (c *cluster) serve(t *testing.T) {
	t.Helper()
	var packets net.PacketConn
	var listener net.Listener
	err := c.dnsHost.do(func() (err error) {
		if packets, err = net.ListenPacket("udp4", ":53"); err != nil {
			return err
		}
		listener, err = net.Listen("tcp4", ":53")
		return err
	})
	if err != nil {
		t.Fatalf("kube-dns: %v", err)
	}
	answer := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		if w.LocalAddr().Network() == "tcp" {
			c.askedTCP.Add(1)
		} else {
			c.askedUDP.Add(1)
		}
		m := new(dns.Msg).SetReply(q)
		m.Authoritative = true
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 300},
				A:   net.IPv4(10, 233, 12, 34),
			}}
		}
		_ = w.WriteMsg(m) // a client that left does not matter
	})
	// Connections stay open like those of CoreDNS, which has no limit of queries on one.
	idle := func() time.Duration { return 5 * time.Minute }
	for _, s := range []*dns.Server{
		{PacketConn: packets, Handler: answer},
		{Listener: listener, Handler: answer, IdleTimeout: idle, MaxTCPQueries: -1},
	} {
		stopped := make(chan error, 1)
		go func() { stopped <- s.ActivateAndServe() }()
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			if err := errors.Join(s.ShutdownContext(ctx), <-stopped); err != nil {
				t.Errorf("stop kube-dns: %v", err)
			}
		})
	}
}

// iptables runs iptables-legacy on the node.
func iptables(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("iptables-legacy", append([]string{"-w"}, args...)...).CombinedOutput()
	if err != nil {
		t.Errorf("iptables-legacy %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// host is a network namespace with one link, eth0, to the node.
type host struct{ netns *os.File }

// newHost makes a host with an address, and the route to it; link is the node's end of its veth.
func newHost(t *testing.T, link string, addr netip.Addr) *host {
	t.Helper()
	h := &host{}
	made := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.netns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatalf("%s: new namespace: %v", link, err)
	}
	t.Cleanup(func() {
		if err := h.netns.Close(); err != nil {
			t.Error(err)
		}
		// The namespace ends when its last socket is closed, and removes both ends of the veth, but at a time of the
		// kernel's choice.
		if l, err := netlink.LinkByName(link); err == nil {
			_ = netlink.LinkDel(l)
		}
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name = link
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(h.netns.Fd()))}
	err := netlink.LinkAdd(veth)
	if err == nil {
		err = errors.Join(setUp(link, nodeIP), h.do(func() error { return errors.Join(setUp("lo"), setUp("eth0", addr)) }))
	}
	if err == nil {
		err = errors.Join(
			route(link, addr, netip.Addr{}),
			h.do(func() error {
				return errors.Join(route("eth0", nodeIP, netip.Addr{}), route("eth0", netip.Addr{}, nodeIP))
			}))
	}
	if err != nil {
		t.Fatalf("%s: %v", link, err)
	}
	return h
}

// addUplink gives the node a default route. No packet uses it, but the kernel looks for a route to the Service
// address before that is translated.
func addUplink(t *testing.T) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	uplink := &netlink.Dummy{LinkAttrs: attrs}
	if err := netlink.LinkAdd(uplink); err != nil {
		t.Fatalf("uplink: %v", err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(uplink); err != nil {
			t.Errorf("uplink: %v", err)
		}
	})
	if err := errors.Join(setUp("eth0", uplinkIP), route("eth0", netip.Addr{}, netip.Addr{})); err != nil {
		t.Fatal(err)
	}
}

// setUp brings a link of the calling thread's namespace up and gives it addresses.
func setUp(link string, addrs ...netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: single(a)}); err != nil {
			return fmt.Errorf("link %s: address %s: %w", link, a, err)
		}
	}
	return netlink.LinkSetUp(l)
}

// route sends what goes to dst, or everything where dst is the zero Addr, over a link.
func route(link string, dst, gateway netip.Addr) error {
	l, err := netlink.LinkByName(link)
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Scope: netlink.SCOPE_LINK}
	if dst.IsValid() {
		r.Dst = single(dst)
	} else {
		r.Dst = &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	}
	if gateway.IsValid() {
		r.Gw, r.Scope = gateway.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("link %s: route to %s: %w", link, r.Dst, err)
	}
	return nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(32, 32)}
}

// do runs f on a thread in the host's namespace. Sockets that f opens belong to the host.
func (h *host) do(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(h.netns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		result <- err
	}()
	return <-result
}

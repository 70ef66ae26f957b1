package nodenet

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	local4  = netip.MustParseAddr("169.254.25.10")
	local4b = netip.MustParseAddr("10.96.0.10")
	local6  = netip.MustParseAddr("fd00:10::10")
	both    = []netip.Addr{local4, local6}
)

// must ends the test where a step of its preparation fails.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func addLink(t *testing.T, l netlink.Link, name string, addrs ...string) netlink.Link {
	t.Helper()
	*l.Attrs() = netlink.NewLinkAttrs()
	l.Attrs().Name = name
	must(t, netlink.LinkAdd(l))
	must(t, netlink.LinkSetUp(l))
	putAddrs(t, l, addrs...)
	return l
}

func putAddrs(t *testing.T, l netlink.Link, addrs ...string) {
	t.Helper()
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		must(t, err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		must(t, netlink.AddrAdd(l, a))
	}
}

// addrsOn lists the addresses of a link but for the kernel's own.
func addrsOn(t *testing.T, name string) []string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	addrs, err := listAddrs(l)
	must(t, err)
	var s []string
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() || a.IP.To4() != nil {
			s = append(s, a.IPNet.String())
		}
	}
	slices.Sort(s)
	return s
}

func linkExists(t *testing.T, name string) bool {
	t.Helper()
	_, err := netlink.LinkByName(name)
	if err != nil && !isNoLink(err) {
		t.Fatal(err)
	}
	return err == nil
}

// echo answers UDP at addr until the test ends, from a socket bound to that very address.
func echo(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(buf[:n], from) // a client that misses the answer says so
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// askEcho sends one datagram and waits for its echo.
func askEcho(server netip.AddrPort) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("query")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}

// connectPod gives the namespace of the test a pod on a veth, with routes as CNI plugins make them.
func connectPod(t *testing.T) *namespace {
	t.Helper()
	pod := newPod(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "pod0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.ns)}
	must(t, netlink.LinkAdd(veth))
	must(t, netlink.LinkSetUp(veth))
	putAddrs(t, veth, "10.244.0.1/24", "fd00:244::1/64")
	pod.do(func() {
		eth0, err := netlink.LinkByName("eth0")
		if err != nil {
			t.Error(err)
			return
		}
		if err := netlink.LinkSetUp(eth0); err != nil {
			t.Error(err)
		}
		for _, s := range []string{"10.244.0.7/24", "fd00:244::7/64"} {
			a, err := netlink.ParseAddr(s)
			if err == nil {
				if a.IP.To4() == nil {
					a.Flags = unix.IFA_F_NODAD
				}
				err = netlink.AddrAdd(eth0, a)
			}
			if err != nil {
				t.Error(err)
			}
		}
		for _, gw := range []string{"10.244.0.1", "fd00:244::1"} {
			if err := netlink.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: net.ParseIP(gw)}); err != nil {
				t.Error(err)
			}
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return pod
}

// Each kind that this kernel has carries an IPv4 and an IPv6 address that can be bound at once, and
// answers on both to the node and to a pod.
func TestLinkOfEachKind(t *testing.T) {
	for _, kind := range linkKinds() {
		t.Run(kind.Type(), func(t *testing.T) {
			newNamespace(t)
			l := newLink("nodelocaldns", newTestLog(t))
			l.kinds = []netlink.Link{kind}
			s, done, err := l.ensure(both, nil)
			if err != nil && strings.Contains(err.Error(), "the kernel has none") {
				t.Skip(err)
			}
			must(t, err)
			if !done.created || !slices.Equal(done.added, both) || !s.complete() {
				t.Errorf("state %+v, changes %+v", s, done)
			}
			servers := []netip.AddrPort{echo(t, local4), echo(t, local6)} // at once: no wait for DAD
			made, err := netlink.LinkByName("nodelocaldns")
			must(t, err)
			if a := made.Attrs(); a.Alias != LinkAlias || made.Type() != kind.Type() || s.kind() != kind.Type() {
				t.Errorf("alias %q, kind %s", a.Alias, made.Type())
			}
			if got := addrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32", "fd00:10::10/128"}) {
				t.Errorf("addresses %v", got)
			}
			pod := connectPod(t)
			for _, server := range servers {
				if err := askEcho(server); err != nil {
					t.Errorf("from the node: %s: %v", server, err)
				}
				pod.do(func() {
					if err := askEcho(server); err != nil {
						t.Errorf("from a pod: %s: %v", server, err)
					}
				})
			}
			if _, done, err := l.ensure(both, nil); err != nil || done.any() {
				t.Errorf("a second time: changed %+v, error %v", done, err)
			}
			if removed, stays, err := l.remove(nil); err != nil || stays != "" || len(removed) != 1 {
				t.Errorf("remove: %q, stays %q, error %v", removed, stays, err)
			}
			links, err := linkList()
			must(t, err)
			if len(links) != 2 { // lo, pod0
				t.Errorf("%d links are left, of 2", len(links))
			}
		})
	}
}

// A kind that the kernel does not have is passed over, and the log says which.
func TestLinkNextKind(t *testing.T) {
	newNamespace(t)
	log := newTestLog(t)
	l := newLink("nodelocaldns", log)
	l.kinds = append([]netlink.Link{&netlink.GenericLink{LinkType: "nosuchkind"}}, &netlink.Bridge{})
	s, _, err := l.ensure(both, nil)
	must(t, err)
	if s.kind() != "bridge" {
		t.Errorf("kind %s", s.kind())
	}
	if lines := log.all(); len(lines) != 1 || !strings.Contains(lines[0], "nosuchkind") {
		t.Errorf("log %q", lines)
	}

	l = newLink("other", log)
	l.kinds = l.kinds[:0]
	l.kinds = append(l.kinds, &netlink.GenericLink{LinkType: "nosuchkind"})
	_, _, err = l.ensure(nil, nil)
	var se *SetupError
	if !errors.As(err, &se) || se.Type != ErrorInterfaceAdd || !strings.Contains(err.Error(), "nosuchkind") {
		t.Errorf("with no kind that works: %v", err)
	}
}

// An existing link is used as it is, and what others have on it is neither changed nor deleted.
func TestLinkTakeover(t *testing.T) {
	newNamespace(t)
	br := addLink(t, &netlink.Bridge{}, "br-dns", "10.1.0.1/24", "10.9.9.9/32")
	must(t, netlink.LinkSetDown(br))
	l := newLink("br-dns", newTestLog(t))
	s, done, err := l.ensure(both, nil)
	must(t, err)
	if done.created || !done.setUp || s.link.Attrs().Index != br.Attrs().Index || s.link.Attrs().Alias != "" {
		t.Errorf("the link was not taken as it is: %+v", done)
	}
	if len(s.surplus) != 0 {
		t.Errorf("surplus %v on a link that is not ours", s.surplus)
	}
	echo(t, local4)
	echo(t, local6)

	// The address of an earlier Spec is surplus where this process put it there.
	s, err = l.read([]netip.Addr{local4}, both)
	if must(t, err); !slices.Equal(s.surplus, []netip.Addr{local6}) {
		t.Errorf("surplus %v", s.surplus)
	}

	removed, stays, err := l.remove(both)
	must(t, err)
	if stays == "" || len(removed) != 2 {
		t.Errorf("removed %q, stays %q", removed, stays)
	}
	if got := addrsOn(t, "br-dns"); !slices.Equal(got, []string{"10.1.0.1/24", "10.9.9.9/32"}) {
		t.Errorf("left on the link: %v", got)
	}
}

// On a link with our mark, whoever made it, every host address is ours.
func TestLinkSurplus(t *testing.T) {
	newNamespace(t)
	l := newLink("nodelocaldns", newTestLog(t))
	_, _, err := l.ensure([]netip.Addr{local4, local4b, local6}, nil)
	must(t, err)
	link, err := netlink.LinkByName("nodelocaldns")
	must(t, err)
	putAddrs(t, link, "10.1.0.1/24")
	next := newLink("nodelocaldns", newTestLog(t)) // of a later process
	s, done, err := next.ensure([]netip.Addr{local4}, nil)
	must(t, err)
	slices.SortFunc(s.surplus, netip.Addr.Compare)
	if done.any() || !slices.Equal(s.surplus, []netip.Addr{local4b, local6}) {
		t.Errorf("changed %+v, surplus %v", done, s.surplus)
	}
	gone, err := next.removeAddresses(s.surplus)
	if must(t, err); len(gone) != 2 {
		t.Errorf("removed %v", gone)
	}
	if got := addrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.1.0.1/24", "169.254.25.10/32"}) {
		t.Errorf("left on the link: %v", got)
	}
	if _, stays, err := next.remove(nil); err != nil || !strings.Contains(stays, "10.1.0.1/24") {
		t.Errorf("a link with somebody's address: stays %q, error %v", stays, err)
	}
}

func TestLinkKept(t *testing.T) {
	for _, c := range []struct {
		name, says string
		make       func(t *testing.T)
	}{
		{"kind", "vxlan", func(t *testing.T) {
			addLink(t, &netlink.Vxlan{VxlanId: 42, Port: 4789}, "nodelocaldns", "169.254.25.10/32")
		}},
		{"port", "pod9", func(t *testing.T) {
			br := addLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32")
			port := addLink(t, &netlink.Veth{PeerName: "eth9"}, "pod9")
			must(t, netlink.LinkSetMaster(port, br))
		}},
		{"address", "10.9.9.9/32", func(t *testing.T) { // as on kube-ipvs0
			addLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32", "10.9.9.9/32")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			newNamespace(t)
			c.make(t)
			removed, stays, err := newLink("nodelocaldns", newTestLog(t)).remove([]netip.Addr{local4})
			must(t, err)
			if !strings.Contains(stays, c.says) || len(removed) != 1 || !strings.Contains(removed[0], local4.String()) {
				t.Errorf("removed %q, stays %q", removed, stays)
			}
			if slices.Contains(addrsOn(t, "nodelocaldns"), "169.254.25.10/32") {
				t.Error("our address is still there")
			}
		})
	}
}

func TestLinkForeign(t *testing.T) {
	newNamespace(t)
	addLink(t, &netlink.Bridge{}, "kube-ipvs0", "169.254.25.10/32")
	l := newLink("nodelocaldns", newTestLog(t))
	err := l.checkForeign(both)
	var foreign *ForeignLinkError
	if !errors.As(err, &foreign) || foreign.Link != "kube-ipvs0" || foreign.Addr != local4 || foreign.Ours {
		t.Fatalf("error %v", err)
	}
	for _, s := range []string{"169.254.25.10", "kube-ipvs0"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not name %s", err, s)
		}
	}
	_, _, err = newLink("localcache", newTestLog(t)).ensure([]netip.Addr{local6}, nil)
	must(t, err)
	if err := l.checkForeign([]netip.Addr{local6}); !errors.As(err, &foreign) || !foreign.Ours {
		t.Errorf("a link of another localcache: %v", err)
	}
	must(t, newLink("kube-ipvs0", newTestLog(t)).checkForeign([]netip.Addr{local4}))
}

// An IPv6 address on which duplicate address detection failed can never be bound; it is put anew.
func TestLinkBrokenAddress(t *testing.T) {
	newNamespace(t)
	br := addLink(t, &netlink.Bridge{}, "nodelocaldns")
	must(t, netlink.LinkSetDown(br)) // where DAD does not come to an end
	a, err := netlink.ParseAddr("fd00:10::10/128")
	must(t, err)
	must(t, netlink.AddrAdd(br, a))
	l := newLink("nodelocaldns", newTestLog(t))
	s, err := l.read(both, nil)
	must(t, err)
	if !slices.Equal(s.broken, []netip.Addr{local6}) || len(s.missing) != 2 {
		t.Fatalf("the test does not make a tentative address: %+v", s)
	}
	_, _, err = l.ensure(both, nil)
	must(t, err)
	echo(t, local6)
}

func TestLinkIPv6Off(t *testing.T) {
	newNamespace(t)
	disableIPv6(t)
	s, done, err := newLink("nodelocaldns", newTestLog(t)).ensure(both, nil)
	if err == nil || !strings.Contains(err.Error(), "disable_ipv6") || !strings.Contains(err.Error(), local6.String()) {
		t.Errorf("error %v", err)
	}
	if !done.created || !slices.Equal(done.added, []netip.Addr{local4}) || !slices.Equal(s.missing, []netip.Addr{local6}) {
		t.Errorf("changes %+v, missing %v", done, s.missing)
	}
}

// Without NET_ADMIN the error says so; a link that is as it should be needs none.
func TestLinkUnprivileged(t *testing.T) {
	newNamespace(t)
	l := newLink("nodelocaldns", newTestLog(t))
	_, _, err := l.ensure(both, nil)
	must(t, err)
	dropNetAdmin(t)
	if _, done, err := l.ensure(both, nil); err != nil || done.any() {
		t.Errorf("a complete link: changed %+v, error %v", done, err)
	}
	for _, c := range []*Link{newLink("other", newTestLog(t)), l} {
		_, _, err := c.ensure([]netip.Addr{local4b}, nil)
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "NET_ADMIN") || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
}

// dropNetAdmin takes the capability from the test's own thread, which ends with the test.
func dropNetAdmin(t *testing.T) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	must(t, unix.Capget(&hdr, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	must(t, unix.Capset(&hdr, &data[0]))
}

// disableIPv6 has new links of the namespace refuse IPv6 addresses.
func disableIPv6(t *testing.T) {
	t.Helper()
	must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
}

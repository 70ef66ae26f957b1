package link

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/status"
)

// connectPod connects the namespace of the test to a pod by a veth, with routes as CNI plugins make them.
func connectPod(t *testing.T) *nettest.Namespace {
	t.Helper()
	pod := nettest.NewPod(t)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "pod0"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(pod.Handle)}
	nettest.Must(t, netlink.LinkAdd(veth))
	nettest.Must(t, netlink.LinkSetUp(veth))
	nettest.PutAddrs(t, veth, "10.244.0.1/24", "fd00:244::1/64")
	pod.Do(func() {
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
			nettest.NewNamespace(t)
			l := New("nodelocaldns", nettest.NewLog(t))
			l.Kinds = []netlink.Link{kind}
			s, done, err := l.Ensure(nettest.Both, nil)
			if err != nil && strings.Contains(err.Error(), "the kernel has none") {
				t.Skip(err)
			}
			nettest.Must(t, err)
			if !done.Created || !slices.Equal(done.Added, nettest.Both) || !s.Complete() {
				t.Errorf("state %+v, changes %+v", s, done)
			}
			servers := []netip.AddrPort{nettest.Echo(t, nettest.Local4), nettest.Echo(t, nettest.Local6)} // at once: no wait for DAD
			made, err := netlink.LinkByName("nodelocaldns")
			nettest.Must(t, err)
			if a := made.Attrs(); a.Alias != Alias || made.Type() != kind.Type() || s.Kind() != kind.Type() {
				t.Errorf("alias %q, kind %s", a.Alias, made.Type())
			}
			if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"169.254.25.10/32", "fd00:10::10/128"}) {
				t.Errorf("addresses %v", got)
			}
			pod := connectPod(t)
			for _, server := range servers {
				if err := nettest.AskEcho(server); err != nil {
					t.Errorf("from the node: %s: %v", server, err)
				}
				pod.Do(func() {
					if err := nettest.AskEcho(server); err != nil {
						t.Errorf("from a pod: %s: %v", server, err)
					}
				})
			}
			if _, done, err := l.Ensure(nettest.Both, nil); err != nil || done.Any() {
				t.Errorf("a second time: changed %+v, error %v", done, err)
			}
			if removed, stays, err := l.Remove(nil); err != nil || stays != "" || len(removed) != 1 {
				t.Errorf("remove: %q, stays %q, error %v", removed, stays, err)
			}
			links, err := linkList()
			nettest.Must(t, err)
			if len(links) != 2 { // lo, pod0
				t.Errorf("%d links are left, of 2", len(links))
			}
		})
	}
}

// A kind that the kernel does not have is passed over, and the log says which.
func TestLinkNextKind(t *testing.T) {
	nettest.NewNamespace(t)
	log := nettest.NewLog(t)
	l := New("nodelocaldns", log)
	l.Kinds = append([]netlink.Link{&netlink.GenericLink{LinkType: "nosuchkind"}}, &netlink.Bridge{})
	s, _, err := l.Ensure(nettest.Both, nil)
	nettest.Must(t, err)
	if s.Kind() != "bridge" {
		t.Errorf("kind %s", s.Kind())
	}
	if lines := log.All(); len(lines) != 1 || !strings.Contains(lines[0], "nosuchkind") {
		t.Errorf("log %q", lines)
	}

	l = New("other", log)
	l.Kinds = l.Kinds[:0]
	l.Kinds = append(l.Kinds, &netlink.GenericLink{LinkType: "nosuchkind"})
	_, _, err = l.Ensure(nil, nil)
	var se *status.SetupError
	if !errors.As(err, &se) || se.Type != status.ErrorInterfaceAdd || !strings.Contains(err.Error(), "nosuchkind") {
		t.Errorf("with no kind that works: %v", err)
	}
}

// An existing link is used as it is, and addresses of others on it are neither changed nor deleted.
func TestLinkTakeover(t *testing.T) {
	nettest.NewNamespace(t)
	br := nettest.AddLink(t, &netlink.Bridge{}, "br-dns", "10.1.0.1/24", "10.9.9.9/32")
	nettest.Must(t, netlink.LinkSetDown(br))
	l := New("br-dns", nettest.NewLog(t))
	s, done, err := l.Ensure(nettest.Both, nil)
	nettest.Must(t, err)
	if done.Created || !done.SetUp || s.Link.Attrs().Index != br.Attrs().Index || s.Link.Attrs().Alias != "" {
		t.Errorf("the link was not taken as it is: %+v", done)
	}
	if len(s.Surplus) != 0 {
		t.Errorf("surplus %v on a link that is not ours", s.Surplus)
	}
	nettest.Echo(t, nettest.Local4)
	nettest.Echo(t, nettest.Local6)

	// The address of an earlier Spec is surplus if this process added it.
	s, err = l.Read([]netip.Addr{nettest.Local4}, nettest.Both)
	if nettest.Must(t, err); !slices.Equal(s.Surplus, []netip.Addr{nettest.Local6}) {
		t.Errorf("surplus %v", s.Surplus)
	}

	removed, stays, err := l.Remove(nettest.Both)
	nettest.Must(t, err)
	if stays == "" || len(removed) != 2 {
		t.Errorf("removed %q, stays %q", removed, stays)
	}
	if got := nettest.AddrsOn(t, "br-dns"); !slices.Equal(got, []string{"10.1.0.1/24", "10.9.9.9/32"}) {
		t.Errorf("left on the link: %v", got)
	}
}

// On a link with localcache's alias, whoever created it, every host address belongs to localcache.
func TestLinkSurplus(t *testing.T) {
	nettest.NewNamespace(t)
	l := New("nodelocaldns", nettest.NewLog(t))
	_, _, err := l.Ensure([]netip.Addr{nettest.Local4, nettest.Local4b, nettest.Local6}, nil)
	nettest.Must(t, err)
	link, err := netlink.LinkByName("nodelocaldns")
	nettest.Must(t, err)
	nettest.PutAddrs(t, link, "10.1.0.1/24")
	next := New("nodelocaldns", nettest.NewLog(t)) // of a later process
	s, done, err := next.Ensure([]netip.Addr{nettest.Local4}, nil)
	nettest.Must(t, err)
	slices.SortFunc(s.Surplus, netip.Addr.Compare)
	if done.Any() || !slices.Equal(s.Surplus, []netip.Addr{nettest.Local4b, nettest.Local6}) {
		t.Errorf("changed %+v, surplus %v", done, s.Surplus)
	}
	gone, err := next.RemoveAddresses(s.Surplus)
	if nettest.Must(t, err); len(gone) != 2 {
		t.Errorf("removed %v", gone)
	}
	if got := nettest.AddrsOn(t, "nodelocaldns"); !slices.Equal(got, []string{"10.1.0.1/24", "169.254.25.10/32"}) {
		t.Errorf("left on the link: %v", got)
	}
	if _, stays, err := next.Remove(nil); err != nil || !strings.Contains(stays, "10.1.0.1/24") {
		t.Errorf("a link with somebody's address: stays %q, error %v", stays, err)
	}
}

func TestLinkKept(t *testing.T) {
	for _, c := range []struct {
		name, says string
		make       func(t *testing.T)
	}{
		{"kind", "vxlan", func(t *testing.T) {
			nettest.AddLink(t, &netlink.Vxlan{VxlanId: 42, Port: 4789}, "nodelocaldns", "169.254.25.10/32")
		}},
		{"port", "pod9", func(t *testing.T) {
			br := nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32")
			port := nettest.AddLink(t, &netlink.Veth{PeerName: "eth9"}, "pod9")
			nettest.Must(t, netlink.LinkSetMaster(port, br))
		}},
		{"address", "10.9.9.9/32", func(t *testing.T) { // as on kube-ipvs0
			nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32", "10.9.9.9/32")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			nettest.NewNamespace(t)
			c.make(t)
			removed, stays, err := New("nodelocaldns", nettest.NewLog(t)).Remove([]netip.Addr{nettest.Local4})
			nettest.Must(t, err)
			if !strings.Contains(stays, c.says) || len(removed) != 1 || !strings.Contains(removed[0], nettest.Local4.String()) {
				t.Errorf("removed %q, stays %q", removed, stays)
			}
			if slices.Contains(nettest.AddrsOn(t, "nodelocaldns"), "169.254.25.10/32") {
				t.Error("our address is still there")
			}
		})
	}
}

func TestLinkForeign(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.AddLink(t, &netlink.Bridge{}, "kube-ipvs0", "169.254.25.10/32")
	l := New("nodelocaldns", nettest.NewLog(t))
	err := l.CheckForeign(nettest.Both)
	var foreign *ForeignLinkError
	if !errors.As(err, &foreign) || foreign.Link != "kube-ipvs0" || foreign.Addr != nettest.Local4 || foreign.Ours {
		t.Fatalf("error %v", err)
	}
	for _, s := range []string{"169.254.25.10", "kube-ipvs0"} {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not name %s", err, s)
		}
	}
	_, _, err = New("localcache", nettest.NewLog(t)).Ensure([]netip.Addr{nettest.Local6}, nil)
	nettest.Must(t, err)
	if err := l.CheckForeign([]netip.Addr{nettest.Local6}); !errors.As(err, &foreign) || !foreign.Ours {
		t.Errorf("a link of another localcache: %v", err)
	}
	nettest.Must(t, New("kube-ipvs0", nettest.NewLog(t)).CheckForeign([]netip.Addr{nettest.Local4}))
}

// An IPv6 address on which duplicate address detection failed can never be bound; it is added again.
func TestLinkBrokenAddress(t *testing.T) {
	nettest.NewNamespace(t)
	br := nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns")
	nettest.Must(t, netlink.LinkSetDown(br)) // where DAD does not come to an end
	a, err := netlink.ParseAddr("fd00:10::10/128")
	nettest.Must(t, err)
	nettest.Must(t, netlink.AddrAdd(br, a))
	l := New("nodelocaldns", nettest.NewLog(t))
	s, err := l.Read(nettest.Both, nil)
	nettest.Must(t, err)
	if !slices.Equal(s.broken, []netip.Addr{nettest.Local6}) || len(s.Missing) != 2 {
		t.Fatalf("the test does not make a tentative address: %+v", s)
	}
	_, _, err = l.Ensure(nettest.Both, nil)
	nettest.Must(t, err)
	nettest.Echo(t, nettest.Local6)
}

func TestLinkIPv6Off(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.DisableIPv6(t)
	s, done, err := New("nodelocaldns", nettest.NewLog(t)).Ensure(nettest.Both, nil)
	if err == nil || !strings.Contains(err.Error(), "disable_ipv6") || !strings.Contains(err.Error(), nettest.Local6.String()) {
		t.Errorf("error %v", err)
	}
	if !done.Created || !slices.Equal(done.Added, []netip.Addr{nettest.Local4}) || !slices.Equal(s.Missing, []netip.Addr{nettest.Local6}) {
		t.Errorf("changes %+v, missing %v", done, s.Missing)
	}
}

// Without NET_ADMIN the error says so; a link in the right state needs none.
func TestLinkUnprivileged(t *testing.T) {
	nettest.NewNamespace(t)
	l := New("nodelocaldns", nettest.NewLog(t))
	_, _, err := l.Ensure(nettest.Both, nil)
	nettest.Must(t, err)
	nettest.DropNetAdmin(t)
	if _, done, err := l.Ensure(nettest.Both, nil); err != nil || done.Any() {
		t.Errorf("a complete link: changed %+v, error %v", done, err)
	}
	for _, c := range []*Link{New("other", nettest.NewLog(t)), l} {
		_, _, err := c.Ensure([]netip.Addr{nettest.Local4b}, nil)
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "NET_ADMIN") || !strings.Contains(err.Error(), c.Name) {
			t.Errorf("%s: error %v", c.Name, err)
		}
	}
}

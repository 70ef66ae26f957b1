package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Links are routed, not bridged, as by Calico: each host has one veth, each address is a host address,
// and the node has a route for each pod. The functions below that take no host run inside of one.

// kernelHasIPv6 reports whether the network namespaces of this kernel have IPv6.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all/accept_dad")
	return err == nil
}

// sysctl sets a value below /proc/sys/net of the calling thread's namespace.
func sysctl(path, value string) error {
	err := os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
	if errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%w: /proc/sys is read-only here, as in a container that is not privileged", err)
	}
	return err
}

// prepareHost brings loopback up and switches off what delays the use of new addresses.
func prepareHost() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return err
	}
	if !kernelHasIPv6() {
		return nil
	}
	for _, which := range []string{"all", "default"} {
		// Duplicate address detection takes a second; these addresses are unique.
		for _, s := range []struct{ name, value string }{{"disable_ipv6", "0"}, {"accept_dad", "0"}, {"accept_ra", "0"}} {
			if err := sysctl("ipv6/conf/"+which+"/"+s.name, s.value); err != nil {
				return err
			}
		}
	}
	return nil
}

// prepareNode makes the namespace a router.
func prepareNode() error {
	settings := [][2]string{
		{"ipv4/ip_forward", "1"},
		// New namespaces copy the machine's values; set those of a node (loose reverse path check).
		{"ipv4/conf/all/rp_filter", "2"},
		{"ipv4/conf/default/rp_filter", "2"},
	}
	if kernelHasIPv6() {
		settings = append(settings, [2]string{"ipv6/conf/all/forwarding", "1"})
	}
	for _, s := range settings {
		if err := sysctl(s[0], s[1]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// connectPod links a pod to the node: eth0 in the pod, veth-NAME on the node.
func connectPod(node, pod *Host) error {
	addr := func(v4, v6 netip.Addr) []netip.Addr {
		if !pod.IPv6.IsValid() {
			return []netip.Addr{v4}
		}
		return []netip.Addr{v4, v6}
	}
	nodeAddrs, podAddrs := addr(plan.node, plan.node6), addr(pod.IPv4, pod.IPv6)
	return connect(node, "veth-"+pod.Name, nodeAddrs, podAddrs, false, pod, "eth0", podAddrs, nodeAddrs, true)
}

// connectUpstream links the node to the outside world. Packets to addresses outside of the cluster go there.
func connectUpstream(node, upstream *Host) error {
	nodeAddrs, outAddrs := []netip.Addr{node.IPv4}, []netip.Addr{upstream.IPv4}
	if node.IPv6.IsValid() {
		nodeAddrs, outAddrs = append(nodeAddrs, node.IPv6), append(outAddrs, upstream.IPv6)
	}
	return connect(node, "eth0", nodeAddrs, outAddrs, true, upstream, "eth0", outAddrs, nodeAddrs, true)
}

// connect creates a veth pair between a and b, adds the addresses to its ends, and routes each side's peers over it;
// with viaPeer the first peer of each family is also that side's default gateway.
func connect(a *Host, aName string, aAddrs, aPeers []netip.Addr, aDefault bool,
	b *Host, bName string, bAddrs, bPeers []netip.Addr, bDefault bool) error {
	err := a.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = aName
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(int(b.netns.Fd()))})
	})
	if err != nil {
		return fmt.Errorf("veth %s to host %s: %w", aName, b.Name, err)
	}
	// Both ends are up before the routes: an IPv6 route over a link without a carrier is dead at first.
	for _, end := range []struct {
		h     *Host
		link  string
		addrs []netip.Addr
	}{{a, aName, aAddrs}, {b, bName, bAddrs}} {
		if err := end.h.Do(func() error { return address(end.link, end.addrs) }); err != nil {
			return fmt.Errorf("host %s, link %s: %w", end.h.Name, end.link, err)
		}
	}
	for _, end := range []struct {
		h         *Host
		link      string
		addrs     []netip.Addr
		peers     []netip.Addr
		isDefault bool
	}{{a, aName, aAddrs, aPeers, aDefault}, {b, bName, bAddrs, bPeers, bDefault}} {
		if err := end.h.Do(func() error { return route(end.link, end.addrs, end.peers, end.isDefault) }); err != nil {
			return fmt.Errorf("host %s, link %s: %w", end.h.Name, end.link, err)
		}
	}
	return nil
}

// address puts host addresses on a link and brings it up.
func address(name string, addrs []netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: hostNet(a), Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("address %s: %w", a, err)
		}
	}
	return netlink.LinkSetUp(link)
}

// route sends peers, and with isDefault everything else, over a link. addrs are the sources, in the order of the
// peers.
func route(name string, addrs, peers []netip.Addr, isDefault bool) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for i, peer := range peers {
		direct := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: hostNet(peer), Scope: netlink.SCOPE_LINK, Src: addrs[i].AsSlice()}
		if err := netlink.RouteReplace(direct); err != nil {
			return fmt.Errorf("route to %s: %w", peer, err)
		}
		if !isDefault {
			continue
		}
		everything := &net.IPNet{IP: make(net.IP, peer.BitLen()/8), Mask: net.CIDRMask(0, peer.BitLen())}
		gateway := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: everything, Gw: peer.AsSlice(), Src: addrs[i].AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
		if err := netlink.RouteReplace(gateway); err != nil {
			return fmt.Errorf("default route via %s: %w", peer, err)
		}
	}
	return nil
}

// hostNet returns the network that contains only a.
func hostNet(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

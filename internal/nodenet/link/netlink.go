package link

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// maxDumps bounds how often a listing is repeated because the kernel reports a change during it. The last one is used
// as it is: events and the next check find what it misses.
const maxDumps = 5

// listAddrs returns the addresses of link, or of every link if link is nil.
func listAddrs(link netlink.Link) (addrs []netlink.Addr, err error) {
	for range maxDumps {
		addrs, err = netlink.AddrList(link, netlink.FAMILY_ALL)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return addrs, err
		}
	}
	return addrs, nil
}

func linkList() (links []netlink.Link, err error) {
	for range maxDumps {
		links, err = netlink.LinkList()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return links, err
		}
	}
	return links, nil
}

// IsNoLink reports that no link of the name or index exists. One form comes from the library's look-ups, the other
// from the kernel's reply to a change.
func IsNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}

// isOurs reports whether all addresses with a host mask on the link belong to localcache or node-cache: it has
// localcache's alias, or it is a dummy with a default name, as node-cache creates it.
func isOurs(link netlink.Link) bool {
	a := link.Attrs()
	return a.Alias == Alias || link.Type() == "dummy" && slices.Contains(rule.DefaultOwners(), a.Name)
}

// addrOf returns an address as the kernel has it, and whether its mask is that of a single host.
func addrOf(a netlink.Addr) (ip netip.Addr, hostMask bool) {
	ip, _ = netip.AddrFromSlice(a.IP)
	ones, bits := a.Mask.Size()
	return ip.Unmap(), ones == bits
}

// HostAddr is ip with the mask of a single host. Duplicate address detection is left out: the address
// is meant to be on every node, and waiting for it would keep sockets from being bound.
func HostAddr(ip netip.Addr) *netlink.Addr {
	b := ip.BitLen()
	a := &netlink.Addr{IPNet: &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(b, b)}}
	if ip.Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

// routeWait bounds the wait for the local route of a new IPv6 address. It was seen to take up to 10 ms.
const routeWait = 200 * time.Millisecond

// awaitRoutes waits until the kernel delivers to new IPv6 addresses. They can be bound at once, but a worker creates
// the local route later (addrconf_dad_work in net/ipv6/addrconf.c), and packets sent before that are lost. If the
// wait times out, for example because policy routing gives another route, going on loses nothing.
func awaitRoutes(addrs []netip.Addr) {
	deadline := time.Now().Add(routeWait)
	for _, a := range addrs {
		for a.Is6() && time.Now().Before(deadline) {
			routes, err := netlink.RouteGet(a.AsSlice())
			if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

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

// maxDumps bounds how often a listing is asked for that changes while the kernel writes it out. The
// last one is taken as it is: events and the next check find what it lacks.
const maxDumps = 5

// listAddrs lists the addresses of link, or of every link where it is nil.
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

// IsNoLink tells that there is no link of the name or index. The two forms are those of the library's
// look-ups and of the kernel's answer to a change.
func IsNoLink(err error) bool {
	var none netlink.LinkNotFoundError
	return errors.As(err, &none) || errors.Is(err, unix.ENODEV)
}

// isOurs tells whether all addresses with a host mask on the link are localcache's or node-cache's:
// it has our mark, or it is a dummy of a default name, as node-cache makes it.
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

// awaitRoutes waits until the kernel delivers to new IPv6 addresses. They can be bound at once, but the
// local route is made by a worker (addrconf_dad_work in net/ipv6/addrconf.c), and until then what is
// sent to the address is lost. Where the answer does not come, rules of policy routing for instance
// giving another, nothing is lost by going on.
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

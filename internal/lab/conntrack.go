package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Flow is one entry of a host's connection tracking table.
type Flow struct {
	Protocol uint8 // IPPROTO_UDP, IPPROTO_TCP, …
	From, To netip.AddrPort
	// Answerer is the server that answers: To, unless the destination was translated.
	Answerer netip.AddrPort
}

// Conntrack returns the tracked flows whose original destination is addr, any port. With the zero
// Addr it returns all.
func (h *Host) Conntrack(addr netip.Addr) ([]Flow, error) {
	var flows []Flow
	err := h.Do(func() error {
		for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
			if addr.IsValid() && addr.Is4() != (family == unix.AF_INET) {
				continue
			}
			list, err := conntrackList(family)
			if err != nil {
				return err
			}
			for _, f := range list {
				flow := Flow{
					Protocol: f.Forward.Protocol,
					From:     addrPort(f.Forward.SrcIP, f.Forward.SrcPort),
					To:       addrPort(f.Forward.DstIP, f.Forward.DstPort),
					Answerer: addrPort(f.Reverse.SrcIP, f.Reverse.SrcPort),
				}
				if !addr.IsValid() || flow.To.Addr() == addr {
					flows = append(flows, flow)
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("host %s: connection tracking table: %w", h.Name, err)
	}
	return flows, nil
}

// FlushConntrack forgets every tracked flow. It breaks TCP connections to a Service: the next packet
// counts as a new flow, which may be translated to another replica.
func (h *Host) FlushConntrack() error {
	return h.Do(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
}

// conntrackList reads the table again if the kernel reports that it changed during the reading: only an undisturbed
// listing is complete.
func conntrackList(family netlink.InetFamily) ([]*netlink.ConntrackFlow, error) {
	var err error
	for range 20 {
		var list []*netlink.ConntrackFlow
		list, err = netlink.ConntrackTableList(netlink.ConntrackTable, family)
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return nil, err
}

func addrPort(ip net.IP, port uint16) netip.AddrPort {
	a, _ := netip.AddrFromSlice(ip)
	return netip.AddrPortFrom(a.Unmap(), port)
}

package iptables

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// Fallback implements Firewall.
func (f *Backend) Fallback(ctx context.Context, like rule.Rule) ([]netip.AddrPort, error) {
	x, _, err := f.family(like.Is6(), nil)
	if err != nil || x == nil {
		return nil, err
	}
	states, err := f.Read(ctx, x, false, false)
	if err != nil {
		return nil, err
	}
	s := states[rule.NatPrerouting]
	jumps := s.jumps(f.names(rule.NatPrerouting))
	if len(jumps) == 0 {
		return nil, nil
	}
	var servers []netip.AddrPort
	for _, l := range s.own[s.builtin[jumps[0]].Option("-j", "-g")] {
		if l.Option("-d") != netip.PrefixFrom(like.Dst, like.Dst.BitLen()).String() || l.Option("-p") != string(like.Proto) ||
			l.Option("--dport") != fmt.Sprint(like.DstPort) {
			continue
		}
		if server, err := netip.ParseAddrPort(l.Option("--to-destination")); err == nil && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

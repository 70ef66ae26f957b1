package nodenet

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// adopt gives w the fallback servers that rules in the kernel lead to already, where w is to keep those in force
// and names none itself: an earlier process has learnt them, and this one has not come to that yet.
func (k *Keeper) adopt(ctx context.Context, w *wish) error {
	if !w.spec.KeepFallback || w.spec.hasFallback() {
		return nil
	}
	var found [2][]netip.AddrPort
	for i, p := range []Proto{UDP, TCP} {
		for _, a := range w.spec.Addresses {
			servers, err := w.fw.Fallback(ctx, fallbackRule(a, w.spec.Port, p, nil))
			if err != nil {
				return rulesError(w.fw.Name(), fmt.Errorf("read the fallback that is in place: %w", err))
			}
			found[i] = append(found[i], servers...)
		}
	}
	spec := w.spec.WithFallback(found[0], found[1])
	k.mu.Lock() // who keeps the link reads the addresses meanwhile
	w.spec = spec
	k.mu.Unlock()
	if spec.hasFallback() {
		k.cfg.Log.Infof("the fallback stays what an earlier process made it, until more is known")
	}
	return nil
}

// Fallback implements Firewall.
func (f *nftablesFirewall) Fallback(ctx context.Context, like Rule) ([]netip.AddrPort, error) {
	s, err := f.read(ctx)
	if err != nil {
		return nil, err
	}
	match, err := nftWanted("", []nftRule{{exprs: nftMatch(like)}})
	if err != nil {
		return nil, err
	}
	var servers []netip.AddrPort
	for _, r := range s.rules[nftChains()[NatPrerouting].name] {
		rest, ok := strings.CutPrefix(r.exprs, match[0].exprs+" ")
		if !ok || r.comment != commentDNAT {
			continue
		}
		if server, ok := nftTarget(rest); ok {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

// nftTarget finds the address and port that a rule's expressions put into registers 1 and 2.
func nftTarget(exprs string) (netip.AddrPort, bool) {
	var values [][]byte
	for rest := exprs; ; {
		i := strings.Index(rest, "immediate(")
		if i < 0 {
			break
		}
		var register, value string
		rest = rest[i:]
		text, after, _ := strings.Cut(strings.TrimPrefix(rest, "immediate("), ")")
		if n, err := fmt.Sscanf(text, "1=%s 2=%s", &register, &value); err != nil || n != 2 {
			return netip.AddrPort{}, false
		}
		b, err := hex.DecodeString(value)
		if err != nil {
			return netip.AddrPort{}, false
		}
		values, rest = append(values, b), after
	}
	if len(values) != 2 || len(values[1]) != 2 {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(values[0])
	return netip.AddrPortFrom(addr, uint16(values[1][0])<<8|uint16(values[1][1])), ok
}

// Fallback implements Firewall.
func (f *iptablesFirewall) Fallback(ctx context.Context, like Rule) ([]netip.AddrPort, error) {
	x, _, err := f.family(like.Is6(), nil)
	if err != nil || x == nil {
		return nil, err
	}
	states, err := f.read(ctx, x, false, false)
	if err != nil {
		return nil, err
	}
	s := states[NatPrerouting]
	jumps := s.jumps(f.names(NatPrerouting))
	if len(jumps) == 0 {
		return nil, nil
	}
	var servers []netip.AddrPort
	for _, l := range s.own[s.builtin[jumps[0]].option("-j", "-g")] {
		if l.option("-d") != netip.PrefixFrom(like.Dst, like.Dst.BitLen()).String() || l.option("-p") != string(like.Proto) ||
			l.option("--dport") != fmt.Sprint(like.DstPort) {
			continue
		}
		if server, err := netip.ParseAddrPort(l.option("--to-destination")); err == nil && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

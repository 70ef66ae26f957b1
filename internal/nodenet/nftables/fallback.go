package nftables

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// Fallback implements rule.Backend.
func (f *Backend) Fallback(ctx context.Context, like rule.Rule) ([]netip.AddrPort, error) {
	s, err := f.Read(ctx)
	if err != nil {
		return nil, err
	}
	match, err := wantedTexts("", []Rule{{Exprs: nftMatch(like)}})
	if err != nil {
		return nil, err
	}
	var servers []netip.AddrPort
	for _, r := range s.rules[nftChains()[rule.NatPrerouting].name] {
		rest, ok := strings.CutPrefix(r.exprs, match[0].exprs+" ")
		if !ok || r.comment != rule.CommentDNAT {
			continue
		}
		if server, ok := nftTarget(rest); ok {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

// nftTarget returns the address and port that a rule's expressions put into registers 1 and 2.
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

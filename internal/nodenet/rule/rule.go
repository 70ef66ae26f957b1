// Package rule describes packet rules without naming a packet filter: the hook, the packets that match, and the
// verdict. It holds the interface Backend, through which internal/nodenet puts rules into the kernel, and the names
// that all backends share. It is pure: nothing here touches the kernel.
package rule

import (
	"net/netip"
	"slices"
	"strings"
)

// Hook is a place in the packet's way through the kernel, in the words of iptables.
type Hook string

// The hooks that rules stand in.
const (
	RawPrerouting Hook = "raw/PREROUTING"
	RawOutput     Hook = "raw/OUTPUT"
	NatPrerouting Hook = "nat/PREROUTING"
	FilterInput   Hook = "filter/INPUT"
	FilterOutput  Hook = "filter/OUTPUT"
)

// Hooks returns every hook in the order in which rules are added. A packet must find an answer at each moment: the
// fallback is in place before the rule that may leave a packet to it.
func Hooks() []Hook {
	return []Hook{NatPrerouting, FilterInput, FilterOutput, RawOutput, RawPrerouting}
}

// Proto is a transport protocol.
type Proto string

// The transports of DNS that rules match.
const (
	UDP Proto = "udp"
	TCP Proto = "tcp"
)

// Verdict says what happens to a packet that matches.
type Verdict string

// The verdicts.
const (
	NoTrack Verdict = "notrack" // keep the packet out of connection tracking
	Accept  Verdict = "accept"
	DNAT    Verdict = "dnat" // send the flow to one of Targets, evenly
)

// SocketMatch says how a rule matches an open local socket.
type SocketMatch int

// The socket matches.
const (
	// SocketIgnore: the rule does not ask.
	SocketIgnore SocketMatch = iota
	// SocketSpecific matches a socket bound to exactly that address (or a connection of one). A socket bound to the
	// unspecified address belongs to another program and does not match.
	SocketSpecific
	// SocketAny: a socket bound to the unspecified address counts too.
	SocketAny
)

// Rule is one packet rule, independent of the packet filter. A backend may need several of its own rules for it.
type Rule struct {
	Hook    Hook
	Proto   Proto
	Src     netip.Addr // the zero Addr matches any
	SrcPort uint16     // 0 matches any
	Dst     netip.Addr
	DstPort uint16
	Socket  SocketMatch
	// Opening limits the rule to packets that open a TCP connection (SYN without ACK).
	Opening bool
	Verdict Verdict
	Targets []netip.AddrPort // of DNAT, all of the family of Dst
}

// Is6 reports whether the rule is for IPv6. Each rule has at least one address.
func (r Rule) Is6() bool {
	if r.Dst.IsValid() {
		return r.Dst.Is6()
	}
	return r.Src.Is6()
}

// AddressesOf returns the addresses that the rules are about.
func AddressesOf(rules []Rule) []netip.Addr {
	var addrs []netip.Addr
	for _, r := range rules {
		for _, a := range []netip.Addr{r.Src, r.Dst} {
			if a.IsValid() && !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
	}
	return addrs
}

// Comments of the rules, visible in iptables and nft.
const (
	CommentNoTrack = "localcache: DNS of this node without conntrack"
	CommentAccept  = "localcache: let DNS of this node pass"
	CommentDNAT    = "localcache: fallback while no socket is open"
	CommentJump    = "localcache: rules of this node's DNS cache"
)

// The comments by which node-cache's rules are known. They
// stand in the kernel's own chains.
const (
	NodeCacheNoTrack = "NodeLocal DNS Cache: skip conntrack"
	NodeCacheAccept  = "NodeLocal DNS Cache: allow DNS traffic"
)

// The names of the backends.
const (
	IPTablesNFT    = "iptables-nft"
	IPTablesLegacy = "iptables-legacy"
	NFTables       = "nftables"
)

// Comment returns the comment that rules of the verdict carry.
func (v Verdict) Comment() string {
	switch v {
	case NoTrack:
		return CommentNoTrack
	case DNAT:
		return CommentDNAT
	default:
		return CommentAccept
	}
}

// Split returns the table and the chain of a hook, as iptables names them.
func (h Hook) Split() (table, chain string) {
	table, chain, _ = strings.Cut(string(h), "/")
	return table, chain
}

// Number returns the protocol number of the IP header.
func (p Proto) Number() byte {
	if p == TCP {
		return 6
	}
	return 17
}

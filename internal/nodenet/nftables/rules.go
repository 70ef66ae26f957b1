package nftables

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// nftChain describes the base chain of a hook.
type nftChain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
}

// priorityFallback puts the fallback's translation after connection tracking (-200) and before the
// one of kube-proxy and of iptables (-100, dstnat).
const priorityFallback = -110

// nftChains returns the base chains by hook. A chain is in the table only if it has rules. An accept in a filter
// chain only ends the packet's way through that chain: a drop in another table still drops it.
func nftChains() map[rule.Hook]nftChain {
	raw, filter := *nftables.ChainPriorityRaw, *nftables.ChainPriorityFilter
	return map[rule.Hook]nftChain{
		rule.RawPrerouting: {"raw_prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, raw},
		rule.RawOutput:     {"raw_output", nftables.ChainTypeFilter, nftables.ChainHookOutput, raw},
		// "dnat" is a word of nft's language and could not be read back as a name.
		rule.NatPrerouting: {"nat_prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, priorityFallback},
		rule.FilterInput:   {"filter_input", nftables.ChainTypeFilter, nftables.ChainHookInput, filter},
		rule.FilterOutput:  {"filter_output", nftables.ChainTypeFilter, nftables.ChainHookOutput, filter},
	}
}

// Where the ports stand in a UDP and a TCP header, and the flags in a TCP header (RFC 768, RFC 9293).
const (
	offsetSrcPort  = 0
	offsetDstPort  = 2
	offsetTCPFlags = 13
	flagSYN        = 0x02
	flagACK        = 0x10
)

// Rule is a rule of an nftables chain.
type Rule struct {
	Exprs   []expr.Any
	comment string
}

func (r Rule) userData() []byte {
	return userdata.AppendString(nil, userdata.TypeComment, r.comment)
}

// rulesFor returns the nftables rules for r: several if the socket match needs them, and for DNAT one for each
// target.
func rulesFor(r rule.Rule) []Rule {
	match := nftMatch(r)
	with := func(comment string, extra ...expr.Any) Rule {
		return Rule{append(append([]expr.Any(nil), match...), extra...), comment}
	}
	switch r.Verdict {
	case rule.NoTrack:
		return nftNoTrack(r, with)
	case rule.DNAT:
		// As with iptables: the first rule takes each nth flow of n targets, the next each (n-1)th of the rest, the
		// last the remainder.
		rules := make([]Rule, 0, len(r.Targets))
		for i, t := range r.Targets {
			var exprs []expr.Any
			if rest := len(r.Targets) - i; rest > 1 {
				exprs = append(exprs,
					&expr.Numgen{Register: unix.NFT_REG_1, Modulus: uint32(rest), Type: unix.NFT_NG_INCREMENTAL},
					equal(binaryutil.NativeEndian.PutUint32(0)))
			}
			family := uint32(unix.NFPROTO_IPV4)
			if t.Addr().Is6() {
				family = unix.NFPROTO_IPV6
			}
			exprs = append(exprs,
				&expr.Immediate{Register: unix.NFT_REG_1, Data: t.Addr().AsSlice()},
				&expr.Immediate{Register: unix.NFT_REG_2, Data: bigEndian16(t.Port())},
				&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: unix.NFT_REG_1, RegProtoMin: unix.NFT_REG_2})
			rules = append(rules, with(rule.CommentDNAT, exprs...))
		}
		return rules
	default:
		return []Rule{with(rule.CommentAccept, &expr.Verdict{Kind: expr.VerdictAccept})}
	}
}

// nftNoTrack matches a socket in a form that the kernel can evaluate. nft's socket expression
// (net/netfilter/nft_socket.c) has no value for "wildcard" if the socket is not a full one: the request socket
// between a SYN and its ACK, or one in TIME_WAIT. A rule with "wildcard 0" then does not match, and the packet is
// lost to the listener. "transparent" has a value for each socket, so that "transparent 0" only means that there is
// one. For a socket bound to exactly the address, packets of wildcard sockets are therefore returned first, and the
// rest is taken.
func nftNoTrack(r rule.Rule, with func(string, ...expr.Any) Rule) []Rule {
	socket := func(key expr.SocketKey, value byte, then expr.Any) Rule {
		return with(rule.CommentNoTrack, &expr.Socket{Key: key, Register: unix.NFT_REG_1}, equal([]byte{value}), then)
	}
	switch r.Socket {
	case rule.SocketSpecific:
		return []Rule{
			socket(expr.SocketKeyWildcard, 1, &expr.Verdict{Kind: expr.VerdictReturn}),
			socket(expr.SocketKeyTransparent, 0, &expr.Notrack{}),
		}
	case rule.SocketAny:
		return []Rule{socket(expr.SocketKeyTransparent, 0, &expr.Notrack{})}
	default:
		return []Rule{with(rule.CommentNoTrack, &expr.Notrack{})}
	}
}

// nftMatch returns the expressions for everything but the socket and the verdict, in the order in which nft itself
// writes them, so that it lists them in its short form.
func nftMatch(r rule.Rule) []expr.Any {
	family, srcAt, dstAt, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(16), uint32(4)
	if r.Is6() {
		family, srcAt, dstAt, length = unix.NFPROTO_IPV6, 8, 24, 16
	}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: unix.NFT_REG_1},
		equal([]byte{family}),
	}
	load := func(base expr.PayloadBase, offset, length uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: unix.NFT_REG_1, Base: base, Offset: offset, Len: length}
	}
	address := func(offset uint32, a netip.Addr) {
		if a.IsValid() {
			exprs = append(exprs, load(expr.PayloadBaseNetworkHeader, offset, length), equal(a.AsSlice()))
		}
	}
	address(srcAt, r.Src)
	address(dstAt, r.Dst)
	protocol := byte(unix.IPPROTO_UDP)
	if r.Proto == rule.TCP {
		protocol = unix.IPPROTO_TCP
	}
	exprs = append(exprs, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: unix.NFT_REG_1}, equal([]byte{protocol}))
	port := func(offset uint32, p uint16) {
		if p != 0 {
			exprs = append(exprs, load(expr.PayloadBaseTransportHeader, offset, 2), equal(bigEndian16(p)))
		}
	}
	port(offsetSrcPort, r.SrcPort)
	port(offsetDstPort, r.DstPort)
	if r.Opening {
		exprs = append(exprs, load(expr.PayloadBaseTransportHeader, offsetTCPFlags, 1),
			&expr.Bitwise{SourceRegister: unix.NFT_REG_1, DestRegister: unix.NFT_REG_1, Len: 1,
				Mask: []byte{flagSYN | flagACK}, Xor: []byte{0}},
			equal([]byte{flagSYN}))
	}
	return exprs
}

// equal compares register 1, which is the only one that matches use.
func equal(data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: data}
}

func bigEndian16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }

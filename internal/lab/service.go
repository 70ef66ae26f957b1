package lab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The node's Service translation corresponds to kube-proxy's nftables mode: tables "kube-proxy" for ip and ip6; the
// cluster IP is matched in nat PREROUTING (pods) and OUTPUT (the node itself) and translated to one of the endpoints;
// masquerading applies to clients that are not pods or reach themselves. Endpoints take turns instead of being drawn
// at random, so that "spread evenly" holds for small numbers too.

// translateService sets the rules in the calling thread's namespace.
func translateService(v4, v6 netip.Addr, replicas []*Server) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	var ends4, ends6 []netip.Addr
	for _, s := range replicas {
		ends4, ends6 = append(ends4, s.Host.IPv4), append(ends6, s.Host.IPv6)
	}
	(&proxy{c: c, family: nftables.TableFamilyIPv4, service: v4, endpoints: ends4, pods: plan.cluster}).add()
	if v6.IsValid() {
		(&proxy{c: c, family: nftables.TableFamilyIPv6, service: v6, endpoints: ends6, pods: plan.cluster6}).add()
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("translate the Service address %s by nftables: %w", v4, err)
	}
	return nil
}

// proxy is one family's Service translation.
type proxy struct {
	c         *nftables.Conn
	family    nftables.TableFamily
	service   netip.Addr
	endpoints []netip.Addr
	pods      netip.Prefix
}

func (p *proxy) add() {
	table := p.c.AddTable(&nftables.Table{Name: "kube-proxy", Family: p.family})
	base := func(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return p.c.AddChain(&nftables.Chain{Name: name, Table: table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: priority})
	}
	prerouting := base("nat-prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := base("nat-output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := base("nat-postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)

	for _, proto := range []byte{unix.IPPROTO_UDP, unix.IPPROTO_TCP} {
		name := map[byte]string{unix.IPPROTO_UDP: "service-kube-system/kube-dns/udp/dns", unix.IPPROTO_TCP: "service-kube-system/kube-dns/tcp/dns-tcp"}[proto]
		service := p.c.AddChain(&nftables.Chain{Name: name, Table: table})
		for _, from := range []*nftables.Chain{prerouting, output} {
			p.c.AddRule(&nftables.Rule{Table: table, Chain: from, Exprs: concat(
				p.destination(p.service), port53(proto),
				[]expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictGoto, Chain: service.Name}})})
		}
		for i, end := range p.endpoints {
			p.c.AddRule(&nftables.Rule{Table: table, Chain: service, Exprs: concat(takeTurns(len(p.endpoints)-i), p.translate(end))})
		}
	}
	for _, end := range p.endpoints {
		// A replica that reaches itself through the Service must not see its own address as the client.
		p.c.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: concat(
			p.source(end), p.destination(end), []expr.Any{&expr.Masq{}})})
		p.c.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: concat(
			p.notFromPods(), p.destination(end), translated(), []expr.Any{&expr.Masq{}})})
	}
}

func concat(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// addressAt loads an address of the network header: RFC 791 section 3.1, RFC 8200 section 3.
func (p *proxy) addressAt(source bool) *expr.Payload {
	load := &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4}
	if p.family == nftables.TableFamilyIPv6 {
		load.Offset, load.Len = 24, 16
	}
	if source {
		load.Offset -= load.Len
	}
	return load
}

func (p *proxy) destination(a netip.Addr) []expr.Any {
	return []expr.Any{p.addressAt(false), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func (p *proxy) source(a netip.Addr) []expr.Any {
	return []expr.Any{p.addressAt(true), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()}}
}

func (p *proxy) notFromPods() []expr.Any {
	load := p.addressAt(true)
	mask := hostMask(p.pods)
	return []expr.Any{
		load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: load.Len, Mask: mask, Xor: make([]byte, load.Len)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: p.pods.Masked().Addr().AsSlice()},
	}
}

// hostMask is the netmask of a prefix in bytes.
func hostMask(p netip.Prefix) []byte {
	mask := make([]byte, p.Addr().BitLen()/8)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return mask
}

// port53 matches a transport protocol and DNS' destination port.
func port53(proto byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(53)},
	}
}

// translated matches connections whose destination was translated (nf_conntrack_common.h, IPS_DST_NAT).
func translated() []expr.Any {
	const dstNAT = 1 << 5
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(dstNAT), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// takeTurns matches one in n connections. The rule for the last endpoint needs no match.
func takeTurns(n int) []expr.Any {
	if n <= 1 {
		return nil
	}
	return []expr.Any{
		&expr.Numgen{Register: 1, Modulus: uint32(n), Type: unix.NFT_NG_INCREMENTAL},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: make([]byte, 4)},
	}
}

func (p *proxy) translate(end netip.Addr) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if p.family == nftables.TableFamilyIPv6 {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: end.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(53)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2},
	}
}

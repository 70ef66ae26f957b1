package nodenet

import (
	"net/netip"
	"slices"
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

// Hooks lists every hook in the order in which rules are put into them. The order is that of a packet that
// has to find its answer at each moment: the fallback stands before the rule that may leave a packet
// to it.
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

// Verdict is what a rule does with a packet that it matches.
type Verdict string

// The verdicts.
const (
	NoTrack Verdict = "notrack" // keep the packet out of connection tracking
	Accept  Verdict = "accept"
	DNAT    Verdict = "dnat" // send the flow to one of Targets, evenly
)

// SocketMatch says how a rule asks whether a local socket is open for the packet.
type SocketMatch int

// The socket matches.
const (
	// SocketIgnore: the rule does not ask.
	SocketIgnore SocketMatch = iota
	// SocketSpecific: a socket bound to the very address (or a connection of one). A socket bound to
	// the unspecified address is somebody else's and does not count.
	SocketSpecific
	// SocketAny: a socket bound to the unspecified address counts too.
	SocketAny
)

// Rule is one packet rule in no front end's language. A front end may need several of its own rules
// for one of these.
type Rule struct {
	Hook    Hook
	Proto   Proto
	Src     netip.Addr // the zero Addr matches any
	SrcPort uint16     // 0 matches any
	Dst     netip.Addr
	DstPort uint16
	Socket  SocketMatch
	// Opening limits the rule to the packet that opens a TCP connection (SYN without ACK).
	Opening bool
	Verdict Verdict
	Targets []netip.AddrPort // of DNAT, all of the family of Dst
}

// Is6 tells whether the rule is one of IPv6. Each rule names at least one address.
func (r Rule) Is6() bool {
	if r.Dst.IsValid() {
		return r.Dst.Is6()
	}
	return r.Src.Is6()
}

// PlanOptions are the conditions of the moment under which a Spec is turned into rules.
type PlanOptions struct {
	// NoSocketMatch: the kernel or the tool lacks the socket match. NOTRACK is then unconditional and
	// there is no fallback, because the packets would never reach it.
	NoSocketMatch bool
	// Draining: the process is about to close its sockets. New queries and connections are left to the
	// fallback while what has arrived is answered. No packet is kept out of connection tracking on its
	// way in: a socket match cannot tell an open connection from the listener beside it, and would give
	// the listener the second packet of a connection that the fallback has accepted. TCP connections
	// that are open go on, because DNAT takes only the packet that opens one.
	Draining bool
}

// Plan derives the rules of s: node-cache's twelve for each address, with the two of PREROUTING
// conditional on an open socket, and those of the fallback. The order within a hook is the order of
// evaluation. No two rules of one hook overlap, so that no front end's insertion order matters but
// for the spread of DNAT, which is the front end's own.
func (s Spec) Plan(o PlanOptions) []Rule {
	if s.Notrack == ChoiceOff {
		return nil
	}
	socket := SocketSpecific
	if s.Wildcard {
		socket = SocketAny
	}
	if o.NoSocketMatch {
		socket = SocketIgnore
	}
	var rules []Rule
	for _, a := range s.Addresses {
		for _, p := range []Proto{UDP, TCP} {
			targets := s.fallbackFor(a, p)
			if o.NoSocketMatch {
				targets = nil
			}
			if draining := o.Draining && len(targets) > 0; !draining {
				rules = append(rules, Rule{Hook: RawPrerouting, Proto: p, Dst: a, DstPort: s.Port,
					Socket: socket, Verdict: NoTrack})
			}
			rules = append(rules,
				Rule{Hook: RawOutput, Proto: p, Src: a, SrcPort: s.Port, Verdict: NoTrack},
				Rule{Hook: RawOutput, Proto: p, Dst: a, DstPort: s.Port, Verdict: NoTrack},
				Rule{Hook: FilterInput, Proto: p, Dst: a, DstPort: s.Port, Verdict: Accept},
				Rule{Hook: FilterOutput, Proto: p, Src: a, SrcPort: s.Port, Verdict: Accept},
			)
			if len(targets) > 0 {
				rules = append(rules, fallbackRule(a, s.Port, p, targets))
			}
		}
		for _, port := range s.healthPorts(a) {
			rules = append(rules,
				Rule{Hook: RawOutput, Proto: TCP, Dst: a, DstPort: port, Verdict: NoTrack},
				Rule{Hook: RawOutput, Proto: TCP, Src: a, SrcPort: port, Verdict: NoTrack},
			)
		}
	}
	order := Hooks()
	slices.SortStableFunc(rules, func(x, y Rule) int {
		return slices.Index(order, x.Hook) - slices.Index(order, y.Hook)
	})
	return rules
}

// fallbackRule sends queries to a that find no socket to targets.
func fallbackRule(a netip.Addr, port uint16, p Proto, targets []netip.AddrPort) Rule {
	return Rule{Hook: NatPrerouting, Proto: p, Dst: a, DstPort: port, Opening: p == TCP, Verdict: DNAT, Targets: targets}
}

// fallbackFor returns the fallback servers of a's family for one transport.
func (s Spec) fallbackFor(a netip.Addr, p Proto) []netip.AddrPort {
	servers := s.Fallback
	if p == TCP && len(s.FallbackTCP) > 0 {
		servers = s.FallbackTCP
	}
	var t []netip.AddrPort
	for _, f := range servers {
		if f.Addr().Is4() == a.Is4() {
			t = append(t, f)
		}
	}
	return t
}

// healthPorts returns the ports on a at which the health endpoint answers, each once.
func (s Spec) healthPorts(a netip.Addr) []uint16 {
	var ports []uint16
	for _, h := range s.Health {
		if (h.Addr() == a || h.Addr().IsUnspecified()) && h.Port() != s.Port && !slices.Contains(ports, h.Port()) {
			ports = append(ports, h.Port())
		}
	}
	return ports
}

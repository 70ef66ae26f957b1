package nodenet

import (
	"net/netip"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// PlanOptions are the conditions of the moment under which a Spec is turned into rules.
type PlanOptions struct {
	// NoSocketMatch: the kernel or the tool lacks the socket match. NOTRACK is then unconditional and
	// there is no fallback, because the packets would never reach it.
	NoSocketMatch bool
	// Draining is true while the process prepares to close its sockets: the fallback gets new queries and
	// connections, and the process answers what has arrived. No packet is kept out of connection tracking on its way
	// in: a socket match cannot tell an open connection from the listener beside it, and would give the listener the
	// second packet of a connection that the fallback has accepted. Open TCP connections continue, because DNAT
	// applies only to the packet that opens one.
	Draining bool
}

// Plan derives the rules of s: node-cache's twelve for each address, with the two of PREROUTING
// conditional on an open socket, and those of the fallback. The order within a hook is the order of
// evaluation. No two rules of one hook overlap, so that no backend's insertion order matters but
// for the spread of DNAT, which is the backend's own.
func (s Spec) Plan(o PlanOptions) []rule.Rule {
	if s.Notrack == ChoiceOff {
		return nil
	}
	socket := rule.SocketSpecific
	if s.Wildcard {
		socket = rule.SocketAny
	}
	if o.NoSocketMatch {
		socket = rule.SocketIgnore
	}
	var rules []rule.Rule
	for _, a := range s.Addresses {
		for _, p := range []rule.Proto{rule.UDP, rule.TCP} {
			targets := s.fallbackFor(a, p)
			if o.NoSocketMatch {
				targets = nil
			}
			if draining := o.Draining && len(targets) > 0; !draining {
				rules = append(rules, rule.Rule{Hook: rule.RawPrerouting, Proto: p, Dst: a, DstPort: s.Port,
					Socket: socket, Verdict: rule.NoTrack})
			}
			rules = append(rules,
				rule.Rule{Hook: rule.RawOutput, Proto: p, Src: a, SrcPort: s.Port, Verdict: rule.NoTrack},
				rule.Rule{Hook: rule.RawOutput, Proto: p, Dst: a, DstPort: s.Port, Verdict: rule.NoTrack},
				rule.Rule{Hook: rule.FilterInput, Proto: p, Dst: a, DstPort: s.Port, Verdict: rule.Accept},
				rule.Rule{Hook: rule.FilterOutput, Proto: p, Src: a, SrcPort: s.Port, Verdict: rule.Accept},
			)
			if len(targets) > 0 {
				rules = append(rules, fallbackRule(a, s.Port, p, targets))
			}
		}
		for _, port := range s.healthPorts(a) {
			rules = append(rules,
				rule.Rule{Hook: rule.RawOutput, Proto: rule.TCP, Dst: a, DstPort: port, Verdict: rule.NoTrack},
				rule.Rule{Hook: rule.RawOutput, Proto: rule.TCP, Src: a, SrcPort: port, Verdict: rule.NoTrack},
			)
		}
	}
	order := rule.Hooks()
	slices.SortStableFunc(rules, func(x, y rule.Rule) int {
		return slices.Index(order, x.Hook) - slices.Index(order, y.Hook)
	})
	return rules
}

// fallbackRule sends queries to a that find no socket to targets.
func fallbackRule(a netip.Addr, port uint16, p rule.Proto, targets []netip.AddrPort) rule.Rule {
	return rule.Rule{Hook: rule.NatPrerouting, Proto: p, Dst: a, DstPort: port, Opening: p == rule.TCP, Verdict: rule.DNAT, Targets: targets}
}

// fallbackFor returns the fallback servers of a's family for one transport.
func (s Spec) fallbackFor(a netip.Addr, p rule.Proto) []netip.AddrPort {
	servers := s.Fallback
	if p == rule.TCP && len(s.FallbackTCP) > 0 {
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

package iptables

import (
	"fmt"
	"net/netip"
	"strconv"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// generations is how many chains an owner may have at a hook: one in use and one being filled.
const generations = 2

// chainName returns the name of the owner's own chain for h. It depends on the owner and nothing else, so
// that a process finds what an earlier one left. LC-OUT-, a tag of 15 characters and the generation make
// 24 characters at most; the limit of iptables is 28 (XT_EXTENSION_MAXNAMELEN less the terminator).
func chainName(h rule.Hook, tag string, generation int) string {
	_, chain := h.Split()
	short := map[string]string{"PREROUTING": "PRE", "INPUT": "IN", "OUTPUT": "OUT"}[chain]
	return fmt.Sprintf("LC-%s-%s-%d", short, tag, generation)
}

// trialChain returns the name of the chain in which the socket match is tried out.
func trialChain(tag string) string { return "LC-TRY-" + tag }

// jumpArgs returns the arguments of the rule in the kernel's chain that leads to ours.
func jumpArgs(chain string) []string {
	return []string{"-m", "comment", "--comment", rule.CommentJump, "-j", chain}
}

// rulesAt returns the arguments of the rules at h.
func rulesAt(h rule.Hook, rules []rule.Rule) [][]string {
	var args [][]string
	for _, r := range rules {
		if r.Hook == h {
			args = append(args, ruleArgs(r)...)
		}
	}
	return args
}

// ruleArgs returns the arguments of the rules that r becomes, in the spelling of `iptables -S`: of one, or
// for DNAT of one for each target.
func ruleArgs(r rule.Rule) [][]string {
	var match []string
	address := func(option string, a netip.Addr) {
		if a.IsValid() {
			match = append(match, option, netip.PrefixFrom(a, a.BitLen()).String())
		}
	}
	port := func(option string, p uint16) {
		if p != 0 {
			match = append(match, option, strconv.Itoa(int(p)))
		}
	}
	address("-s", r.Src)
	address("-d", r.Dst)
	match = append(match, "-p", string(r.Proto), "-m", string(r.Proto))
	port("--sport", r.SrcPort)
	port("--dport", r.DstPort)
	if r.Opening {
		match = append(match, "--tcp-flags", "SYN,ACK", "SYN")
	}
	switch r.Socket {
	case rule.SocketSpecific:
		match = append(match, "-m", "socket")
	case rule.SocketAny:
		match = append(match, "-m", "socket", "--nowildcard")
	}
	with := func(extra ...string) []string {
		return append(append([]string(nil), match...), extra...)
	}
	comment := []string{"-m", "comment", "--comment", r.Verdict.Comment()}
	switch r.Verdict {
	case rule.NoTrack:
		return [][]string{with(append(comment, "-j", "CT", "--notrack")...)}
	case rule.DNAT:
		// The first rule takes each nth flow of n targets, the next each (n-1)th of the rest, and
		// the last takes the rest: an even share each.
		rules := make([][]string, 0, len(r.Targets))
		for i, t := range r.Targets {
			args := append([]string(nil), comment...)
			if rest := len(r.Targets) - i; rest > 1 {
				args = append(args, "-m", "statistic", "--mode", "nth", "--every", strconv.Itoa(rest), "--packet", "0")
			}
			rules = append(rules, with(append(args, "-j", "DNAT", "--to-destination", t.String())...))
		}
		return rules
	default:
		return [][]string{with(append(comment, "-j", "ACCEPT")...)}
	}
}

package iptables

import (
	"context"
	"fmt"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// hookState is what the kernel has at a hook.
type hookState struct {
	builtin []ruleLine            // the rules of the kernel's chain
	own     map[string][]ruleLine // the rules of the owner's chains, by name; a chain may have none
}

// jumps returns the indices of the rules in the kernel's chain that lead to one of the chains named.
func (s hookState) jumps(names []string) []int {
	var at []int
	for i, l := range s.builtin {
		if slices.Contains(names, l.target()) {
			at = append(at, i)
		}
	}
	return at
}

// read returns the state of all hooks of one family. needed says that rules of this family are wanted.
//
// In nat, where kube-proxy may hold tens of thousands of rules, it reads only the kernel's chain and
// those of ours that a rule leads to; wholeNAT makes it read all of nat. In raw and filter, one reading of
// the table is cheaper than four of a chain.
//
// A kernel without IPv6 fails to list its rules. That is no error where none are needed; the states are
// then nil.
func (b *Backend) read(ctx context.Context, p *program, needed, wholeNAT bool) (map[rule.Hook]hookState, error) {
	states := make(map[rule.Hook]hookState)
	tables := make(map[string][]ruleLine)
	for _, h := range rule.Hooks() {
		table, chain := h.Split()
		names := b.chains(h)
		lines, done := tables[table]
		if !done && p.loaded(table) {
			var err error
			if table == "nat" && !wholeNAT {
				lines, err = p.listLinked(ctx, table, chain, names)
			} else {
				lines, err = p.listTable(ctx, table)
			}
			if err != nil && p.v6 && !needed && !unanswered(err) && ctx.Err() == nil {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			tables[table] = lines
		}
		s := hookState{own: make(map[string][]ruleLine)}
		for _, l := range lines {
			switch {
			case l.Command == "-A" && l.Chain == chain:
				s.builtin = append(s.builtin, l)
			case l.Command == "-N" && slices.Contains(names, l.Chain):
				s.own[l.Chain] = nil // -N comes before any -A
			case l.Command == "-A" && slices.Contains(names, l.Chain):
				s.own[l.Chain] = append(s.own[l.Chain], l)
			}
		}
		states[h] = s
	}
	return states, nil
}

// listLinked returns the lines of chain, and of those of names that a rule of it leads to.
func (p *program) listLinked(ctx context.Context, table, chain string, names []string) ([]ruleLine, error) {
	lines, err := p.list(ctx, table, chain)
	for _, name := range names {
		if err != nil || !slices.ContainsFunc(lines, func(l ruleLine) bool { return l.target() == name }) {
			continue
		}
		var more []ruleLine
		more, err = p.list(ctx, table, name)
		lines = append(lines, more...)
	}
	return lines, err
}

// differences returns a line for each difference between the state of hook h and the rules wanted.
func (b *Backend) differences(h rule.Hook, s hookState, want [][]string) []string {
	var diffs []string
	differ := func(format string, args ...any) {
		diffs = append(diffs, string(h)+": "+fmt.Sprintf(format, args...))
	}
	names := b.chains(h)
	jumps := s.jumps(names)
	current := ""
	switch {
	case len(want) == 0:
		for _, i := range jumps {
			differ("superfluous rule %s", s.builtin[i])
		}
	case len(jumps) == 0:
		differ("no rule jumps to localcache's chain")
	default:
		first := s.builtin[jumps[0]]
		current = first.target()
		if canonicalRule(first.Args) != canonicalRule(jumpArgs(current)) {
			differ("%s does not send every packet to localcache's chain", first)
		}
		for _, i := range jumps[1:] {
			differ("superfluous rule %s", s.builtin[i])
		}
		if h == rule.RawPrerouting || h == rule.NatPrerouting {
			for _, l := range s.builtin[:jumps[0]] {
				if takesPackets(l) {
					differ("a rule of another program comes before localcache's: %s", l)
				}
			}
		}
		diffs = append(diffs, compareRules(h, s.own[current], want)...)
	}
	for _, name := range names {
		if _, exists := s.own[name]; exists && name != current {
			differ("superfluous chain %s", name)
		}
	}
	return diffs
}

// compareRules returns a line for each difference between the rules of our chain and those wanted.
func compareRules(h rule.Hook, have []ruleLine, want [][]string) []string {
	var diffs []string
	rest := make([]string, len(have)) // canonical; "" once matched
	for i, l := range have {
		rest[i] = canonicalRule(l.Args)
	}
	order := make([]int, 0, len(want))
	for _, args := range want {
		i := slices.Index(rest, canonicalRule(args))
		if i < 0 {
			diffs = append(diffs, fmt.Sprintf("%s: missing rule %s", h, ruleLine{Command: "-A", Chain: "…", Args: args}))
			continue
		}
		rest[i] = ""
		order = append(order, i)
	}
	for i, c := range rest {
		if c != "" {
			diffs = append(diffs, fmt.Sprintf("%s: superfluous rule %s", h, have[i]))
		}
	}
	if len(diffs) == 0 && !slices.IsSorted(order) {
		diffs = append(diffs, fmt.Sprintf("%s: the rules are out of order", h))
	}
	return diffs
}

// takesPackets reports whether a rule before ours can keep packets from it. A jump to another program's
// chain is left alone: such programs (kube-proxy, Calico's Felix) move their jump to the front again
// whenever they check, and the two programs would take turns for ever.
func takesPackets(l ruleLine) bool {
	switch l.target() {
	case "ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "CT", "NOTRACK", "TPROXY":
		return true
	}
	return false
}

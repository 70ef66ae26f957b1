package iptables

import (
	"context"
	"fmt"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// hookState is what stands at a hook: the rules of the kernel's chain, and the owner's chains.
type hookState struct {
	builtin []RuleLine
	own     map[string][]RuleLine // by name; a chain without rules is there with none
}

// jumps returns the indices of the rules in the kernel's chain that lead to chains of the owner.
func (s hookState) jumps(names []string) []int {
	var at []int
	for i, l := range s.builtin {
		if slices.Contains(names, l.Option("-j", "-g")) {
			at = append(at, i)
		}
	}
	return at
}

// read reads all hooks of one family. Of nat, where kube-proxy may hold tens of thousands of rules,
// it reads the chains that matter, which leaves out a chain of ours that no rule leads to; whole has it
// read all of nat. Of raw and filter one reading of the whole is cheaper than four of a chain.
//
// A kernel without IPv6 cannot tell its rules. That is no error where none are needed, and there are
// none of ours.
func (f *Backend) Read(ctx context.Context, x *Program, needed, whole bool) (map[rule.Hook]hookState, error) {
	states, err := f.readHooks(ctx, x, whole)
	if err != nil && x.V6 && !needed && !Unanswered(err) && ctx.Err() == nil {
		return nil, nil
	}
	return states, err
}

func (f *Backend) readHooks(ctx context.Context, x *Program, whole bool) (map[rule.Hook]hookState, error) {
	states := make(map[rule.Hook]hookState)
	tables := make(map[string][]RuleLine)
	for _, h := range rule.Hooks() {
		table, chain := h.Split()
		states[h] = hookState{own: make(map[string][]RuleLine)}
		if _, done := tables[table]; done || !x.Loaded(table) {
			continue
		}
		if table != "nat" || whole {
			lines, err := x.List(ctx, table, "")
			if err != nil {
				return nil, err
			}
			tables[table] = lines
			continue
		}
		lines, err := x.List(ctx, table, chain)
		if err != nil {
			return nil, err
		}
		for _, name := range f.names(h) {
			if !slices.ContainsFunc(lines, func(l RuleLine) bool { return l.Option("-j", "-g") == name }) {
				continue
			}
			more, err := x.List(ctx, table, name)
			if err != nil {
				return nil, err
			}
			lines = append(lines, more...)
		}
		tables[table] = lines
	}
	for h, s := range states {
		table, chain := h.Split()
		names := f.names(h)
		for _, l := range tables[table] {
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

// differences names what at hook h is not as want has it.
func (f *Backend) differences(h rule.Hook, s hookState, want [][]string) []string {
	var diffs []string
	differ := func(format string, args ...any) {
		diffs = append(diffs, string(h)+": "+fmt.Sprintf(format, args...))
	}
	jumps := s.jumps(f.names(h))
	current := ""
	switch {
	case len(want) == 0:
		for _, i := range jumps {
			differ("superfluous rule %s", s.builtin[i])
		}
	case len(jumps) == 0:
		differ("no rule leads to our chain")
	default:
		first := s.builtin[jumps[0]]
		current = first.Option("-j", "-g")
		if canonicalRule(first.Args) != canonicalRule(jumpArgs(current)) {
			differ("%s does not lead every packet to our chain", first)
		}
		for _, i := range jumps[1:] {
			differ("superfluous rule %s", s.builtin[i])
		}
		if h == rule.RawPrerouting || h == rule.NatPrerouting {
			for _, l := range s.builtin[:jumps[0]] {
				if takesPackets(l) {
					differ("a foreign rule stands before ours: %s", l)
				}
			}
		}
		diffs = append(diffs, compareRules(h, s.own[current], want)...)
	}
	for _, name := range f.names(h) {
		if _, there := s.own[name]; there && name != current {
			differ("superfluous chain %s", name)
		}
	}
	return diffs
}

// compareRules names the differences between the rules of our chain and those that it should hold.
func compareRules(h rule.Hook, have []RuleLine, want [][]string) []string {
	var diffs []string
	rest := make([]string, len(have)) // canonical; "" where matched
	for i, l := range have {
		rest[i] = canonicalRule(l.Args)
	}
	order := make([]int, 0, len(want))
	for _, args := range want {
		i := slices.Index(rest, canonicalRule(args))
		if i < 0 {
			diffs = append(diffs, fmt.Sprintf("%s: missing rule %s", h, RuleLine{Command: "-A", Chain: "…", Args: args}))
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

// takesPackets tells whether a rule before ours can keep a packet from it. A jump to another program's
// chain is let be: such programs (kube-proxy, Calico's Felix) put theirs first again whenever they look,
// and the two would take turns for ever.
func takesPackets(l RuleLine) bool {
	switch l.Option("-j", "-g") {
	case "ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "DNAT", "REDIRECT", "NETMAP", "CT", "NOTRACK", "TPROXY":
		return true
	}
	return false
}

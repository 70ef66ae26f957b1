package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// iptablesFirewall is the Firewall that drives the programs of one iptables variant.
//
// At each hook the owner has one chain and, at the head of the kernel's chain, one rule that leads to
// it. Several calls make up a change, so that a chain is never changed while packets meet it: a
// second chain is filled, the rule that leads to it is put before the rule that leads to the first, and
// then the first goes. All of its calls wait for the xtables lock, but not for ever.
//
// A Firewall is used by one goroutine at a time. Two processes of one owner that apply at the same time
// can leave rules doubled or missing; the next Check of either sees it.
type iptablesFirewall struct {
	tools iptablesTools
	tag   string
	v4    *xtablesProgram // nil where there is no such program
	v6    *xtablesProgram
	// leftovers are the programs of both variants, through which node-cache's rules are found.
	leftovers []*xtablesProgram
	lock      *lockWatch
}

// newIPTables opens the programs of the variant named name. found is what findIPTables returned, wait
// how long a call waits for the xtables lock, in whole seconds of at least one.
func newIPTables(ctx context.Context, name, owner string, found []iptablesTools, wait time.Duration) (*iptablesFirewall, error) {
	i := slices.IndexFunc(found, func(t iptablesTools) bool { return t.name == name })
	if i < 0 {
		return nil, fmt.Errorf("%s is not in PATH", name)
	}
	f := &iptablesFirewall{tools: found[i], tag: ownerTag(owner)}
	var err error
	if f.leftovers, err = openAll(ctx, found, wait); err != nil {
		return nil, err
	}
	for _, x := range f.leftovers {
		f.lock = x.lock // one for all
		switch x.path {
		case f.tools.path4:
			f.v4 = x
		case f.tools.path6:
			f.v6 = x
		}
	}
	return f, nil
}

// openAll opens every program of found.
func openAll(ctx context.Context, found []iptablesTools, wait time.Duration) ([]*xtablesProgram, error) {
	var programs []*xtablesProgram
	lock := new(lockWatch)
	for _, t := range found {
		for _, p := range []struct {
			path string
			v6   bool
		}{{t.path4, false}, {t.path6, true}} {
			if p.path == "" {
				continue
			}
			x, err := openXtables(ctx, p.path, t.legacy, p.v6, wait, lock)
			if err != nil {
				return nil, err
			}
			programs = append(programs, x)
		}
	}
	return programs, nil
}

func (f *iptablesFirewall) Name() string { return f.tools.name }

// names are those of the chains that the owner may have at h.
func (f *iptablesFirewall) names(h Hook) []string {
	names := make([]string, generations)
	for g := range generations {
		names[g] = chainName(h, f.tag, g)
	}
	return names
}

// family returns the program for rules of a family. Without one it is an error if there are rules.
func (f *iptablesFirewall) family(v6 bool, rules []Rule) (*xtablesProgram, []Rule, error) {
	x, program := f.v4, "iptables"
	if v6 {
		x, program = f.v6, "ip6tables"
	}
	var mine []Rule
	for _, r := range rules {
		if r.Is6() == v6 {
			mine = append(mine, r)
		}
	}
	if x == nil && len(mine) > 0 {
		return nil, nil, fmt.Errorf("%s: the rule for %s needs %s, which is not there: install it or choose notrack nftables",
			f.Name(), addressesOf(mine)[0], program)
	}
	return x, mine, nil
}

// at returns the rules of a hook in the language of iptables.
func at(h Hook, rules []Rule) [][]string {
	var args [][]string
	for _, r := range rules {
		if r.Hook == h {
			args = append(args, iptablesRules(r)...)
		}
	}
	return args
}

// Check implements Firewall.
func (f *iptablesFirewall) Check(ctx context.Context, rules []Rule) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, f.lock.explain(err)
	}
	var diffs []string
	for _, v6 := range []bool{false, true} {
		x, mine, err := f.family(v6, rules)
		if err != nil {
			return diffs, err
		}
		if x == nil {
			continue
		}
		states, err := f.read(ctx, x, len(mine) > 0, false)
		if err != nil {
			return diffs, err
		}
		for _, h := range Hooks() {
			for _, d := range append(f.differences(h, states[h], at(h, mine)), leftoverNames(h, states[h].builtin, addressesOf(mine))...) {
				diffs = append(diffs, x.family()+" "+d)
			}
		}
	}
	others, err := otherLeftovers(ctx, slices.DeleteFunc(slices.Clone(f.leftovers), func(x *xtablesProgram) bool {
		return x.legacy == f.tools.legacy
	}), addressesOf(rules))
	return append(diffs, others...), err
}

// Apply implements Firewall.
func (f *iptablesFirewall) Apply(ctx context.Context, rules []Rule) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		x, mine, err := f.family(v6, rules)
		if err == nil && x != nil {
			err = f.applyFamily(ctx, x, mine)
		}
		errs = append(errs, err)
		if unanswered(err) || ctx.Err() != nil {
			return errors.Join(errs...) // each further call would wait as long again
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // node-cache's rules are better than none
	}
	if len(rules) == 0 {
		return nil
	}
	_, err := removeLeftovers(ctx, f.leftovers, addressesOf(rules))
	return err
}

func (f *iptablesFirewall) applyFamily(ctx context.Context, x *xtablesProgram, rules []Rule) error {
	states, err := f.read(ctx, x, len(rules) > 0, false)
	if err != nil {
		return err
	}
	for _, h := range Hooks() {
		want := at(h, rules)
		if len(f.differences(h, states[h], want)) == 0 {
			continue
		}
		if err := f.replace(ctx, x, h, states[h], want); err != nil {
			return fmt.Errorf("%s %s: %w", x.family(), h, err)
		}
	}
	return nil
}

// replace brings a hook from state s to want.
func (f *iptablesFirewall) replace(ctx context.Context, x *xtablesProgram, h Hook, s hookState, want [][]string) error {
	table, chain := h.split()
	names := f.names(h)
	jumps := s.jumps(names)
	next := names[0]
	if len(jumps) > 0 && s.builtin[jumps[0]].option("-j", "-g") == next {
		next = names[1]
	}
	// Rules after the first that lead to the chain about to be filled are of no use and in its way.
	for _, i := range jumps {
		if l := s.builtin[i]; l.option("-j", "-g") == next {
			if err := x.deleteRule(ctx, table, chain, l.Args); err != nil {
				return err
			}
		}
	}
	if len(want) > 0 {
		if err := x.fillChain(ctx, table, next, want, chain, jumpArgs(next)); err != nil {
			return err
		}
	}
	for _, i := range jumps {
		if l := s.builtin[i]; l.option("-j", "-g") != next {
			if err := x.deleteRule(ctx, table, chain, l.Args); err != nil {
				return err
			}
		}
	}
	for _, name := range names {
		if _, there := s.own[name]; there && (name != next || len(want) == 0) {
			if _, err := x.dropChain(ctx, table, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove implements Firewall.
func (f *iptablesFirewall) Remove(ctx context.Context) (removed []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, f.lock.explain(err)
	}
	var errs []error
	for _, x := range []*xtablesProgram{f.v4, f.v6} {
		if x == nil {
			continue
		}
		names, err := f.removeFamily(ctx, x)
		removed = append(removed, names...)
		errs = append(errs, err)
		if unanswered(err) || ctx.Err() != nil {
			return removed, errors.Join(errs...)
		}
	}
	return removed, errors.Join(errs...)
}

// RemoveNodeCache implements Firewall. It looks into both variants of iptables.
func (f *iptablesFirewall) RemoveNodeCache(ctx context.Context) (removed []string, err error) {
	return removeLeftovers(ctx, f.leftovers, nil)
}

func (f *iptablesFirewall) removeFamily(ctx context.Context, x *xtablesProgram) (removed []string, err error) {
	states, err := f.read(ctx, x, false, true)
	if err != nil {
		return nil, err
	}
	hooks := Hooks()
	slices.Reverse(hooks) // the fallback goes last
	var errs []error
	for _, h := range hooks {
		table, chain := h.split()
		s := states[h]
		for _, i := range s.jumps(f.names(h)) {
			if err := x.deleteRule(ctx, table, chain, s.builtin[i].Args); err != nil {
				errs = append(errs, err)
			}
		}
		for name, rules := range s.own {
			there, err := x.dropChain(ctx, table, name)
			if err != nil {
				errs = append(errs, err)
			} else if there {
				removed = append(removed, fmt.Sprintf("%s %s chain %s with %d rules", f.Name(), x.family(), name, len(rules)))
			}
		}
		if ctx.Err() != nil || unanswered(errors.Join(errs...)) {
			break
		}
	}
	if states != nil && x.loaded("raw") {
		if there, err := x.dropChain(ctx, "raw", trialChain(f.tag)); err != nil {
			errs = append(errs, err)
		} else if there {
			removed = append(removed, fmt.Sprintf("%s %s chain %s", f.Name(), x.family(), trialChain(f.tag)))
		}
	}
	return removed, errors.Join(errs...)
}

// SocketMatch implements Firewall. It puts a rule into a chain that no packet meets and removes both, with
// the programs of the families that are wanted: a missing match for the other changes nothing.
func (f *iptablesFirewall) SocketMatch(ctx context.Context, addrs []netip.Addr) error {
	if f.v4 == nil && f.v6 == nil {
		return fmt.Errorf("%s: no program", f.Name())
	}
	for _, x := range []*xtablesProgram{f.v4, f.v6} {
		if x == nil || !x.wanted(addrs) {
			continue
		}
		chain := trialChain(f.tag)
		if err := x.clearChain(ctx, "raw", chain); err != nil {
			return err
		}
		err := x.appendRule(ctx, "raw", chain, []string{"-p", "tcp", "-m", "socket", "--nowildcard", "-j", "CT", "--notrack"})
		// Cleaned up even where the caller has run out of time.
		lateCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
		_, cleanup := x.dropChain(lateCtx, "raw", chain)
		cancel()
		if err != nil {
			return errors.Join(fmt.Errorf("%s: no socket match for %s: %w", f.Name(), x.family(), err), cleanup)
		}
		if cleanup != nil {
			return cleanup
		}
	}
	return nil
}

// Package iptables is the Backend for iptables-nft and iptables-legacy. It fills a chain of its own for each hook and moves
// the jump to it, so that a packet meets either the old rules or the new, and it finds and removes the rules of
// node-cache.
package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// Backend is the Firewall that drives the programs of one iptables variant.
//
// At each hook the owner has one chain and, at the head of the kernel's chain, one rule that leads to
// it. Several calls make up a change, so that a chain is never changed while packets meet it: a
// second chain is filled, the rule that leads to it is put before the rule that leads to the first, and
// then the first goes. All of its calls wait for the xtables lock, but not for ever.
//
// A Firewall is used by one goroutine at a time. Two processes of one owner that apply at the same time
// can leave rules doubled or missing; the next Check of either sees it.
type Backend struct {
	tools Tools
	tag   string
	V4    *Program // nil where there is no such program
	V6    *Program
	// Leftovers are the programs of both variants, through which node-cache's rules are found.
	Leftovers []*Program
	lock      *LockWatch
}

// New opens the programs of the variant named name. found is what findIPTables returned, wait
// how long a call waits for the xtables lock, in whole seconds of at least one.
func New(ctx context.Context, name, owner string, found []Tools, wait time.Duration) (*Backend, error) {
	i := slices.IndexFunc(found, func(t Tools) bool { return t.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%s is not in PATH", name)
	}
	f := &Backend{tools: found[i], tag: rule.OwnerTag(owner)}
	var err error
	if f.Leftovers, err = OpenAll(ctx, found, wait); err != nil {
		return nil, err
	}
	for _, x := range f.Leftovers {
		f.lock = x.Lock // one for all
		switch x.Path {
		case f.tools.path4:
			f.V4 = x
		case f.tools.Path6:
			f.V6 = x
		}
	}
	return f, nil
}

// OpenAll opens every program of found.
func OpenAll(ctx context.Context, found []Tools, wait time.Duration) ([]*Program, error) {
	var programs []*Program
	lock := new(LockWatch)
	for _, t := range found {
		for _, p := range []struct {
			path string
			v6   bool
		}{{t.path4, false}, {t.Path6, true}} {
			if p.path == "" {
				continue
			}
			x, err := OpenXtables(ctx, p.path, t.legacy, p.v6, wait, lock)
			if err != nil {
				return nil, err
			}
			programs = append(programs, x)
		}
	}
	return programs, nil
}

func (f *Backend) Name() string { return f.tools.Name }

// names are those of the chains that the owner may have at h.
func (f *Backend) names(h rule.Hook) []string {
	names := make([]string, Generations)
	for g := range Generations {
		names[g] = ChainName(h, f.tag, g)
	}
	return names
}

// family returns the program for rules of a family. Without one it is an error if there are rules.
func (f *Backend) family(v6 bool, rules []rule.Rule) (*Program, []rule.Rule, error) {
	x, program := f.V4, "iptables"
	if v6 {
		x, program = f.V6, "ip6tables"
	}
	var mine []rule.Rule
	for _, r := range rules {
		if r.Is6() == v6 {
			mine = append(mine, r)
		}
	}
	if x == nil && len(mine) > 0 {
		return nil, nil, fmt.Errorf("%s: the rule for %s needs %s, which is not there: install it or choose notrack nftables",
			f.Name(), rule.AddressesOf(mine)[0], program)
	}
	return x, mine, nil
}

// at returns the rules of a hook in the language of iptables.
func at(h rule.Hook, rules []rule.Rule) [][]string {
	var args [][]string
	for _, r := range rules {
		if r.Hook == h {
			args = append(args, LinesOf(r)...)
		}
	}
	return args
}

// Check implements Firewall.
func (f *Backend) Check(ctx context.Context, rules []rule.Rule) ([]string, error) {
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
		states, err := f.Read(ctx, x, len(mine) > 0, false)
		if err != nil {
			return diffs, err
		}
		for _, h := range rule.Hooks() {
			for _, d := range append(f.differences(h, states[h], at(h, mine)), leftoverNames(h, states[h].builtin, rule.AddressesOf(mine))...) {
				diffs = append(diffs, x.family()+" "+d)
			}
		}
	}
	others, err := OtherLeftovers(ctx, slices.DeleteFunc(slices.Clone(f.Leftovers), func(x *Program) bool {
		return x.Legacy == f.tools.legacy
	}), rule.AddressesOf(rules))
	return append(diffs, others...), err
}

// Apply implements Firewall.
func (f *Backend) Apply(ctx context.Context, rules []rule.Rule) error {
	var errs []error
	for _, v6 := range []bool{false, true} {
		x, mine, err := f.family(v6, rules)
		if err == nil && x != nil {
			err = f.applyFamily(ctx, x, mine)
		}
		errs = append(errs, err)
		if Unanswered(err) || ctx.Err() != nil {
			return errors.Join(errs...) // each further call would wait as long again
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err // node-cache's rules are better than none
	}
	if len(rules) == 0 {
		return nil
	}
	_, err := RemoveLeftovers(ctx, f.Leftovers, rule.AddressesOf(rules))
	return err
}

func (f *Backend) applyFamily(ctx context.Context, x *Program, rules []rule.Rule) error {
	states, err := f.Read(ctx, x, len(rules) > 0, false)
	if err != nil {
		return err
	}
	for _, h := range rule.Hooks() {
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
func (f *Backend) replace(ctx context.Context, x *Program, h rule.Hook, s hookState, want [][]string) error {
	table, chain := h.Split()
	names := f.names(h)
	jumps := s.jumps(names)
	next := names[0]
	if len(jumps) > 0 && s.builtin[jumps[0]].Option("-j", "-g") == next {
		next = names[1]
	}
	// Rules after the first that lead to the chain about to be filled are of no use and in its way.
	for _, i := range jumps {
		if l := s.builtin[i]; l.Option("-j", "-g") == next {
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
		if l := s.builtin[i]; l.Option("-j", "-g") != next {
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
func (f *Backend) Remove(ctx context.Context) (removed []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, f.lock.explain(err)
	}
	var errs []error
	for _, x := range []*Program{f.V4, f.V6} {
		if x == nil {
			continue
		}
		names, err := f.removeFamily(ctx, x)
		removed = append(removed, names...)
		errs = append(errs, err)
		if Unanswered(err) || ctx.Err() != nil {
			return removed, errors.Join(errs...)
		}
	}
	return removed, errors.Join(errs...)
}

// RemoveNodeCache implements Firewall. It looks into both variants of iptables.
func (f *Backend) RemoveNodeCache(ctx context.Context) (removed []string, err error) {
	return RemoveLeftovers(ctx, f.Leftovers, nil)
}

func (f *Backend) removeFamily(ctx context.Context, x *Program) (removed []string, err error) {
	states, err := f.Read(ctx, x, false, true)
	if err != nil {
		return nil, err
	}
	hooks := rule.Hooks()
	slices.Reverse(hooks) // the fallback goes last
	var errs []error
	for _, h := range hooks {
		table, chain := h.Split()
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
		if ctx.Err() != nil || Unanswered(errors.Join(errs...)) {
			break
		}
	}
	if states != nil && x.Loaded("raw") {
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
func (f *Backend) SocketMatch(ctx context.Context, addrs []netip.Addr) error {
	if f.V4 == nil && f.V6 == nil {
		return fmt.Errorf("%s: no program", f.Name())
	}
	for _, x := range []*Program{f.V4, f.V6} {
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

// Package iptables is the rule.Backend for iptables-nft and iptables-legacy. It also finds and removes the
// rules that node-cache has made through either of them.
//
// At each hook the owner has one chain and, at the head of the kernel's chain, one rule that jumps to it. A
// chain is never changed while packets meet it: a second chain is filled, the jump to it is inserted before
// the jump to the first, and then the first is removed. A packet so meets either the old rules or the new.
//
// The programs are run by go-iptables, each call within a time limit, because a program can hang: see call.
// All calls wait for the xtables lock, at most as long as they were given.
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

// Backend is the rule.Backend that drives the programs of one variant.
//
// It is used by one goroutine at a time. Two processes of one owner that apply at the same time can
// leave rules doubled or missing; the next Check of either sees it.
type Backend struct {
	variant  Variant
	tag      string
	families [2]*program // for IPv4 and IPv6; nil where there is no such program
	all      Programs    // of both variants, through which node-cache's rules are found
	lock     *lockWatch  // that of all programs
}

// New opens the programs of the variant named name for an owner. found is the result of Find, wait how
// long a call waits for the xtables lock, in whole seconds of at least one.
func New(ctx context.Context, name, owner string, found []Variant, wait time.Duration) (*Backend, error) {
	i := slices.IndexFunc(found, func(v Variant) bool { return v.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%s is not in PATH", name)
	}
	all, err := Open(ctx, found, wait)
	if err != nil {
		return nil, err
	}
	b := &Backend{variant: found[i], tag: rule.OwnerTag(owner), all: all}
	for _, p := range all {
		b.lock = p.lock
		if i := slices.Index(b.variant.paths[:], p.path); i >= 0 {
			b.families[i] = p
		}
	}
	return b, nil
}

// Name implements rule.Backend.
func (b *Backend) Name() string { return b.variant.Name }

// chains returns the names of the chains that the owner may have at h.
func (b *Backend) chains(h rule.Hook) []string {
	names := make([]string, generations)
	for g := range generations {
		names[g] = chainName(h, b.tag, g)
	}
	return names
}

// family returns the i-th of families, and the rules for it. It fails where there are such rules and no
// program.
func (b *Backend) family(i int, rules []rule.Rule) (*program, []rule.Rule, error) {
	p := b.families[i]
	selected := slices.DeleteFunc(slices.Clone(rules), func(r rule.Rule) bool { return r.Is6() != (i == 1) })
	if p == nil && len(selected) > 0 {
		return nil, nil, fmt.Errorf("%s: the rule for %s needs %s, which is not there: install it or choose notrack nftables",
			b.Name(), rule.AddressesOf(selected)[0], []string{"iptables", "ip6tables"}[i])
	}
	return p, selected, nil
}

// Check implements rule.Backend.
func (b *Backend) Check(ctx context.Context, rules []rule.Rule) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, b.lock.explain(err)
	}
	var diffs []string
	for i := range b.families {
		p, selected, err := b.family(i, rules)
		if err != nil {
			return diffs, err
		}
		if p == nil {
			continue
		}
		states, err := b.read(ctx, p, len(selected) > 0, false)
		if err != nil {
			return diffs, err
		}
		for _, h := range rule.Hooks() {
			for _, d := range b.differences(h, states[h], rulesAt(h, selected)) {
				diffs = append(diffs, p.family()+" "+d)
			}
			if len(selected) == 0 {
				continue // without rules of ours, those of node-cache may stay
			}
			for _, l := range nodeCacheRules(states[h].builtin, rule.AddressesOf(selected)) {
				diffs = append(diffs, fmt.Sprintf("%s %s: rule of node-cache %s", p.family(), h, l))
			}
		}
	}
	others, err := b.all.of(!b.variant.legacy).NodeCacheRules(ctx, rule.AddressesOf(rules))
	return append(diffs, others...), err
}

// Apply implements rule.Backend.
func (b *Backend) Apply(ctx context.Context, rules []rule.Rule) error {
	var errs []error
	for i := range b.families {
		p, selected, err := b.family(i, rules)
		if err == nil && p != nil {
			err = b.applyFamily(ctx, p, selected)
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
	_, err := b.all.RemoveNodeCache(ctx, rule.AddressesOf(rules))
	return err
}

func (b *Backend) applyFamily(ctx context.Context, p *program, rules []rule.Rule) error {
	states, err := b.read(ctx, p, len(rules) > 0, false)
	if err != nil {
		return err
	}
	for _, h := range rule.Hooks() {
		want := rulesAt(h, rules)
		if len(b.differences(h, states[h], want)) == 0 {
			continue
		}
		if err := b.replace(ctx, p, h, states[h], want); err != nil {
			return fmt.Errorf("%s %s: %w", p.family(), h, err)
		}
	}
	return nil
}

// replace brings a hook from state s to the rules wanted.
func (b *Backend) replace(ctx context.Context, p *program, h rule.Hook, s hookState, want [][]string) error {
	table, chain := h.Split()
	names := b.chains(h)
	jumps := s.jumps(names)
	next := names[0]
	if len(jumps) > 0 && s.builtin[jumps[0]].target() == next {
		next = names[1]
	}
	deleteJumps := func(toNext bool) error {
		for _, i := range jumps {
			if l := s.builtin[i]; (l.target() == next) == toNext {
				if err := p.deleteRule(ctx, table, chain, l.Args); err != nil {
					return err
				}
			}
		}
		return nil
	}
	// Rules after the first that lead to the chain about to be filled have no effect and are in its way.
	if err := deleteJumps(true); err != nil {
		return err
	}
	if len(want) > 0 {
		if err := p.fillChain(ctx, table, next, want, chain, jumpArgs(next)); err != nil {
			return err
		}
	}
	if err := deleteJumps(false); err != nil {
		return err
	}
	for _, name := range names {
		if _, exists := s.own[name]; exists && (name != next || len(want) == 0) {
			if err := p.dropChain(ctx, table, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// Remove implements rule.Backend.
func (b *Backend) Remove(ctx context.Context) (removed []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, b.lock.explain(err)
	}
	var errs []error
	for _, p := range b.families {
		if p == nil {
			continue
		}
		names, err := b.removeFamily(ctx, p)
		removed = append(removed, names...)
		errs = append(errs, err)
		if unanswered(err) || ctx.Err() != nil {
			break
		}
	}
	return removed, errors.Join(errs...)
}

// RemoveNodeCache implements rule.Backend. It reaches both variants of iptables.
func (b *Backend) RemoveNodeCache(ctx context.Context) (removed []string, err error) {
	return b.all.RemoveNodeCache(ctx, nil)
}

func (b *Backend) removeFamily(ctx context.Context, p *program) (removed []string, err error) {
	states, err := b.read(ctx, p, false, true)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, h := range slices.Backward(rule.Hooks()) { // the fallback goes last
		table, chain := h.Split()
		s := states[h]
		for _, i := range s.jumps(b.chains(h)) {
			errs = append(errs, p.deleteRule(ctx, table, chain, s.builtin[i].Args))
		}
		for name, rules := range s.own {
			if err := p.dropChain(ctx, table, name); err != nil {
				errs = append(errs, err)
			} else {
				removed = append(removed, fmt.Sprintf("%s %s chain %s with %d rules", b.Name(), p.family(), name, len(rules)))
			}
		}
		if ctx.Err() != nil || unanswered(errors.Join(errs...)) {
			break
		}
	}
	if states != nil && p.loaded("raw") {
		chain := trialChain(b.tag)
		exists, err := run(ctx, p, func() (bool, error) { return p.library.ChainExists("raw", chain) })
		if err == nil && exists {
			if err = p.dropChain(ctx, "raw", chain); err == nil {
				removed = append(removed, fmt.Sprintf("%s %s chain %s", b.Name(), p.family(), chain))
			}
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// SocketMatch implements rule.Backend. It puts a rule into a chain that no packet meets and removes both,
// with the programs of the families of addrs: a match that is missing for the other family does not matter.
func (b *Backend) SocketMatch(ctx context.Context, addrs []netip.Addr) error {
	if b.families == [2]*program{} {
		return fmt.Errorf("%s: no program", b.Name())
	}
	chain := trialChain(b.tag)
	for _, p := range b.families {
		if p == nil || !p.handles(addrs) {
			continue
		}
		if err := p.change(ctx, func() error { return p.library.ClearChain("raw", chain) }); err != nil {
			return err
		}
		err := p.change(ctx, func() error {
			return p.library.Append("raw", chain, "-p", "tcp", "-m", "socket", "--nowildcard", "-j", "CT", "--notrack")
		})
		if err != nil {
			err = fmt.Errorf("%s: no socket match for %s: %w", b.Name(), p.family(), err)
		}
		// The chain is removed even where the caller has run out of time.
		cleanupCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupLimit)
		err = errors.Join(err, p.dropChain(cleanupCtx, "raw", chain))
		cancel()
		if err != nil {
			return err
		}
	}
	return nil
}

// Fallback implements rule.Backend.
func (b *Backend) Fallback(ctx context.Context, like rule.Rule) ([]netip.AddrPort, error) {
	i := 0
	if like.Is6() {
		i = 1
	}
	p := b.families[i]
	if p == nil {
		return nil, nil
	}
	states, err := b.read(ctx, p, false, false)
	if err != nil {
		return nil, err
	}
	s := states[rule.NatPrerouting]
	jumps := s.jumps(b.chains(rule.NatPrerouting))
	if len(jumps) == 0 {
		return nil, nil
	}
	var servers []netip.AddrPort
	for _, l := range s.own[s.builtin[jumps[0]].target()] {
		if l.option("-d") != netip.PrefixFrom(like.Dst, like.Dst.BitLen()).String() || l.option("-p") != string(like.Proto) ||
			l.option("--dport") != fmt.Sprint(like.DstPort) {
			continue
		}
		if server, err := netip.ParseAddrPort(l.option("--to-destination")); err == nil && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	return servers, nil
}

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

// Programs are opened programs of iptables, through which rules of node-cache are found and removed.
type Programs []*program

// Open opens every program of the variants. wait is how long a call waits for the xtables lock, in whole
// seconds of at least one.
func Open(ctx context.Context, found []Variant, wait time.Duration) (Programs, error) {
	var programs Programs
	lock := new(lockWatch)
	for _, v := range found {
		for i, path := range v.paths {
			if path == "" {
				continue
			}
			p, err := openProgram(ctx, path, v.legacy, i == 1, wait, lock)
			if err != nil {
				return nil, err
			}
			programs = append(programs, p)
		}
	}
	return programs, nil
}

// Legacy returns the programs of iptables-legacy.
func (ps Programs) Legacy() Programs { return ps.of(true) }

// of returns the programs of one variant.
func (ps Programs) of(legacy bool) Programs {
	return slices.DeleteFunc(slices.Clone(ps), func(p *program) bool { return p.legacy != legacy })
}

// nodeCacheRules returns the lines of a chain that node-cache has put there for one of the addresses, or
// with none given for any. They keep queries out of connection tracking whether a socket is open or not,
// and so out of the fallback.
func nodeCacheRules(lines []ruleLine, addrs []netip.Addr) []ruleLine {
	var found []ruleLine
	for _, l := range lines {
		if c := l.option("--comment"); c != rule.NodeCacheNoTrack && c != rule.NodeCacheAccept {
			continue
		}
		match := len(addrs) == 0
		for _, o := range []string{l.option("-s"), l.option("-d")} {
			a, err := netip.ParseAddr(canonicalWord(o))
			match = match || err == nil && slices.Contains(addrs, a)
		}
		if match {
			found = append(found, l)
		}
	}
	return found
}

// NodeCacheRules returns a line of Check for each rule of node-cache for the addresses. It changes
// nothing. Of the tables it reads raw alone, one call a program: the rules that keep queries out of the
// fallback are there.
func (ps Programs) NodeCacheRules(ctx context.Context, addrs []netip.Addr) (diffs []string, err error) {
	for _, p := range ps {
		if !p.handles(addrs) || !p.loaded("raw") {
			continue
		}
		lines, err := p.listTable(ctx, "raw")
		if err != nil && (p.v6 || !p.legacy) && !unanswered(err) && ctx.Err() == nil {
			continue // a kernel without IPv6 or nf_tables has no rules of it
		}
		if err != nil {
			return diffs, fmt.Errorf("look for rules of node-cache: %w", err)
		}
		for _, l := range nodeCacheRules(lines, addrs) {
			diffs = append(diffs, fmt.Sprintf("%s raw: rule of node-cache %s", p.path, l))
		}
	}
	return diffs, nil
}

// RemoveNodeCache removes the rules of node-cache for the addresses, or with none given all of them, and
// names each rule removed.
func (ps Programs) RemoveNodeCache(ctx context.Context, addrs []netip.Addr) (removed []string, err error) {
	var errs []error
	for _, p := range ps {
		tables := make(map[string][]ruleLine)
		for _, h := range rule.Hooks() {
			table, chain := h.Split()
			if table == "nat" || !p.loaded(table) {
				continue // node-cache has no rules there
			}
			if _, read := tables[table]; !read {
				lines, err := p.listTable(ctx, table)
				if err != nil && (p.v6 || !p.legacy && len(addrs) > 0) && !unanswered(err) && ctx.Err() == nil {
					break // a kernel without IPv6 or nf_tables has no rules of it
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("look for rules of node-cache: %w", err))
					if errors.Is(err, rule.ErrLocked) || ctx.Err() != nil {
						return removed, errors.Join(errs...)
					}
					if errors.Is(err, errHung) {
						break // it would hang again; the other programs may not
					}
				}
				tables[table] = lines
			}
			for _, l := range nodeCacheRules(tables[table], addrs) {
				if l.Chain != chain {
					continue
				}
				if err := p.deleteRule(ctx, table, chain, l.Args); err != nil {
					errs = append(errs, fmt.Errorf("remove a rule of node-cache: %w", err))
					continue
				}
				removed = append(removed, fmt.Sprintf("%s %s: rule of node-cache %s", p.path, table, l))
			}
		}
	}
	return removed, errors.Join(errs...)
}

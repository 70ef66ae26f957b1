package iptables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// leftovers returns those of a chain's lines that node-cache has put there for one of the addresses, or
// with none given for any. They keep queries out of connection tracking whether a socket is open or
// not, and so out of the fallback.
func leftovers(lines []RuleLine, addrs []netip.Addr) []RuleLine {
	var found []RuleLine
	for _, l := range lines {
		if c := l.Option("--comment"); c != rule.NodeCacheNoTrack && c != rule.NodeCacheAccept {
			continue
		}
		ours := len(addrs) == 0
		for _, o := range []string{l.Option("-s"), l.Option("-d")} {
			a, err := netip.ParseAddr(canonicalWord(o))
			ours = ours || err == nil && slices.Contains(addrs, a)
		}
		if ours {
			found = append(found, l)
		}
	}
	return found
}

// leftoverNames names the leftovers for Check.
func leftoverNames(h rule.Hook, lines []RuleLine, addrs []netip.Addr) []string {
	if len(addrs) == 0 {
		return nil
	}
	var names []string
	for _, l := range leftovers(lines, addrs) {
		names = append(names, fmt.Sprintf("%s: rule of node-cache %s", h, l))
	}
	return names
}

// OtherLeftovers looks, without a change, for rules of node-cache in backends that are not in use here,
// and names them for Check. Of their tables it reads raw alone, one call a program: what keeps queries
// out of the fallback is there.
func OtherLeftovers(ctx context.Context, programs []*Program, addrs []netip.Addr) (names []string, err error) {
	for _, x := range programs {
		if !x.wanted(addrs) || !x.Loaded("raw") {
			continue
		}
		lines, err := x.List(ctx, "raw", "")
		if err != nil && (x.V6 || !x.Legacy) && !Unanswered(err) && ctx.Err() == nil {
			continue // a kernel without IPv6 or nf_tables has no rules of it
		}
		if err != nil {
			return names, fmt.Errorf("look for rules of node-cache: %w", err)
		}
		for _, l := range leftovers(lines, addrs) {
			names = append(names, fmt.Sprintf("%s raw: rule of node-cache %s", x.Path, l))
		}
	}
	return names, nil
}

// RemoveLeftovers removes the rules of node-cache for the addresses, or with none given all of them,
// through each of the programs, and names what it removed.
func RemoveLeftovers(ctx context.Context, programs []*Program, addrs []netip.Addr) (removed []string, err error) {
	var errs []error
	for _, x := range programs {
		tables := make(map[string][]RuleLine)
		for _, h := range rule.Hooks() {
			table, chain := h.Split()
			if table == "nat" || !x.Loaded(table) {
				continue // node-cache has no rules there
			}
			if _, read := tables[table]; !read {
				lines, err := x.List(ctx, table, "")
				if err != nil && (x.V6 || !x.Legacy && len(addrs) > 0) && !Unanswered(err) && ctx.Err() == nil {
					break // a kernel without IPv6 or nf_tables has no rules of it
				}
				if err != nil {
					errs = append(errs, fmt.Errorf("look for rules of node-cache: %w", err))
					if errors.Is(err, rule.ErrLocked) || ctx.Err() != nil {
						return removed, errors.Join(errs...)
					}
					if errors.Is(err, ErrHung) {
						break // it would hang again; the other programs may not
					}
				}
				tables[table] = lines
			}
			for _, l := range leftovers(tables[table], addrs) {
				if l.Chain != chain {
					continue
				}
				if err := x.deleteRule(ctx, table, chain, l.Args); err != nil {
					errs = append(errs, fmt.Errorf("remove a rule of node-cache: %w", err))
					continue
				}
				removed = append(removed, fmt.Sprintf("%s %s: rule of node-cache %s", x.Path, table, l))
			}
		}
	}
	return removed, errors.Join(errs...)
}

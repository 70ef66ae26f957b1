package nftables

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// nftLeftover is a rule of node-cache in nf_tables, put there by iptables-nft.
type nftLeftover struct {
	table  *nftables.Table
	chain  string
	handle uint64
}

func (l nftLeftover) String() string {
	family := "ip"
	if l.table.Family == nftables.TableFamilyIPv6 {
		family = "ip6"
	}
	return fmt.Sprintf("table %s %s: rule of node-cache in chain %s, handle %d", family, l.table.Name, l.chain, l.handle)
}

// nodeCacheRules returns the rules of node-cache in the tables of iptables-nft, for the addresses or, if none are
// given, all of them. It needs no program.
func (f *Backend) nodeCacheRules(ctx context.Context, addrs []netip.Addr) ([]nftLeftover, error) {
	var found []nftLeftover
	err := withNetlink(ctx, func(nl *netlink.Conn) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			for _, h := range rule.Hooks() {
				table, chain := h.Split()
				if table == "nat" {
					continue // node-cache has no rules there
				}
				t := &nftables.Table{Name: table, Family: family}
				rules, err := nftDump(nl, t, chain)
				if err != nil {
					return fmt.Errorf("nftables: look for rules of node-cache: %w", err)
				}
				for _, r := range rules {
					if isNodeCache(r.ruleText, addrs) {
						found = append(found, nftLeftover{t, chain, r.handle})
					}
				}
			}
		}
		return nil
	})
	return found, err
}

// isNodeCache reports whether a rule has node-cache's comment, and one of the addresses if any are given.
// iptables-nft keeps the comment in a match of xtables, with the text as its data, or with the rule; an address is
// the operand of a comparison.
func isNodeCache(r ruleText, addrs []netip.Addr) bool {
	return slices.ContainsFunc([]string{rule.NodeCacheNoTrack, rule.NodeCacheAccept}, func(c string) bool {
		return r.comment == c || strings.Contains(r.exprs, "="+hex.EncodeToString([]byte(c+"\x00")))
	}) && (len(addrs) == 0 || slices.ContainsFunc(addrs, func(a netip.Addr) bool {
		return strings.Contains(r.exprs, "="+hex.EncodeToString(a.AsSlice())+")")
	}))
}

// removeLeftovers removes the rules of node-cache for the addresses, or all of them if none are given.
func (f *Backend) removeLeftovers(ctx context.Context, addrs []netip.Addr) (removed []string, err error) {
	found, err := f.nodeCacheRules(ctx, addrs)
	if err == nil && len(found) > 0 {
		var marshal []error
		err = f.transact(ctx, func(c *nftables.Conn) {
			for _, l := range found {
				marshal = append(marshal, c.DelRule(&nftables.Rule{Table: l.table, Chain: &nftables.Chain{Name: l.chain}, Handle: l.handle}))
			}
		})
		if err = errors.Join(append(marshal, err)...); err == nil {
			for _, l := range found {
				removed = append(removed, l.String())
			}
		}
	}
	legacy, legacyErr := f.legacy.RemoveNodeCache(ctx, addrs)
	return append(removed, legacy...), errors.Join(err, legacyErr)
}

// Package nftables is the Backend that talks to nf_tables through netlink and needs no program. Each owner has one table of
// the inet family, which is replaced in one transaction.
package nftables

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

const (
	// netlinkWait bounds one exchange with the kernel, which holds its own lock while it changes rules, on a busy
	// node for a second or two.
	netlinkWait = 5 * time.Second
	// netlinkBuffer holds the kernel's answers to one batch, two for each rule at about 1 KiB each
	// with the kernel's own overhead, for some dozens of addresses.
	netlinkBuffer = 4 << 20
	// dumpTries bounds how often a reading is repeated because another program changed its rules meanwhile.
	dumpTries = 5
)

// Backend is the rule.Backend that talks to nf_tables through netlink and needs no program.
//
// The owner has one table of the inet family, which holds no rules of other programs. It is replaced in one
// transaction, so that packets meet either the old table or the new.
type Backend struct {
	owner  string
	table  *nftables.Table
	legacy iptables.Programs // find node-cache's rules in iptables-legacy, which netlink does not show
}

// New returns the Backend of an owner. leftovers are the iptables programs that see the rules of iptables-legacy.
func New(owner string, programs iptables.Programs) *Backend {
	return &Backend{
		owner:  owner,
		table:  &nftables.Table{Name: "localcache-" + rule.OwnerTag(owner), Family: nftables.TableFamilyINet},
		legacy: programs.Legacy(),
	}
}

// Name implements rule.Backend.
func (f *Backend) Name() string { return rule.NFTables }

// conn opens a connection that ends with ctx or after netlinkWait.
func (f *Backend) conn(ctx context.Context) (*nftables.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error { return prepareConn(ctx, c) }))
}

func prepareConn(ctx context.Context, c *netlink.Conn) error {
	deadline := time.Now().Add(netlinkWait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	return errors.Join(c.SetDeadline(deadline), c.SetReadBuffer(netlinkBuffer), c.SetWriteBuffer(netlinkBuffer))
}

// transact has fill queue changes and sends them as one transaction.
func (f *Backend) transact(ctx context.Context, fill func(*nftables.Conn)) error {
	c, err := f.conn(ctx)
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	fill(c)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	return nil
}

// Read reads the owner's table. Reading takes several exchanges; it starts again if the rules of the node changed in
// between.
func (f *Backend) Read(ctx context.Context) (s nftState, err error) {
	for range dumpTries {
		if s, err = f.readOnce(ctx); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return s, fmt.Errorf("nftables: read table %s: %w", f.table.Name, err)
	}
	return s, nil
}

func (f *Backend) readOnce(ctx context.Context) (nftState, error) {
	s := nftState{chains: make(map[string]string), rules: make(map[string][]ruleText)}
	c, err := f.conn(ctx)
	if err != nil {
		return s, err
	}
	tables, err := c.ListTablesOfFamily(f.table.Family)
	if err != nil {
		return s, err
	}
	for _, t := range tables {
		if t.Name == f.table.Name {
			s.exists, s.dormant = true, t.Flags != 0
		}
	}
	if !s.exists {
		return s, nil
	}
	chains, err := c.ListChainsOfTableFamily(f.table.Family)
	if err != nil {
		return s, err
	}
	for _, ch := range chains {
		if ch.Table.Name == f.table.Name {
			s.chains[ch.Name] = nftChainText(ch)
		}
	}
	err = withNetlink(ctx, func(nl *netlink.Conn) error {
		rules, err := nftDump(nl, f.table, "")
		for _, r := range rules {
			s.rules[r.chain] = append(s.rules[r.chain], r.ruleText)
		}
		return err
	})
	return s, err
}

// withNetlink calls f with a connection to the kernel's packet filter, which ends with ctx or after
// netlinkWait.
func withNetlink(ctx context.Context, f func(*netlink.Conn) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, nl.Close()) }()
	if err := prepareConn(ctx, nl); err != nil {
		return err
	}
	return f(nl)
}

// nftWantedChain is a chain that should exist, with its rules.
type nftWantedChain struct {
	chain *nftables.Chain
	rules []Rule
}

// want turns rules into chains, in the order of Hooks.
func (f *Backend) want(rules []rule.Rule) []nftWantedChain {
	var chains []nftWantedChain
	policy := nftables.ChainPolicyAccept
	describe := nftChains()
	for _, h := range rule.Hooks() {
		var at []Rule
		for _, r := range rules {
			if r.Hook == h {
				at = append(at, rulesFor(r)...)
			}
		}
		if len(at) == 0 {
			continue
		}
		d := describe[h]
		chains = append(chains, nftWantedChain{
			chain: &nftables.Chain{Table: f.table, Name: d.name, Type: d.kind, Hooknum: d.hook, Priority: &d.priority, Policy: &policy},
			rules: at,
		})
	}
	return chains
}

// Check implements rule.Backend.
func (f *Backend) Check(ctx context.Context, rules []rule.Rule) ([]string, error) {
	s, err := f.Read(ctx)
	if err != nil {
		return nil, err
	}
	diffs, err := f.differences(s, rules)
	if err != nil || len(rules) == 0 {
		return diffs, err
	}
	left, err := f.nodeCacheRules(ctx, rule.AddressesOf(rules))
	for _, l := range left {
		diffs = append(diffs, l.String())
	}
	others, otherErr := f.legacy.NodeCacheRules(ctx, rule.AddressesOf(rules))
	return append(diffs, others...), errors.Join(err, otherErr)
}

func (f *Backend) differences(s nftState, rules []rule.Rule) ([]string, error) {
	var diffs []string
	differ := func(format string, args ...any) {
		diffs = append(diffs, fmt.Sprintf("table %s: ", f.table.Name)+fmt.Sprintf(format, args...))
	}
	want := f.want(rules)
	switch {
	case len(want) == 0 && s.exists:
		differ("superfluous")
		return diffs, nil
	case len(want) > 0 && !s.exists:
		differ("missing")
		return diffs, nil
	case s.dormant:
		differ("switched off")
	}
	for _, w := range want {
		name := w.chain.Name
		text, there := s.chains[name]
		delete(s.chains, name)
		if !there {
			differ("missing chain %s", name)
			continue
		}
		if t := nftChainText(w.chain); t != text {
			differ("chain %s is %s, not %s", name, text, t)
		}
		wanted, err := wantedTexts(name, w.rules)
		if err != nil {
			return diffs, err
		}
		diffs = append(diffs, compareNFTRules(f.table.Name, name, s.rules[name], wanted)...)
	}
	for name := range s.chains {
		differ("superfluous chain %s", name)
	}
	slices.Sort(diffs)
	return diffs, nil
}

// compareNFTRules names the differences between the rules of a chain and those that it should hold.
func compareNFTRules(table, chain string, have, want []ruleText) []string {
	if slices.Equal(have, want) {
		return nil
	}
	var diffs []string
	rest := slices.Clone(have)
	for _, w := range want {
		if i := slices.Index(rest, w); i >= 0 {
			rest = slices.Delete(rest, i, i+1)
		} else {
			diffs = append(diffs, fmt.Sprintf("table %s: chain %s: missing rule %s", table, chain, w))
		}
	}
	for _, r := range rest {
		diffs = append(diffs, fmt.Sprintf("table %s: chain %s: superfluous rule %s", table, chain, r))
	}
	if len(diffs) == 0 {
		diffs = append(diffs, fmt.Sprintf("table %s: chain %s: the rules are out of order", table, chain))
	}
	return diffs
}

// Apply implements rule.Backend.
func (f *Backend) Apply(ctx context.Context, rules []rule.Rule) error {
	s, err := f.Read(ctx)
	if err != nil {
		return err
	}
	diffs, err := f.differences(s, rules)
	if err != nil {
		return err
	}
	if len(diffs) > 0 {
		if err := f.transact(ctx, func(c *nftables.Conn) { f.fill(c, rules) }); err != nil {
			return err
		}
	}
	if len(rules) == 0 {
		return nil
	}
	_, err = f.removeLeftovers(ctx, rule.AddressesOf(rules))
	return err
}

// fill queues the replacement of the table. The table is added before it is deleted, which is no error if it exists,
// because deleting a missing table is one.
func (f *Backend) fill(c *nftables.Conn, rules []rule.Rule) {
	c.AddTable(f.table)
	c.DelTable(f.table)
	want := f.want(rules)
	if len(want) == 0 {
		return
	}
	c.AddTable(f.table)
	for _, w := range want {
		c.AddChain(w.chain)
		for _, r := range w.rules {
			c.AddRule(&nftables.Rule{Table: f.table, Chain: w.chain, Exprs: r.Exprs, UserData: r.userData()})
		}
	}
}

// Remove implements rule.Backend.
func (f *Backend) Remove(ctx context.Context) (removed []string, err error) {
	s, err := f.Read(ctx)
	if err == nil && s.exists {
		if err = f.transact(ctx, func(c *nftables.Conn) { f.fill(c, nil) }); err == nil {
			removed = append(removed, fmt.Sprintf("nftables table inet %s", f.table.Name))
		}
	}
	return removed, err
}

// RemoveNodeCache implements rule.Backend. It removes what iptables-nft has put into the kernel, and
// iptables-legacy's rules if that program exists.
func (f *Backend) RemoveNodeCache(ctx context.Context) (removed []string, err error) {
	return f.removeLeftovers(ctx, nil)
}

// Try builds a table with one base chain of the nat type and one rule, and deletes it, all in one transaction: the
// kernel reports whether it is possible, and no packet ever meets it. The table's name belongs to no owner.
func (f *Backend) Try(ctx context.Context, exprs ...expr.Any) error {
	return f.transact(ctx, func(c *nftables.Conn) {
		t := c.AddTable(&nftables.Table{Name: "localcache_try-" + rule.OwnerTag(f.owner), Family: f.table.Family})
		d := nftChains()
		for _, h := range []rule.Hook{rule.NatPrerouting, rule.RawPrerouting} {
			c.AddChain(&nftables.Chain{Table: t, Name: d[h].name, Type: d[h].kind, Hooknum: d[h].hook,
				Priority: nftables.ChainPriorityRef(d[h].priority)})
		}
		if len(exprs) > 0 {
			c.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Name: d[rule.RawPrerouting].name}, Exprs: exprs})
		}
		c.DelTable(t)
	})
}

// SocketMatch implements rule.Backend. Both families have it in one expression.
func (f *Backend) SocketMatch(ctx context.Context, _ []netip.Addr) error {
	for _, key := range []expr.SocketKey{expr.SocketKeyTransparent, expr.SocketKeyWildcard} {
		err := f.Try(ctx, &expr.Socket{Key: key, Register: unix.NFT_REG_1}, equal([]byte{0}), &expr.Notrack{})
		if err != nil {
			return fmt.Errorf("no socket expression that tells %s: %w", map[expr.SocketKey]string{
				expr.SocketKeyTransparent: "transparent", expr.SocketKeyWildcard: "wildcard"}[key], err)
		}
	}
	return nil
}

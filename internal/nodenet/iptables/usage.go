package iptables

import (
	"context"
	"strings"
	"time"
)

// Usage is what a variant is used for on the node.
type Usage struct {
	Name  string // of the variant
	Chain string // a chain of Kubernetes, or ""
	Rules int    // the number of rules that are not ours
}

// Usage reads the tables of the variant until it sees a chain of Kubernetes. kubelet leaves two of them in
// mangle for programs that want to know the variant (KUBE-IPTABLES-HINT, Kubernetes KEP-3178). wait is how
// long a call waits for the xtables lock, in whole seconds of at least one.
func (v Variant) Usage(ctx context.Context, wait time.Duration) (Usage, error) {
	u := Usage{Name: v.Name}
	programs, err := Open(ctx, []Variant{v}, wait)
	if err != nil {
		return u, err
	}
	for _, p := range programs {
		for _, table := range []string{"mangle", "nat", "filter", "raw"} {
			if !p.loaded(table) {
				continue
			}
			lines, err := p.listTable(ctx, table)
			if err != nil && p.v6 && len(programs) > 1 && !unanswered(err) {
				break // a kernel without IPv6
			}
			if err != nil {
				return u, err
			}
			for _, l := range lines {
				switch {
				case l.Command == "-N" && strings.HasPrefix(l.Chain, "KUBE-"):
					u.Chain = l.Chain
					return u, nil
				case l.Command == "-A" && !strings.HasPrefix(l.Chain, "LC-") && !strings.HasPrefix(l.target(), "LC-"):
					u.Rules++
				}
			}
		}
	}
	return u, nil
}

// Try reads a chain of the table raw. It makes the kernel create the table, as the rules to come will.
func (b *Backend) Try(ctx context.Context) error {
	for _, p := range b.families {
		if p != nil {
			_, err := p.list(ctx, "raw", "PREROUTING")
			return err
		}
	}
	return nil
}

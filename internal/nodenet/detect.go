package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// DetectBackend returns the backend for a choice, and a sentence that says why it was chosen. With ChoiceAuto it is
// the backend of the node's own rules, in this order: a table of kube-proxy in nftables; chains of kubelet or
// kube-proxy in a variant of iptables; the variant that has more rules; nftables. ctx bounds the programs that it
// runs, but no later call of the backend's methods.
//
// Errors: the chosen backend cannot be used, with what is missing; no backend can be used, with a reason for each;
// NET_ADMIN is missing; ErrLocked (wrapped), if the rules could not be read.
func DetectBackend(ctx context.Context, choice Choice, owner string, log rule.Logger) (fw rule.Backend, why string, err error) {
	if choice == ChoiceOff {
		return noBackend{}, "notrack off asks for none", nil
	}
	if err := checkNetAdmin(); err != nil {
		return nil, "", fmt.Errorf("notrack %s: %w", choice, err)
	}
	d := detection{owner: owner, log: log, found: iptables.Find(ctx), wait: iptables.LockWait}
	switch choice {
	case ChoiceIPTables:
		fw, why, err = d.iptables(ctx)
	case ChoiceNFTables:
		fw, why, err = d.nftables(ctx)
	default:
		fw, why, err = d.auto(ctx)
	}
	if err != nil {
		return nil, "", fmt.Errorf("notrack %s: %w", choice, err)
	}
	return fw, why, nil
}

// AllBackends returns every backend that this node can use. It serves to remove an owner's rules from all of them:
// at the end, and after the backend changed.
func AllBackends(ctx context.Context, owner string) []rule.Backend {
	var all []rule.Backend
	found := iptables.Find(ctx)
	for _, t := range found {
		if fw, err := iptables.New(ctx, t.Name, owner, found, iptables.LockWait); err == nil {
			all = append(all, fw)
		}
	}
	programs, err := iptables.Open(ctx, found, iptables.LockWait)
	if err != nil {
		programs = nil // a program that cannot report its version cannot remove rules either
	}
	fw := nftables.New(owner, programs)
	// Without permission the backend stays in the list, so that its Remove reports the error.
	if _, err := fw.Read(ctx); err == nil || errors.Is(err, unix.EPERM) {
		all = append(all, fw)
	}
	return all
}

// unseenLegacyTables returns the tables of iptables-legacy that the kernel has and no program here can read.
func unseenLegacyTables(ctx context.Context) []string {
	for _, t := range iptables.Find(ctx) {
		if t.Name == rule.IPTablesLegacy {
			return nil
		}
	}
	// Only root may read this list, and only root can remove rules.
	b, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

// checkNetAdmin asks the thread's effective capabilities (capabilities(7)).
func checkNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read the capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("packet rules need the capability NET_ADMIN: add it to the container's securityContext or choose notrack off: %w", unix.EPERM)
	}
	return nil
}

// detection holds the inputs of one DetectBackend call.
type detection struct {
	owner string
	log   rule.Logger
	found []iptables.Variant
	wait  time.Duration // for the xtables lock
}

func (d detection) auto(ctx context.Context) (rule.Backend, string, error) {
	nft, _, nftErr := d.nftables(ctx)
	if nftErr == nil {
		table, err := nftables.KubeProxyTable(ctx, d.owner)
		if err != nil {
			return nil, "", err
		}
		if table != "" {
			return nft, "kube-proxy has its rules in the nftables table " + table, nil
		}
	}
	usable, iptErr := d.look(ctx)
	if errors.Is(iptErr, rule.ErrLocked) || ctx.Err() != nil {
		return nil, "", iptErr
	}
	if u, why, ok := choose(usable); ok {
		fw, err := iptables.New(ctx, u.Name, d.owner, d.found, d.wait)
		return fw, why, err
	}
	if nftErr == nil {
		why := "the node has no rules in iptables"
		switch {
		case len(d.found) == 0:
			why = "no iptables program is in PATH"
		case len(usable) == 0:
			why = fmt.Sprintf("iptables cannot be used: %v", iptErr)
		}
		return nft, why, nil
	}
	fw, why, err := d.first(ctx, usable)
	if err != nil || fw == nil {
		return nil, "", fmt.Errorf("no packet filter can be used: %w", errors.Join(nftErr, iptErr, err))
	}
	return fw, why, nil
}

func (d detection) iptables(ctx context.Context) (rule.Backend, string, error) {
	usable, iptErr := d.look(ctx)
	if u, why, ok := choose(usable); ok {
		fw, err := iptables.New(ctx, u.Name, d.owner, d.found, d.wait)
		return fw, why, err
	}
	fw, why, err := d.first(ctx, usable)
	if err != nil || fw == nil {
		return nil, "", errors.Join(iptErr, err)
	}
	return fw, why, nil
}

// first returns the first variant that works, if the node uses no variant. Trying it makes the kernel create the
// table, as the rules would later.
func (d detection) first(ctx context.Context, usable []iptables.Usage) (rule.Backend, string, error) {
	var errs []error
	for _, u := range usable {
		fw, err := iptables.New(ctx, u.Name, d.owner, d.found, d.wait)
		if err == nil {
			err = fw.Try(ctx)
		}
		if err == nil {
			return fw, "the node has no rules in iptables, and " + u.Name + " works", nil
		}
		errs = append(errs, err)
	}
	return nil, "", errors.Join(errs...)
}

func (d detection) nftables(ctx context.Context) (rule.Backend, string, error) {
	programs, err := iptables.Open(ctx, d.found, d.wait)
	if err != nil {
		d.log.Warningf("rules of node-cache in iptables will not be seen: %v", err)
		programs = nil
	}
	fw := nftables.New(d.owner, programs)
	switch err := fw.Try(ctx); {
	case errors.Is(err, unix.EPERM):
		return nil, "", fmt.Errorf("the kernel refuses changes to packet rules; is NET_ADMIN given for this network namespace? %w", err)
	case err != nil:
		return nil, "", fmt.Errorf("the kernel cannot do it (it needs CONFIG_NF_TABLES_INET and CONFIG_NFT_NAT): %w", err)
	}
	return fw, "it was chosen", nil
}

// look reads the rules of each variant. Those that cannot be used are left out, with the reasons in err.
func (d detection) look(ctx context.Context) (usable []iptables.Usage, err error) {
	if len(d.found) == 0 {
		return nil, errors.New("no iptables program is in PATH: install iptables (package iptables) or choose notrack nftables")
	}
	var errs []error
	for _, t := range d.found {
		// No socket is open until the backend is known or the attempt is given up. So the wait for the lock is short,
		// and ErrLocked causes another attempt once the sockets are open.
		u, err := t.Usage(ctx, min(d.wait, time.Second))
		if errors.Is(err, rule.ErrLocked) || ctx.Err() != nil {
			return nil, err // the node's own backend is unknown; the next attempt may find it
		}
		if err != nil {
			d.log.Warningf("%s cannot be used: %v", t.Name, err)
			errs = append(errs, fmt.Errorf("%s: %w", t.Name, err))
			continue
		}
		usable = append(usable, u)
	}
	return usable, errors.Join(errs...)
}

// choose returns the variant that the node uses; ok is false if no variant has rules, and u is then the first one. If
// both have chains of Kubernetes, nft wins: nodes move from legacy to nft.
func choose(usable []iptables.Usage) (u iptables.Usage, why string, ok bool) {
	if len(usable) == 0 {
		return iptables.Usage{}, "", false
	}
	for _, u := range usable {
		if u.Chain != "" {
			return u, fmt.Sprintf("Kubernetes' chain %s is in %s", u.Chain, u.Name), true
		}
	}
	u = usable[0]
	var counts []string
	for _, v := range usable {
		counts = append(counts, fmt.Sprintf("%s has %d rules", v.Name, v.Rules))
		if v.Rules > u.Rules {
			u = v
		}
	}
	return u, strings.Join(counts, ", "), u.Rules > 0
}

// noBackend is the rule.Backend of notrack off: it has no rules.
type noBackend struct{}

func (noBackend) Name() string                                                  { return string(ChoiceOff) }
func (noBackend) SocketMatch(context.Context, []netip.Addr) error               { return nil }
func (noBackend) Apply(context.Context, []rule.Rule) error                      { return nil }
func (noBackend) Check(context.Context, []rule.Rule) ([]string, error)          { return nil, nil }
func (noBackend) Remove(context.Context) ([]string, error)                      { return nil, nil }
func (noBackend) Fallback(context.Context, rule.Rule) ([]netip.AddrPort, error) { return nil, nil }

func (noBackend) RemoveNodeCache(context.Context) ([]string, error) { return nil, nil }

package nodenet

import (
	"net/netip"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// backends are the backends that kernel tests run with.
var backends = []string{rule.IPTablesNFT, rule.IPTablesLegacy, rule.NFTables}

// openBackend opens a backend inside the calling test's namespace, or skips the test if it is not available.
func openBackend(t *testing.T, name, owner string) rule.Backend {
	t.Helper()
	found := iptables.Find(t.Context())
	if name == rule.NFTables {
		programs, err := iptables.Open(t.Context(), found, iptables.LockWait)
		if err != nil {
			t.Fatal(err)
		}
		fw := nftables.New(owner, programs)
		if err := fw.Try(t.Context()); err != nil {
			t.Skip(err)
		}
		return fw
	}
	fw, err := iptables.New(t.Context(), name, owner, found, iptables.LockWait)
	if err != nil {
		t.Skip(err)
	}
	return fw
}

// testSpec has both families, a fallback of two servers for each, and a health address.
func testSpec() Spec {
	return Spec{
		Interface: "lc0",
		Addresses: []netip.Addr{netip.MustParseAddr("169.254.25.10"), netip.MustParseAddr("fd00:25::10")},
		Port:      53,
		Health:    []netip.AddrPort{netip.MustParseAddrPort("169.254.25.10:9254")},
		Notrack:   ChoiceAuto,
		Fallback: []netip.AddrPort{
			netip.MustParseAddrPort("10.233.74.65:53"), netip.MustParseAddrPort("10.233.74.66:1053"),
			netip.MustParseAddrPort("[fd00:74::65]:53"), netip.MustParseAddrPort("[fd00:74::66]:1053"),
		},
		Check:  DefaultCheck,
		OnExit: ExitKeep,
	}
}

// clean fails the test unless Check finds the rules in place.
func clean(t *testing.T, fw rule.Backend, rules []rule.Rule) {
	t.Helper()
	diffs, err := fw.Check(nettest.Context(t), rules)
	if err != nil || len(diffs) > 0 {
		t.Fatalf("Check: %v\n%s", err, strings.Join(diffs, "\n"))
	}
}

func apply(t *testing.T, fw rule.Backend, rules []rule.Rule) {
	t.Helper()
	if err := fw.Apply(nettest.Context(t), rules); err != nil {
		t.Fatal(err)
	}
}

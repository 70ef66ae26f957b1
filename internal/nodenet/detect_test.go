package nodenet

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/nftables"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// onlyPrograms makes a PATH with only the named programs, each "name" or "name=real name".
func onlyPrograms(t *testing.T, programs ...string) {
	t.Helper()
	dir := t.TempDir()
	for _, p := range programs {
		name, real, ok := strings.Cut(p, "=")
		if !ok {
			real = name
		}
		path, err := exec.LookPath(real)
		if err != nil {
			t.Skip(err)
		}
		// The programs recognize their variant by the name under which they are called.
		nettest.WriteProgram(t, dir, name, "exec "+path+` "$@"`)
	}
	t.Setenv("PATH", dir)
}

func TestDetectBackend(t *testing.T) {
	for _, test := range []struct {
		name     string
		setup    string // commands
		programs []string
		choice   Choice
		want     string // the backend's name
		why      string // part of the reason
		err      string // part of the error
	}{
		{"no rules", "", nettest.IPTables, ChoiceAuto, rule.NFTables, "the node has no rules in iptables", ""},
		{"hint in nft", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT; iptables-legacy -A INPUT -j ACCEPT", nettest.IPTables, ChoiceAuto, rule.IPTablesNFT, "chain KUBE-IPTABLES-HINT is in iptables-nft", ""},
		{"canary in legacy", "iptables-legacy -t mangle -N KUBE-KUBELET-CANARY; iptables-nft -A INPUT -j ACCEPT", nettest.IPTables, ChoiceAuto, rule.IPTablesLegacy, "chain KUBE-KUBELET-CANARY is in iptables-legacy", ""},
		{"services in legacy, IPv6 alone", "ip6tables-legacy -t nat -N KUBE-SERVICES", nettest.IPTables, ChoiceAuto, rule.IPTablesLegacy, "chain KUBE-SERVICES is in iptables-legacy", ""},
		{"hints in both", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT; iptables-nft -t mangle -N KUBE-IPTABLES-HINT", nettest.IPTables, ChoiceAuto, rule.IPTablesNFT, "iptables-nft", ""},
		{"kube-proxy in nftables", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT; nft add table ip kube-proxy", nettest.IPTables, ChoiceAuto, rule.NFTables, "nftables table ip kube-proxy", ""},
		{"kube-proxy in nftables, IPv6 alone", "nft add table ip6 kube-proxy", nettest.IPTables, ChoiceAuto, rule.NFTables, "nftables table ip6 kube-proxy", ""},
		{"more in legacy", "iptables-legacy -A INPUT -j ACCEPT; iptables-legacy -A INPUT -j ACCEPT; iptables-nft -A INPUT -j ACCEPT", nettest.IPTables, ChoiceAuto, rule.IPTablesLegacy, "iptables-nft has 1 rules, iptables-legacy has 2 rules", ""},
		{"more in nft", "iptables-nft -A INPUT -j ACCEPT", nettest.IPTables, ChoiceAuto, rule.IPTablesNFT, "iptables-nft has 1 rules, iptables-legacy has 0 rules", ""},
		{"no programs", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT", nil, ChoiceAuto, rule.NFTables, "no iptables program is in PATH", ""},
		{"a program of any name", "iptables-nft -t mangle -N KUBE-IPTABLES-HINT", []string{"iptables=iptables-nft", "ip6tables=ip6tables-nft"}, ChoiceAuto, rule.IPTablesNFT, "KUBE-IPTABLES-HINT", ""},
		{"a legacy program of any name", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT", []string{"iptables=iptables-legacy"}, ChoiceAuto, rule.IPTablesLegacy, "KUBE-IPTABLES-HINT", ""},
		{"our own rules do not count", "iptables-legacy -N LC-PRE-x-0; iptables-legacy -A LC-PRE-x-0 -j ACCEPT; iptables-legacy -A INPUT -j LC-PRE-x-0", nettest.IPTables, ChoiceAuto, rule.NFTables, "the node has no rules in iptables", ""},
		{"iptables chosen, no rules", "", nettest.IPTables, ChoiceIPTables, rule.IPTablesNFT, "iptables-nft works", ""},
		{"iptables chosen, legacy used", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT; nft add table ip kube-proxy", nettest.IPTables, ChoiceIPTables, rule.IPTablesLegacy, "KUBE-IPTABLES-HINT", ""},
		{"iptables chosen, no programs", "", nil, ChoiceIPTables, "", "", "notrack iptables: no iptables program is in PATH: install iptables (package iptables) or choose notrack nftables"},
		{"nftables chosen", "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT", nettest.IPTables, ChoiceNFTables, rule.NFTables, "it was chosen", ""},
		{"off", "", nettest.IPTables, ChoiceOff, "off", "notrack off", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			nettest.NewNamespace(t)
			nettest.Need(t, append([]string{"nft"}, nettest.IPTables...)...)
			nettest.Run(t, test.setup)
			onlyPrograms(t, test.programs...)
			fw, why, err := DetectBackend(nettest.Context(t), test.choice, "lc0", nettest.NewLog(t))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q", err, test.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if fw.Name() != test.want || !strings.Contains(why, test.why) {
				t.Errorf("got %s because %q, want %s because %q", fw.Name(), why, test.want, test.why)
			}
			if test.setup == "" && test.choice == ChoiceAuto {
				tables, err := os.ReadFile("/proc/thread-self/net/ip_tables_names")
				if err == nil && len(tables) > 0 {
					t.Errorf("looking made the legacy tables %q", tables)
				}
			}
		})
	}
}

// TestHungProgramAtDetection checks that a working backend is chosen in bounded time although a program hangs.
func TestHungProgramAtDetection(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.HangPrograms(t)
	nettest.Within(t, "the choice", 40*time.Second, func() {
		fw, why, err := DetectBackend(nettest.Context(t), ChoiceAuto, "lc0", nettest.NewLog(t))
		if err != nil || fw.Name() != rule.NFTables || !strings.Contains(why, "no rules") && !strings.Contains(why, "cannot be used") {
			t.Errorf("%v, %q, %v", fw, why, err)
		}
	})
}

// TestDetectWithoutPermission removes CAP_NET_ADMIN from the thread.
func TestDetectWithoutPermission(t *testing.T) {
	nettest.NewNamespace(t) // its thread ends with the test
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	for _, c := range []Choice{ChoiceAuto, ChoiceIPTables, ChoiceNFTables} {
		_, _, err := DetectBackend(nettest.Context(t), c, "lc0", nettest.NewLog(t))
		if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "NET_ADMIN") {
			t.Errorf("%s: %v", c, err)
		}
	}
	if fw, _, err := DetectBackend(nettest.Context(t), ChoiceOff, "lc0", nettest.NewLog(t)); err != nil || fw.Apply(nettest.Context(t), nil) != nil {
		t.Errorf("off: %v", err)
	}
	// The kernel's own answer, where the capability is there but not for this namespace.
	err := nftables.New("lc0", nil).Try(nettest.Context(t))
	if !errors.Is(err, unix.EPERM) {
		t.Errorf("nftables: %v, want EPERM", err)
	}
}

// TestDetectLocked holds the xtables lock: the node's backend cannot be found then, and must not be guessed.
func TestDetectLocked(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.Need(t, nettest.IPTables...)
	nettest.Run(t, "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT")
	lock := nettest.XtablesLock(t)
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	d := detection{owner: "lc0", log: nettest.NewLog(t), found: iptables.Find(t.Context()), wait: time.Second}
	if fw, why, err := d.auto(nettest.Context(t)); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("auto: %v, %q, %v, want ErrLocked", fw, why, err)
	}
	if fw, why, err := d.iptables(nettest.Context(t)); !errors.Is(err, rule.ErrLocked) {
		t.Errorf("iptables: %v, %q, %v, want ErrLocked", fw, why, err)
	}
}

// TestAllBackends moves an owner's rules from each backend to each other.
func TestAllBackends(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.ForeignRules(t)
	before := nettest.Ruleset(t)
	all := AllBackends(nettest.Context(t), "lc0")
	var names []string
	for _, fw := range all {
		names = append(names, fw.Name())
	}
	if !slices.Equal(names, backends) {
		t.Fatalf("got %v, want %v", names, backends)
	}
	rules := testSpec().Plan(PlanOptions{})
	for _, from := range all {
		for _, to := range all {
			if from == to {
				continue
			}
			apply(t, from, rules)
			apply(t, to, rules)
			for _, other := range all {
				if other == to {
					continue
				}
				removed, err := other.Remove(nettest.Context(t))
				if err != nil || (len(removed) > 0) != (other == from) {
					t.Errorf("from %s to %s: %s removed %v, %v", from.Name(), to.Name(), other.Name(), removed, err)
				}
			}
			clean(t, to, rules)
			if _, err := to.Remove(nettest.Context(t)); err != nil {
				t.Error(err)
			}
			if after := nettest.Ruleset(t); after != before {
				t.Fatalf("from %s to %s: left\n%s\nwant\n%s", from.Name(), to.Name(), after, before)
			}
		}
	}
}

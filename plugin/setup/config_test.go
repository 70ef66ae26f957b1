package setup

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet"
)

func ip(s string) netip.Addr     { return netip.MustParseAddr(s) }
func ap(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
func ptr[T any](v T) *T          { return &v }
func onNoLink(netip.Addr) string { return "" }
func nodeFlags(ips ...string) Flags {
	f := Flags{SetupInterface: true, SetupIPTables: true, Port: 53}
	for _, s := range ips {
		f.LocalIPs = append(f.LocalIPs, ip(s))
	}
	return f
}

func TestParse(t *testing.T) {
	c := caddy.NewTestController("dns", `setup {
		interface lc0
		address 169.254.25.10 fd00::10
		address 169.254.20.10
		notrack nftables
		fallback 10.0.0.1 10.0.0.2:5353 [fd00::2]:53 fd00::3
		check 5s
		on_exit remove
	}`)
	got, err := parseSetup(c)
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		Where:     got.Where,
		Interface: "lc0",
		Addresses: []netip.Addr{ip("169.254.25.10"), ip("fd00::10"), ip("169.254.20.10")},
		Notrack:   nodenet.ChoiceNFTables,
		Fallback:  []netip.AddrPort{ap("10.0.0.1:53"), ap("10.0.0.2:5353"), ap("[fd00::2]:53"), ap("[fd00::3]:53")},
		Check:     5 * time.Second,
		OnExit:    nodenet.ExitRemove,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	if !strings.HasSuffix(got.Where, ":1") {
		t.Errorf("Where = %q, want line 1", got.Where)
	}
}

// A list in an environment variable is one argument for the Corefile; an unset one is an empty argument.
func TestParseFallbackFromEnvironment(t *testing.T) {
	for value, want := range map[string]int{"": 0, "none": 0, "10.0.0.1": 1, "10.0.0.1 10.0.0.2": 2, "10.0.0.1, 10.0.0.2": 2} {
		c, err := parseSetup(caddy.NewTestController("dns", fmt.Sprintf("setup {\n fallback %q\n}", value)))
		if err != nil || len(c.Fallback) != want {
			t.Errorf("with %q: %v, %v, want %d servers", value, c, err, want)
		}
	}
}

// A Service in place of addresses, or beside those that serve until the API server has answered.
func TestParseFallbackToService(t *testing.T) {
	kubeDNS := kube.Service{Namespace: "kube-system", Name: "kube-dns"}
	for in, want := range map[string][]netip.AddrPort{
		"kube-system/kube-dns":                    nil,
		"kube-system/kube-dns 10.0.0.1 [fd00::1]": {ap("10.0.0.1:53"), ap("[fd00::1]:53")},
		`"10.0.0.1:5353, kube-system/kube-dns"`:   {ap("10.0.0.1:5353")},
	} {
		c, err := parseSetup(caddy.NewTestController("dns", "setup {\n fallback "+in+"\n}"))
		if err != nil || c.Follow != kubeDNS || !reflect.DeepEqual(c.Fallback, want) {
			t.Errorf("%s: %+v, %v", in, c, err)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"setup eth0":                           `setup takes a block of properties, not the argument "eth0"`,
		"setup {\n interface\n}":               "interface takes one value, found 0",
		"setup {\n interface a b\n}":           "interface takes one value, found 2",
		"setup {\n address\n}":                 "address takes one IP address or more",
		"setup {\n address localhost\n}":       `address "localhost" is not an IP address`,
		"setup {\n notrack\n}":                 "notrack takes one value",
		"setup {\n notrack yes\n}":             `notrack "yes": accepted are auto, iptables, nftables, off`,
		"setup {\n fallback none 10.0.0.1\n}":  `fallback "none": accepted are none, or NAMESPACE/SERVICE and addresses IP or IP:PORT`,
		"setup {\n fallback 10.0.0.1:99999\n}": `fallback "10.0.0.1:99999": accepted are`,
		"setup {\n fallback kube-dns/\n}":      `Testfile:2 - Error during parsing: fallback "kube-dns/" is not NAMESPACE/SERVICE, each of 1 to 63 small letters`,
		"setup {\n fallback a/b c/d\n}":        `Testfile:2 - Error during parsing: fallback "c/d": one Service can be followed, and that is a/b`,
		"setup {\n fallback kube-dns\n}":       `fallback "kube-dns": accepted are none, or NAMESPACE/SERVICE`,
		"setup {\n fallback none a/b\n}":       `fallback "none": accepted are none`,
		"setup {\n check 10\n}":                `check "10": a duration of at least 1s is accepted`,
		"setup {\n check 10ms\n}":              `check "10ms": a duration of at least 1s is accepted`,
		"setup {\n on_exit stay\n}":            `on_exit "stay": accepted are keep, remove`,
		"setup {\n adress 10.0.0.1\n}":         `unknown property "adress" of setup: accepted are interface, address`,
		"setup\nsetup":                         "setup may occur only once in the Corefile: the other one is at",
	} {
		_, err := parseSetup(caddy.NewTestController("dns", in))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

func TestSpecOf(t *testing.T) {
	base := nodenet.Spec{
		Interface: "nodelocaldns", ManageInterface: true, Addresses: []netip.Addr{ip("169.254.25.10")}, Port: 53,
		Notrack: nodenet.ChoiceAuto, Check: nodenet.DefaultCheck, OnExit: nodenet.ExitRemove,
	}
	with := func(change func(*nodenet.Spec)) nodenet.Spec {
		s := base
		change(&s)
		return s
	}
	local := nodeFlags("169.254.25.10")
	fallback := []netip.AddrPort{ap("10.233.74.65:53")}
	for _, tt := range []struct {
		name   string
		flags  func(*Flags)
		config *Config
		listen listening
		linkOf func(netip.Addr) string
		want   nodenet.Spec
	}{
		{name: "node-cache's command line", want: base},
		{name: "the Corefile's health address", listen: listening{health: []netip.AddrPort{ap("169.254.25.10:9254")}},
			want: with(func(s *nodenet.Spec) { s.Health = []netip.AddrPort{ap("169.254.25.10:9254")} })},
		{name: "health-port given", flags: func(f *Flags) { f.HealthPort = ptr(uint16(8080)) },
			want: with(func(s *nodenet.Spec) { s.Health = []netip.AddrPort{ap("0.0.0.0:8080")} })},
		{name: "a fallback keeps the state at exit", config: &Config{Fallback: fallback},
			want: with(func(s *nodenet.Spec) { s.Fallback, s.OnExit = fallback, nodenet.ExitKeep })},
		{name: "a Service as the fallback keeps the state, before anything is known", config: &Config{Follow: kube.Service{Namespace: "a", Name: "b"}},
			want: with(func(s *nodenet.Spec) { s.OnExit = nodenet.ExitKeep })},
		{name: "on_exit wins over the default", config: &Config{Fallback: fallback, OnExit: nodenet.ExitRemove},
			want: with(func(s *nodenet.Spec) { s.Fallback = fallback })},
		{name: "skipteardown=false overrides on_exit", config: &Config{OnExit: nodenet.ExitKeep},
			flags: func(f *Flags) { f.SkipTeardown = ptr(false) }, want: base},
		{name: "skipteardown overrides the default", flags: func(f *Flags) { f.SkipTeardown = ptr(true) },
			want: with(func(s *nodenet.Spec) { s.OnExit = nodenet.ExitKeep })},
		{name: "the interface flag", flags: func(f *Flags) { f.Interface = ptr("dns0") },
			want: with(func(s *nodenet.Spec) { s.Interface = "dns0" })},
		{name: "the directive wins over the interface flag", flags: func(f *Flags) { f.Interface = ptr("dns0") },
			config: &Config{Interface: "dns1"}, want: with(func(s *nodenet.Spec) { s.Interface = "dns1" })},
		{name: "no interface of ours", flags: func(f *Flags) { f.SetupInterface = false },
			want: with(func(s *nodenet.Spec) { s.ManageInterface = false })},
		{name: "no rules", flags: func(f *Flags) { f.SetupIPTables = false }, config: &Config{Notrack: nodenet.ChoiceNFTables},
			want: with(func(s *nodenet.Spec) { s.Notrack = nodenet.ChoiceOff })},
		{name: "syncinterval", flags: func(f *Flags) { f.SyncInterval = ptr(time.Minute) },
			want: with(func(s *nodenet.Spec) { s.Check = time.Minute })},
		{name: "check wins over syncinterval", flags: func(f *Flags) { f.SyncInterval = ptr(time.Minute) },
			config: &Config{Check: 5 * time.Second}, want: with(func(s *nodenet.Spec) { s.Check = 5 * time.Second })},
		{name: "addresses of flag and directive, each once", config: &Config{Addresses: []netip.Addr{ip("fd00::10"), ip("169.254.25.10")}},
			want: with(func(s *nodenet.Spec) { s.Addresses = []netip.Addr{ip("169.254.25.10"), ip("fd00::10")} })},
		{name: "the directive alone, with the addresses that are bound", flags: func(f *Flags) { f.LocalIPs = nil }, config: &Config{},
			listen: listening{bound: []netip.Addr{ip("127.0.0.1"), ip("169.254.25.10"), ip("fd00::10")}},
			linkOf: func(a netip.Addr) string {
				return map[netip.Addr]string{ip("127.0.0.1"): "lo", ip("fd00::10"): "localcache"}[a]
			},
			want: with(func(s *nodenet.Spec) {
				s.Interface, s.Addresses = "localcache", []netip.Addr{ip("169.254.25.10"), ip("fd00::10")}
			})},
		{name: "a wildcard bind", listen: listening{wildcard: true},
			want: with(func(s *nodenet.Spec) { s.Wildcard = true })},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := local
			if tt.flags != nil {
				tt.flags(&f)
			}
			if tt.linkOf == nil {
				tt.linkOf = onNoLink
			}
			got, err := specOf(f, tt.config, tt.listen, tt.linkOf)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestSpecOfErrors(t *testing.T) {
	if _, err := specOf(nodeFlags(), nil, listening{}, onNoLink); !errors.Is(err, errNothing) {
		t.Errorf("without flags and directive: %v, want errNothing", err)
	}
	for want, c := range map[string]*Config{
		"Corefile:3: setup: no local address: give -localip, bind to one, or name one with address": {Where: "Corefile:3"},
		"Corefile:3: setup: interface name \"a/b\"":                                                 {Where: "Corefile:3", Interface: "a/b", Addresses: []netip.Addr{ip("169.254.25.10")}},
	} {
		if _, err := specOf(nodeFlags(), c, listening{}, onNoLink); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f := nodeFlags("169.254.25.10")
	f.SetupIPTables = false
	_, err := specOf(f, &Config{Where: "Corefile:3", Fallback: []netip.AddrPort{ap("10.0.0.1:53")}}, listening{}, onNoLink)
	if err == nil || err.Error() != "Corefile:3: fallback needs rules, but -setupiptables=false forbids them" {
		t.Errorf("a fallback without rules: %v", err)
	}
	follow := Config{Where: "Corefile:3", Follow: kube.Service{Namespace: "a", Name: "b"}}
	_, err = specOf(f, &follow, listening{}, onNoLink)
	if err == nil || err.Error() != "Corefile:3: fallback needs rules, but -setupiptables=false forbids them" {
		t.Errorf("a Service as the fallback without rules: %v", err)
	}
	follow.Notrack = nodenet.ChoiceOff
	_, err = specOf(nodeFlags("169.254.25.10"), &follow, listening{}, onNoLink)
	if err == nil || err.Error() != "Corefile:3: fallback needs rules: it cannot go with notrack off" {
		t.Errorf("a Service as the fallback with notrack off: %v", err)
	}
}

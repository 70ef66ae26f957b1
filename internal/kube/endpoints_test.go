package kube

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/kube/kubetest"
)

func TestParseService(t *testing.T) {
	if s, err := ParseService("kube-system/kube-dns"); err != nil || s != kubeDNS || s.String() != "kube-system/kube-dns" {
		t.Errorf("%v, %v", s, err)
	}
	for _, bad := range []string{"", "kube-dns", "/", "a/", "/a", "a/b/c", "A/b", "a/b.c", "-a/b", "a/b-", "a/" + strings.Repeat("b", 64), "a/b?x=1", "../b"} {
		if s, err := ParseService(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, s)
		}
	}
}

func decoded(t *testing.T, o kubetest.Object) slice {
	t.Helper()
	raw, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	_, s, err := decodeSlice(raw)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Which endpoints are used, by their conditions (discovery/v1 EndpointConditions), in each family by itself, and
// which stay.
func TestResolve(t *testing.T) {
	yes, no := true, false
	at := func(addr string, ready, serving, terminating *bool) kubetest.Endpoint {
		return kubetest.Endpoint{Address: addr, Ready: ready, Serving: serving, Terminating: terminating}
	}
	for _, c := range []struct {
		name   string
		last   string
		slices [][]kubetest.Endpoint
		want   string
		kept   bool
	}{
		{"nothing ever", "", nil, "", false},
		{"ready", "", [][]kubetest.Endpoint{{at("10.0.0.2", &yes, &yes, &no), at("10.0.0.1", &yes, nil, nil)}}, "10.0.0.1 10.0.0.2", false},
		{"no conditions mean ready", "", [][]kubetest.Endpoint{{at("10.0.0.1", nil, nil, nil)}}, "10.0.0.1", false},
		{"in two slices, once", "", [][]kubetest.Endpoint{kubetest.Ready("10.0.0.1"), kubetest.Ready("10.0.0.1", "10.0.0.2")}, "10.0.0.1 10.0.0.2", false},
		{"one that terminates beside a ready one", "", [][]kubetest.Endpoint{{at("10.0.0.1", &no, &yes, &yes), at("10.0.0.2", &yes, &yes, &no)}}, "10.0.0.2", false},
		{"none but one that terminates and serves", "10.0.0.2", [][]kubetest.Endpoint{{at("10.0.0.1", &no, &yes, &yes), at("10.0.0.2", &no, &no, &yes)}}, "10.0.0.1", false},
		{"serving, not ready, not terminating", "10.0.0.2", [][]kubetest.Endpoint{{at("10.0.0.1", &no, &yes, &no)}}, "10.0.0.2", true},
		{"none ready: the last stay", "10.0.0.1 10.0.0.2", [][]kubetest.Endpoint{{at("10.0.0.1", &no, &no, &no)}}, "10.0.0.1 10.0.0.2", true},
		{"scaled to none: the last stay", "10.0.0.1", [][]kubetest.Endpoint{{}}, "10.0.0.1", true},
		{"the Service is gone: the last stay", "10.0.0.1 fd00::1", nil, "10.0.0.1 fd00::1", true},
		{"one family alone", "10.0.0.1 fd00::1", [][]kubetest.Endpoint{kubetest.Ready("fd00::2")}, "10.0.0.1 fd00::2", true},
		{"both families", "10.0.0.1", [][]kubetest.Endpoint{kubetest.Ready("fd00::2"), kubetest.Ready("10.0.0.9")}, "10.0.0.9 fd00::2", false},
		{"what cannot be an endpoint", "", [][]kubetest.Endpoint{kubetest.Ready("127.0.0.1"), kubetest.Ready("::1"), kubetest.Ready("169.254.25.10"),
			kubetest.Ready("0.0.0.0"), kubetest.Ready("224.0.0.1"), kubetest.Ready("kube-dns.example.org"), kubetest.Ready("fe80::1%eth0"), kubetest.Ready("::ffff:10.0.0.1")}, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := map[string]slice{}
			for i, eps := range c.slices {
				all[fmt.Sprint(i)] = decoded(t, kubetest.Slice("kube-system", "kube-dns", fmt.Sprint(i), eps...))
			}
			list := func(s string) (l []netip.AddrPort) {
				for _, a := range strings.Fields(s) {
					l = append(l, netip.AddrPortFrom(netip.MustParseAddr(a), 53))
				}
				return l
			}
			got := resolve(all, Endpoints{UDP: list(c.last), TCP: list(c.last)}, "n1")
			if want := list(c.want); !slices.Equal(got.UDP, want) || !slices.Equal(got.TCP, want) || got.Kept != c.kept {
				t.Errorf("got %+v, want %v, kept %t", got, want, c.kept)
			}
		})
	}
}

func TestDNSPorts(t *testing.T) {
	port := func(name, protocol string, n int32) slicePort { return slicePort{name, protocol, &n} }
	for _, c := range []struct {
		name     string
		ports    []slicePort
		udp, tcp uint16
	}{
		{"kube-dns", []slicePort{port("metrics", "TCP", 9153), port("dns", "UDP", 53), port("dns-tcp", "TCP", 53)}, 53, 53},
		{"other numbers", []slicePort{port("dns", "UDP", 5353), port("dns-tcp", "TCP", 5354), port("x", "TCP", 53)}, 5353, 5354},
		{"a chart's names", []slicePort{port("udp-53", "UDP", 1053), port("tcp-53", "TCP", 1053), port("metrics", "TCP", 9153)}, 1053, 1053},
		{"a name with the wrong protocol", []slicePort{port("dns", "TCP", 53), port("dns-tcp", "UDP", 54)}, 54, 53},
		{"protocol left out is TCP", []slicePort{port("dns-tcp", "", 53)}, 0, 53},
		{"UDP alone", []slicePort{port("", "UDP", 53)}, 53, 0},
		{"nothing to tell them apart", []slicePort{port("a", "UDP", 1), port("b", "UDP", 2), port("c", "TCP", 3), port("d", "TCP", 4)}, 0, 0},
		{"all ports, and no port", []slicePort{{Name: "dns", Protocol: "UDP"}, port("dns-tcp", "TCP", 0), port("x", "TCP", 70000)}, 0, 0},
	} {
		if udp, tcp := dnsPorts(c.ports); udp != c.udp || tcp != c.tcp {
			t.Errorf("%s: %d, %d, want %d, %d", c.name, udp, tcp, c.udp, c.tcp)
		}
	}
}

// Of many endpoints each node uses a few, all nodes together use all, and the loss of one changes one.
func TestFewEndpoints(t *testing.T) {
	var all []netip.AddrPort
	for i := range 300 {
		all = append(all, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 53))
	}
	times := map[netip.AddrPort]int{}
	for n := range 400 {
		seed := fmt.Sprintf("node-%d", n)
		got := selectEndpoints(slices.Clone(all), seed)
		if len(got) != MaxEndpoints || !slices.IsSortedFunc(got, netip.AddrPort.Compare) {
			t.Fatalf("%v", got)
		}
		for _, ap := range got {
			times[ap]++
		}
		without := slices.DeleteFunc(slices.Clone(all), func(ap netip.AddrPort) bool { return ap == got[0] })
		same := 0
		for _, ap := range selectEndpoints(without, seed) {
			if slices.Contains(got, ap) {
				same++
			}
		}
		if same != MaxEndpoints-1 {
			t.Fatalf("%d of %d stayed when one went", same, MaxEndpoints)
		}
	}
	// 400 nodes × 16 over 300 endpoints are 21 each.
	for _, ap := range all {
		if times[ap] < 5 || times[ap] > 50 {
			t.Errorf("%v is taken by %d nodes", ap, times[ap])
		}
	}
}

func TestBackoff(t *testing.T) {
	b := defaultBackoff()
	within := func(what string, n int, err error, least, most float64) {
		t.Helper()
		spread := map[string]bool{}
		for range 50 {
			d := b.after(n, err)
			if d.Seconds() < least || d.Seconds() > most {
				t.Fatalf("%s: %v, want %v to %v s", what, d, least, most)
			}
			spread[d.String()] = true
		}
		if len(spread) < 10 {
			t.Errorf("%s: all nodes come back at once", what)
		}
	}
	within("first", 1, errNotAPI, 0.125, 0.375)
	within("third", 3, errNotAPI, 0.5, 1.5)
	within("hundredth", 100, errNotAPI, 15, 45)
	within("forbidden", 1, &StatusError{Code: 403}, 30, 90)
	within("too many requests", 1, &StatusError{Code: 429, RetryAfter: seconds(7)}, 7, 15)
	within("a year", 1, &StatusError{Code: 503, RetryAfter: seconds(1 << 30)}, 300, 601)
	within("in the past", 1, &StatusError{Code: 503, RetryAfter: seconds(-5)}, 0.125, 0.375)
}

package pods

import (
	"net/netip"
	"sync"
	"testing"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func table() *Table {
	return NewTable([]Pod{
		{Namespace: "shop", Name: "web-1", UID: "u1", IPs: []netip.Addr{addr("10.244.1.5"), addr("fd00::5")}},
		{Namespace: "kube-system", Name: "proxy", UID: "u2", HostNetwork: true, IPs: []netip.Addr{addr("192.0.2.1")}},
		{Namespace: "kube-system", Name: "cache", UID: "u3", HostNetwork: true, IPs: []netip.Addr{addr("192.0.2.1"), addr("fd00::1")}},
	})
}

func TestTable(t *testing.T) {
	tab := table()
	for _, a := range []string{"10.244.1.5", "fd00::5", "::ffff:10.244.1.5"} {
		if p, ok := tab.Of(addr(a)); !ok || p.UID != "u1" {
			t.Errorf("%s: got %+v, want web-1", a, p)
		}
	}
	for _, a := range []string{"192.0.2.1", "fd00::1"} {
		if p, ok := tab.Of(addr(a)); !ok || !p.IsHost() {
			t.Errorf("%s: got %+v, want the host: who it was cannot be known", a, p)
		}
	}
	if p, ok := tab.Of(addr("10.244.1.6")); ok {
		t.Errorf("got %+v for an address that nobody has", p)
	}
	if p, ok := tab.Named("kube-system", "cache"); !ok || p.UID != "u3" || p.IsHost() {
		t.Errorf("got %+v", p)
	}
	if _, ok := tab.Named("shop", "cache"); ok {
		t.Error("found a pod in another namespace")
	}
	if known, _ := tab.Known(); !known || tab.Len() != 3 {
		t.Errorf("known %v, %d pods", known, tab.Len())
	}
}

// TestUnknown checks that without a source all methods work, and say why no pod is known.
func TestUnknown(t *testing.T) {
	var d Directory
	for _, tab := range []*Table{d.Table(), Unknown("no access")} {
		if known, reason := tab.Known(); known || reason == "" {
			t.Errorf("known %v, reason %q", known, reason)
		}
		if _, ok := tab.Of(addr("10.0.0.1")); ok || tab.Len() != 0 {
			t.Error("knows a pod")
		}
		if _, ok := tab.Named("a", "b"); ok {
			t.Error("knows a pod by name")
		}
	}
}

// TestDirectory checks that readers see an address move from one pod to another at once.
func TestDirectory(t *testing.T) {
	var d Directory
	a := addr("10.244.1.5")
	before, after := NewTable([]Pod{{Name: "old", UID: "1", IPs: []netip.Addr{a}}}), NewTable([]Pod{{Name: "new", UID: "2", IPs: []netip.Addr{a}}})
	d.Store(before)
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for range 1_000 {
				if p, ok := d.Table().Of(a); !ok || (p.Name == "old") != (p.UID == "1") {
					t.Errorf("got %+v", p)
					return
				}
			}
		})
	}
	d.Store(after)
	readers.Wait()
	if p, _ := d.Table().Of(a); p.UID != "2" {
		t.Errorf("got %+v", p)
	}
}

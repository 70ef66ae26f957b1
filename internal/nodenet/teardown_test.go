package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
)

func lines(r Report) []string {
	var s []string
	for _, i := range r.Items {
		s = append(s, i.String())
	}
	return s
}

func TestTeardown(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	ctx := context.Background()
	cfg := TeardownConfig{Log: nettest.NewLog(t), All: m.All}
	if r := Teardown(ctx, cfg); r.Err() != nil || r.Removed() || len(r.Items) != 6 {
		t.Errorf("where there is nothing: %q", lines(r))
	}

	p := newProcess(t, n, m)
	p.start(keeperSpec())
	m.set(func() { m.rules["memory-nftables nodelocaldns"] = keeperSpec().Plan(PlanOptions{}) })
	nettest.AddLink(t, &netlink.Bridge{}, "localcache", "10.1.0.1/24", "169.254.20.10/32")

	r := Teardown(ctx, cfg)
	var used *InUseError
	if !errors.As(r.Err(), &used) || !strings.Contains(used.Processes, fmt.Sprintf("(pid %d)", os.Getpid())) {
		t.Errorf("while a process is alive: %v", r.Err())
	}
	if !nettest.LinkExists(t, "nodelocaldns") || len(m.of(autoName, "nodelocaldns")) == 0 {
		t.Error("what is in use was removed")
	}

	p.die()
	r = Teardown(ctx, cfg)
	nettest.Must(t, r.Err())
	kind := p.k.Status().Kind
	count := len(keeperSpec().Plan(PlanOptions{}))
	want := []string{
		fmt.Sprintf("nodelocaldns: memory-auto: removed %d rules", count),
		fmt.Sprintf("nodelocaldns: memory-nftables: removed %d rules", count),
		fmt.Sprintf("nodelocaldns: interface: removed interface nodelocaldns (%s)", kind),
		"localcache: memory-auto: nothing to remove",
		"localcache: memory-nftables: nothing to remove",
		"localcache: interface: left in place: it carries 10.1.0.1/24, which localcache did not put there",
	}
	if got := lines(r); !slices.Equal(got, want) {
		t.Errorf("report\n%s\nof\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if nettest.LinkExists(t, "nodelocaldns") || !nettest.LinkExists(t, "localcache") {
		t.Error("links are not those of the report")
	}
}

func TestTeardownForce(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	p.start(keeperSpec())
	r := Teardown(context.Background(), TeardownConfig{Log: p.log, All: m.All, Force: true, Interfaces: []string{"nodelocaldns"}})
	nettest.Must(t, r.Err())
	if nettest.LinkExists(t, "nodelocaldns") || len(m.of(autoName, "nodelocaldns")) > 0 {
		t.Errorf("something is left: %q", lines(r))
	}
}

// A step that fails does not keep the others from being done, but for the interface: rules that are left
// need it.
func TestTeardownFails(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	p.start(keeperSpec())
	p.die()
	m.set(func() { m.removeErr = unix.EPERM })
	r := Teardown(context.Background(), TeardownConfig{Log: p.log, All: m.All, Interfaces: []string{"nodelocaldns", "not a name"}})
	if err := r.Err(); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "not a name") {
		t.Errorf("error %v", err)
	}
	if note := "left in place: the rules that could not be removed"; !slices.ContainsFunc(lines(r), func(l string) bool {
		return strings.HasPrefix(l, "nodelocaldns: interface: "+note)
	}) {
		t.Errorf("no item says %q: %q", note, lines(r))
	}
	if !nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface was removed before its rules")
	}
	r = Teardown(context.Background(), TeardownConfig{Log: p.log, All: m.All, Interfaces: []string{"nodelocaldns"}, Force: true})
	if err := r.Err(); !errors.Is(err, unix.EPERM) || nettest.LinkExists(t, "nodelocaldns") {
		t.Errorf("by force: %q", lines(r))
	}
}

// A node-cache that is alive has no names that say so, but sockets.
func TestTeardownNodeCacheAlive(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32", "10.96.0.10/32")
	nettest.Must(t, netlink.LinkSetAlias(linkNamed(t, "nodelocaldns"), link.Alias))
	pid, end := nettest.StartChild(t, nettest.ChildSpec{Listen: []netip.AddrPort{netip.AddrPortFrom(nettest.Local4b, process.DNSPort)}})
	cfg := TeardownConfig{Log: nettest.NewLog(t), All: newMemory().All, Interfaces: []string{"nodelocaldns"}}
	r := Teardown(context.Background(), cfg)
	var used *InUseError
	want := fmt.Sprintf("(pid %d) at 10.96.0.10:53", pid)
	if !errors.As(r.Err(), &used) || !strings.Contains(used.Processes, want) {
		t.Errorf("error %v, want one that names %q", r.Err(), want)
	}
	if got := nettest.AddrsOn(t, "nodelocaldns"); len(got) != 2 {
		t.Errorf("under a living process, only %v were left", got)
	}
	end()
	nettest.Must(t, Teardown(context.Background(), cfg).Err())
	if nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
}

func TestTeardownNodeCacheAliveForce(t *testing.T) {
	nettest.NewNamespace(t)
	nettest.AddLink(t, &netlink.Bridge{}, "nodelocaldns", "169.254.25.10/32")
	nettest.Must(t, netlink.LinkSetAlias(linkNamed(t, "nodelocaldns"), link.Alias))
	nettest.StartChild(t, nettest.ChildSpec{Listen: []netip.AddrPort{netip.AddrPortFrom(nettest.Local4, process.DNSPort)}})
	nettest.Must(t, Teardown(context.Background(), TeardownConfig{Log: nettest.NewLog(t), All: newMemory().All, Interfaces: []string{"nodelocaldns"}, Force: true}).Err())
	if nettest.LinkExists(t, "nodelocaldns") {
		t.Error("the interface is still there")
	}
}

func linkNamed(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	nettest.Must(t, err)
	return l
}

package conntrack

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// createFlow puts an entry into the table of the calling thread's namespace. A TCP connection is an open one.
func createFlow(t *testing.T, protocol uint8, from, to string) {
	t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	f := &netlink.ConntrackFlow{
		FamilyType: familyOf(dst.Addr()),
		Forward: netlink.IPTuple{Protocol: protocol, SrcIP: src.Addr().AsSlice(), SrcPort: src.Port(),
			DstIP: dst.Addr().AsSlice(), DstPort: dst.Port()},
		Reverse: netlink.IPTuple{Protocol: protocol, SrcIP: dst.Addr().AsSlice(), SrcPort: dst.Port(),
			DstIP: src.Addr().AsSlice(), DstPort: src.Port()},
		TimeOut: 1000,
	}
	if protocol == unix.IPPROTO_TCP {
		const established = 3 // TCP_CONNTRACK_ESTABLISHED of linux/netfilter/nf_conntrack_tcp.h
		f.ProtoInfo = &netlink.ProtoInfoTCP{State: established}
	}
	nettest.Must(t, netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.FamilyType), f))
}

// The entries of our services are deleted, in every zone, and no others.
func TestForgetFlows(t *testing.T) {
	nettest.NewNamespace(t)
	ctx := context.Background()
	ours := []Service{
		{rule.UDP, netip.MustParseAddrPort("169.254.25.10:53")}, {rule.TCP, netip.MustParseAddrPort("169.254.25.10:53")},
		{rule.TCP, netip.MustParseAddrPort("[fd00:25::10]:53")},
	}
	const udp, tcp = unix.IPPROTO_UDP, unix.IPPROTO_TCP
	const many = 200 // more than one message of a dump, and one request of deletions, holds
	for i := range many {
		createFlow(t, udp, fmt.Sprintf("10.233.64.2:%d", 2000+i), "169.254.25.10:53")
		createFlow(t, tcp, fmt.Sprintf("10.233.64.2:%d", 2000+i), "169.254.25.10:53")
		createFlow(t, tcp, fmt.Sprintf("[fd00:64::2]:%d", 2000+i), "[fd00:25::10]:53")
	}
	sum := 3 * many
	if _, err := exec.LookPath("conntrack"); err == nil {
		nettest.Run(t, "conntrack -I -p udp -s 10.233.64.2 -d 169.254.25.10 --sport 2000 --dport 53 -t 1000 --zone 5")
		sum++
	}
	others4 := []string{
		"17 10.233.64.2:3000 169.254.25.10:5353", // another port
		"17 10.233.64.2:3001 10.233.0.3:53",      // another address
		"6 10.233.64.2:3002 169.254.25.10:9254",
		"17 169.254.25.10:53 10.233.64.2:3003", // from it
	}
	others6 := []string{"17 [fd00:64::2]:3000 [fd00:25::10]:53"} // of another service
	var want4, want6 []string
	for family, others := range map[*[]string][]string{&want4: others4, &want6: others6} {
		for _, o := range others {
			var protocol uint8
			var from, to string
			if _, err := fmt.Sscan(o, &protocol, &from, &to); err != nil {
				t.Fatal(err)
			}
			createFlow(t, protocol, from, to)
			*family = append(*family, o+" "+to)
		}
		slices.Sort(*family)
	}

	c, err := dialConntrack()
	nettest.Must(t, err)
	defer c.Close()
	for _, s := range ours {
		seen, ours := 0, 0
		nettest.Must(t, c.dump(ctx, s, func(attrs []byte) bool {
			seen++
			if _, ok := wanted(attrs, s); ok {
				ours++
			}
			return true
		}))
		t.Logf("%v: the kernel handed out %d entries, %d of them ours", s, seen, ours)
		if ours < many {
			t.Errorf("%v: the kernel handed out %d entries, %d of them ours, not %d", s, seen, ours, many)
		}
	}

	flows, err := findFlows(ctx, ours)
	nettest.Must(t, err)
	if len(flows) != sum {
		t.Errorf("found %d, want %d", len(flows), sum)
	}
	// One entry has expired, and another one has its tuple: neither is an error, nor deleted.
	if n, err := forgetFlows(ctx, flows[:1]); n != 1 || err != nil {
		t.Fatalf("deleted %d: %v", n, err)
	}
	if n, err := forgetFlows(ctx, flows); n != sum-1 || err != nil {
		t.Errorf("deleted %d of %d: %v", n, sum-1, err)
	}
	if got := nettest.Tracked(t, netlink.FAMILY_V4); !slices.Equal(got, want4) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want4, "\n"))
	}
	if got := nettest.Tracked(t, netlink.FAMILY_V6); !slices.Equal(got, want6) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want6, "\n"))
	}
	createFlow(t, udp, "10.233.64.2:2000", "169.254.25.10:53")
	if n, err := forgetFlows(ctx, flows); n != 0 || err != nil {
		t.Errorf("deleted %d of the same names later: %v", n, err)
	}
}

// A broken message of the kernel's, or one of another kernel, names no flow.
func FuzzWantedFlow(f *testing.F) {
	to := Service{Proto: rule.UDP, At: netip.MustParseAddrPort("169.254.25.10:53")}
	f.Add([]byte{20, 0, 1, 0x80, 16, 0, 1, 0x80, 8, 0, 2, 0, 169, 254, 25, 10})
	f.Add([]byte{3, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		if flow, ok := wanted(b, to); ok && len(flow.Name) > len(b) {
			t.Errorf("a name of %d octets out of %d", len(flow.Name), len(b))
		}
	})
}

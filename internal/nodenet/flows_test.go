package nodenet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
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
	must(t, netlink.ConntrackCreate(netlink.ConntrackTable, netlink.InetFamily(f.FamilyType), f))
}

// tracked lists the entries of a family as PROTOCOL FROM TO SERVER, sorted.
func tracked(t *testing.T, family netlink.InetFamily) []string {
	t.Helper()
	flows, err := netlink.ConntrackTableList(netlink.ConntrackTable, family)
	must(t, err)
	var lines []string
	for _, f := range flows {
		lines = append(lines, fmt.Sprintf("%d %s %s %s", f.Forward.Protocol,
			net.JoinHostPort(f.Forward.SrcIP.String(), fmt.Sprint(f.Forward.SrcPort)),
			net.JoinHostPort(f.Forward.DstIP.String(), fmt.Sprint(f.Forward.DstPort)),
			net.JoinHostPort(f.Reverse.SrcIP.String(), fmt.Sprint(f.Reverse.SrcPort))))
	}
	slices.Sort(lines)
	return lines
}

// The entries of our services are deleted, in every zone, and no others.
func TestForgetFlows(t *testing.T) {
	newNamespace(t)
	ctx := context.Background()
	ours := []service{
		{UDP, netip.MustParseAddrPort("169.254.25.10:53")}, {TCP, netip.MustParseAddrPort("169.254.25.10:53")},
		{TCP, netip.MustParseAddrPort("[fd00:25::10]:53")},
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
		sh(t, "conntrack -I -p udp -s 10.233.64.2 -d 169.254.25.10 --sport 2000 --dport 53 -t 1000 --zone 5")
		sum++
	}
	others4 := []string{
		"17 10.233.64.2:3000 169.254.25.10:5353", // another port
		"17 10.233.64.2:3001 10.233.0.3:53",      // another address
		"6 10.233.64.2:3002 169.254.25.10:9254",
		"17 169.254.25.10:53 10.233.64.2:3003", // from it
	}
	others6 := []string{"17 [fd00:64::2]:3000 [fd00:25::10]:53"} // not among ours
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
	must(t, err)
	defer c.close()
	for _, s := range ours {
		seen, ours := 0, 0
		must(t, c.dump(ctx, s, func(attrs []byte) bool {
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
	must(t, err)
	if len(flows) != sum {
		t.Errorf("found %d, want %d", len(flows), sum)
	}
	// One has ended by itself, and another has come in its place: neither is an error, nor deleted.
	if n, err := forgetFlows(ctx, flows[:1]); n != 1 || err != nil {
		t.Fatalf("deleted %d: %v", n, err)
	}
	if n, err := forgetFlows(ctx, flows); n != sum-1 || err != nil {
		t.Errorf("deleted %d of %d: %v", n, sum-1, err)
	}
	if got := tracked(t, netlink.FAMILY_V4); !slices.Equal(got, want4) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want4, "\n"))
	}
	if got := tracked(t, netlink.FAMILY_V6); !slices.Equal(got, want6) {
		t.Errorf("left:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want6, "\n"))
	}
	createFlow(t, udp, "10.233.64.2:2000", "169.254.25.10:53")
	if n, err := forgetFlows(ctx, flows); n != 0 || err != nil {
		t.Errorf("deleted %d of the same names later: %v", n, err)
	}
}

// A broken message of the kernel's, or one of another kernel, names no flow.
func FuzzWantedFlow(f *testing.F) {
	to := service{UDP, netip.MustParseAddrPort("169.254.25.10:53")}
	f.Add([]byte{20, 0, 1, 0x80, 16, 0, 1, 0x80, 8, 0, 2, 0, 169, 254, 25, 10})
	f.Add([]byte{3, 0, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		if flow, ok := wanted(b, to); ok && len(flow.name) > len(b) {
			t.Errorf("a name of %d octets out of %d", len(flow.name), len(b))
		}
	})
}

// dialFrom opens a client's socket with a given source port, which may have been another's just before.
func (n *namespace) dialFrom(network, from, to string) (c net.Conn, err error) {
	at := netip.MustParseAddrPort(from)
	d := net.Dialer{Timeout: 1500 * time.Millisecond, LocalAddr: net.Addr(net.TCPAddrFromAddrPort(at)),
		Control: func(_, _ string, c syscall.RawConn) error {
			var set error
			err := c.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			if err == nil {
				err = set
			}
			return err
		}}
	if network == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(at)
	}
	n.do(func() { c, err = d.DialContext(n.t.Context(), network, to) })
	if err == nil {
		n.t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// askFrom asks from a given source port and returns the name of the server, or what went wrong.
func (n *namespace) askFrom(network, from, to string) (string, net.Conn) {
	c, err := n.dialFrom(network, from, to)
	if err != nil {
		return err.Error(), nil
	}
	return ask(c), c
}

// lose has the node forward nothing to a server any more, as when its pod is gone.
func lose(t *testing.T, server netip.Addr) {
	t.Helper()
	must(t, netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(server.AsSlice()), Type: unix.RTN_BLACKHOLE}))
}

// TestOldFlows: a client lives in the fallback when a process comes; that process dies, and the fallback leads to
// another server, because the first one is gone. A client with the same port, over TCP a new connection, is sent to
// the server that is gone unless the process had connection tracking forget the flow.
func TestOldFlows(t *testing.T) {
	for _, backend := range backends {
		for _, forgets := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/forgets=%v", backend, forgets), func(t *testing.T) {
				top := newTopology(t)
				fw := openBackend(t, backend, "lc0")
				all := testSpec()
				for i, f := range all.Fallback {
					top.dns.serve([]string{"first", "second"}[i%2], f.String())
				}
				begin := func(servers ...int) *process {
					p := newProcess(t, top.node, nil)
					p.k.cfg.Detect = func(context.Context, Choice, string, Logger) (Firewall, string, error) {
						return fw, "the test asks for it", nil
					}
					p.k.cfg.All = func(context.Context, string) []Firewall { return []Firewall{fw} }
					p.k.flowsRest = 50 * time.Millisecond
					spec := all
					spec.Fallback = nil
					for _, i := range servers {
						spec.Fallback = append(spec.Fallback, all.Fallback[i])
					}
					p.start(spec)
					return p
				}
				type client struct{ network, from, to string }
				var clients []client
				for _, network := range []string{"udp", "tcp"} {
					clients = append(clients, client{network, "10.233.64.2:4000", "169.254.25.10:53"},
						client{network, "[fd00:64::2]:4000", "[fd00:25::10]:53"})
				}
				begin(0, 2).die()
				var conns []net.Conn
				for _, c := range clients {
					who, conn := top.pod.askFrom(c.network, c.from, c.to)
					if who != "first" {
						t.Fatalf("%+v in the fallback: %s", c, who)
					}
					conns = append(conns, conn)
				}

				var locals []*server
				for _, a := range all.Addresses {
					locals = append(locals, top.node.serve("local", net.JoinHostPort(a.String(), "53")))
				}
				p := begin(1, 3)
				for i, c := range clients {
					who := ask(conns[i])
					if reset := strings.HasSuffix(who, unix.ECONNRESET.Error()); who != "local" && (c.network == "udp" || !reset) {
						t.Errorf("%+v when the process is there: %s", c, who)
					}
					conns[i].Close()
				}
				count := func() int { return conntracked(t, all.Addresses[0]) + conntracked(t, all.Addresses[1]) }
				if n := count(); n != len(clients) {
					t.Errorf("%d entries, want %d", n, len(clients))
				}
				t.Logf("left behind: %q %q", tracked(t, netlink.FAMILY_V4), tracked(t, netlink.FAMILY_V6))
				if forgets {
					stop := p.run(top.node)
					eventually(t, "the entries are gone", func() bool { return count() == 0 })
					stop()
				}
				lose(t, all.Fallback[0].Addr())
				lose(t, all.Fallback[2].Addr())
				p.die()
				for _, l := range locals {
					l.close()
				}
				answers := make([]string, len(clients))
				var asking sync.WaitGroup
				for i, c := range clients {
					asking.Go(func() { answers[i], _ = top.pod.askFrom(c.network, c.from, c.to) })
				}
				asking.Wait()
				for i, c := range clients {
					who := answers[i]
					t.Logf("%+v afterwards: %s", c, who)
					if forgets && who != "second" {
						t.Errorf("%+v, while the second server is the fallback: %s", c, who)
					}
					if !forgets && who == "second" {
						t.Errorf("%+v was not sent to the old server: there is nothing to mend", c)
					}
				}
			})
		}
	}
}

// An answer of the fallback that is on its way when sockets open is translated back, which takes its entry.
func TestOldFlowsRest(t *testing.T) {
	top := newTopology(t)
	fw := openBackend(t, nameNFTables, "lc0")
	spec := testSpec()
	spec.Addresses, spec.Fallback = spec.Addresses[:1], spec.Fallback[:1]
	var slow net.PacketConn
	var err error
	top.dns.do(func() { slow, err = net.ListenPacket("udp4", spec.Fallback[0].String()) })
	must(t, err)
	defer slow.Close()
	apply(t, fw, spec.Plan(PlanOptions{}))
	to := net.JoinHostPort(spec.Addresses[0].String(), "53")
	client, err := top.pod.dialFrom("udp", "10.233.64.2:4000", to)
	must(t, err)
	_, err = client.Write([]byte("query"))
	must(t, err)
	buf := make([]byte, 100)
	n, from, err := slow.ReadFrom(buf)
	must(t, err)

	top.node.serve("local", to)
	p := newProcess(t, top.node, nil)
	p.k.cfg.Detect = func(context.Context, Choice, string, Logger) (Firewall, string, error) { return fw, "", nil }
	p.k.cfg.All = func(context.Context, string) []Firewall { return nil }
	p.k.flowsRest = 700 * time.Millisecond
	p.start(spec)
	p.run(top.node)
	time.Sleep(200 * time.Millisecond)
	_, err = slow.WriteTo(buf[:n], from)
	must(t, err)
	must(t, client.SetReadDeadline(time.Now().Add(3*time.Second)))
	if _, err := client.Read(buf); err != nil {
		t.Errorf("the answer that was on its way: %v", err)
	}
	eventually(t, "the entry is gone", func() bool { return conntracked(t, spec.Addresses[0]) == 0 })
}

package nodenet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// lose has the node forward nothing to a server any more, as when its pod is gone.
func lose(t *testing.T, server netip.Addr) {
	t.Helper()
	nettest.Must(t, netlink.RouteAdd(&netlink.Route{Dst: netlink.NewIPNet(server.AsSlice()), Type: unix.RTN_BLACKHOLE}))
}

// TestOldFlows: a client is carried by the fallback when a process starts; that process dies, and the fallback uses
// another server, because the first one is gone. A client with the same port, over TCP a new connection, reaches the
// missing server unless the process deleted the conntrack entry.
func TestOldFlows(t *testing.T) {
	for _, backend := range backends {
		for _, forgets := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/forgets=%v", backend, forgets), func(t *testing.T) {
				top := nettest.NewTopology(t)
				fw := openBackend(t, backend, "lc0")
				all := testSpec()
				for i, f := range all.Fallback {
					top.DNS.Serve([]string{"first", "second"}[i%2], f.String())
				}
				begin := func(servers ...int) *testProcess {
					p := newProcess(t, top.Node, nil)
					p.k.cfg.Detect = func(context.Context, Choice, string, rule.Logger) (rule.Backend, string, error) {
						return fw, "the test asks for it", nil
					}
					p.k.cfg.All = func(context.Context, string) []rule.Backend { return []rule.Backend{fw} }
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
					who, conn := top.Pod.AskFrom(c.network, c.from, c.to)
					if who != "first" {
						t.Fatalf("%+v in the fallback: %s", c, who)
					}
					conns = append(conns, conn)
				}

				var locals []*nettest.Server
				for _, a := range all.Addresses {
					locals = append(locals, top.Node.Serve("local", net.JoinHostPort(a.String(), "53")))
				}
				p := begin(1, 3)
				for i, c := range clients {
					who := nettest.Ask(conns[i])
					if reset := strings.HasSuffix(who, unix.ECONNRESET.Error()); who != "local" && (c.network == "udp" || !reset) {
						t.Errorf("%+v when the process is there: %s", c, who)
					}
					conns[i].Close()
				}
				count := func() int { return nettest.Conntracked(t, all.Addresses[0]) + nettest.Conntracked(t, all.Addresses[1]) }
				if n := count(); n != len(clients) {
					t.Errorf("%d entries, want %d", n, len(clients))
				}
				t.Logf("left behind: %q %q", nettest.Tracked(t, netlink.FAMILY_V4), nettest.Tracked(t, netlink.FAMILY_V6))
				if forgets {
					stop := p.Run(top.Node)
					eventually(t, "the entries are gone", func() bool { return count() == 0 })
					stop()
				}
				lose(t, all.Fallback[0].Addr())
				lose(t, all.Fallback[2].Addr())
				p.die()
				for _, l := range locals {
					l.Close()
				}
				answers := make([]string, len(clients))
				var asking sync.WaitGroup
				for i, c := range clients {
					asking.Go(func() { answers[i], _ = top.Pod.AskFrom(c.network, c.from, c.to) })
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

// A reply of the fallback that is on its way when sockets open needs its entry to be translated back.
func TestOldFlowsRest(t *testing.T) {
	top := nettest.NewTopology(t)
	fw := openBackend(t, rule.NFTables, "lc0")
	spec := testSpec()
	spec.Addresses, spec.Fallback = spec.Addresses[:1], spec.Fallback[:1]
	var slow net.PacketConn
	var err error
	top.DNS.Do(func() { slow, err = net.ListenPacket("udp4", spec.Fallback[0].String()) })
	nettest.Must(t, err)
	defer slow.Close()
	apply(t, fw, spec.Plan(PlanOptions{}))
	to := net.JoinHostPort(spec.Addresses[0].String(), "53")
	client, err := top.Pod.DialFrom("udp", "10.233.64.2:4000", to)
	nettest.Must(t, err)
	_, err = client.Write([]byte("query"))
	nettest.Must(t, err)
	buf := make([]byte, 100)
	n, from, err := slow.ReadFrom(buf)
	nettest.Must(t, err)

	top.Node.Serve("local", to)
	p := newProcess(t, top.Node, nil)
	p.k.cfg.Detect = func(context.Context, Choice, string, rule.Logger) (rule.Backend, string, error) { return fw, "", nil }
	p.k.cfg.All = func(context.Context, string) []rule.Backend { return nil }
	p.k.flowsRest = 700 * time.Millisecond
	p.start(spec)
	p.Run(top.Node)
	time.Sleep(200 * time.Millisecond)
	_, err = slow.WriteTo(buf[:n], from)
	nettest.Must(t, err)
	nettest.Must(t, client.SetReadDeadline(time.Now().Add(3*time.Second)))
	if _, err := client.Read(buf); err != nil {
		t.Errorf("the answer that was on its way: %v", err)
	}
	eventually(t, "the entry is gone", func() bool { return nettest.Conntracked(t, spec.Addresses[0]) == 0 })
}

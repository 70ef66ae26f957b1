package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestConnectionsAreListed checks that the statistics list the open connections of each transport, with their pending
// queries and round-trip times.
func TestConnectionsAreListed(t *testing.T) {
	slow := func(m *dns.Msg, _ observe.Proto, _ int) fault {
		if m.Question[0].Name == "slow.example." {
			return fault{delay: time.Second}
		}
		return fault{}
	}
	plain := startFake(t, false, slow)
	secured, pool := startTLSFake(t, slow)
	g := openGroup(t, GroupConfig{MaxAttempts: 1}, plain) // no hedges, which open more
	overTLS, err := g.registry.Open(GroupConfig{MaxAttempts: 1, Servers: []ServerConfig{
		{Addr: secured.addr, TLS: &tls.Config{ServerName: "dns.example", RootCAs: pool}, TLSName: "dns.example", Health: NewHealth()},
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(overTLS.Close)
	defer g.stats.WatchConnections(g.registry.Connections)()
	for _, tt := range []struct {
		proto observe.Proto
		from  *fakeServer
		group *Group
	}{{observe.UDP, plain, g.Group}, {observe.TCP, plain, g.Group}, {observe.TLS, secured, overTLS}} {
		if s := g.stat(tt.from, tt.proto); s.OpenConnections != 0 {
			t.Errorf("%s: %d connections before the first question", tt.proto, s.OpenConnections)
		}
		on := sides{tt.group, g.registry, g.stats}
		client := observe.UDP
		if tt.proto == observe.TCP {
			client = observe.TCP
		}
		a := on.mustAnswer(t, "fast.example.", client)
		s := g.stat(tt.from, tt.proto)
		if s.OpenConnections != 1 || len(s.Connections) != 1 {
			t.Fatalf("%s: %d connections, %d listed, want 1", tt.proto, s.OpenConnections, len(s.Connections))
		}
		if c := s.Connections[0]; c.Local != a.Exchange.Local || c.RTT <= 0 || c.RTT > 10*time.Second || c.InFlight != 0 || c.Opened.Before(a.Exchange.Start) {
			t.Errorf("%s: %+v after %+v", tt.proto, c, a.Exchange)
		}
		var wg sync.WaitGroup
		wg.Go(func() { on.mustAnswer(t, "slow.example.", client) })
		eventually(t, "a question is under way over "+tt.proto.String(), func() bool {
			n := 0
			for _, c := range g.stat(tt.from, tt.proto).Connections {
				n += c.InFlight
			}
			return n > 0
		})
		wg.Wait()
	}
}

// TestListedConnectionsAfterReload: those of a server that stays are listed on, those of one that changed are of
// both while questions of the old configuration may come, and nothing is left of one that is gone.
func TestListedConnectionsAfterReload(t *testing.T) {
	stays, changes, goes := startFake(t, false, wellBehaved), startFake(t, false, wellBehaved), startFake(t, false, wellBehaved)
	old := openGroup(t, GroupConfig{ForceTCP: true, MaxAttempts: 1}, stays)
	defer old.stats.WatchConnections(old.registry.Connections)()
	open := func(servers ...ServerConfig) sides {
		t.Helper()
		g, err := old.registry.Open(GroupConfig{ForceTCP: true, MaxAttempts: 1, Servers: servers})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Close)
		return sides{g, old.registry, old.stats}
	}
	server := func(f *fakeServer) ServerConfig { return ServerConfig{Addr: f.addr, Health: NewHealth()} }
	oldChanges, oldGoes := open(server(changes)), open(server(goes))
	want := func(when string, numbers ...int) {
		t.Helper()
		for i, f := range []*fakeServer{stays, changes, goes} {
			if s := old.stat(f, observe.TCP); s.OpenConnections != numbers[i] || len(s.Connections) != numbers[i] {
				t.Errorf("%s: %d connections of server %d, want %d", when, s.OpenConnections, i, numbers[i])
			}
		}
	}
	first := old.mustAnswer(t, "one.example.", observe.TCP).Exchange.Local
	oldChanges.mustAnswer(t, "one.example.", observe.TCP)
	oldGoes.mustAnswer(t, "one.example.", observe.TCP)
	want("before", 1, 1, 1)

	changed := server(changes)
	changed.MaxIdle = 3
	keeps, renewed := open(server(stays)), open(changed)
	renewed.mustAnswer(t, "two.example.", observe.TCP)
	want("while both are open", 1, 2, 1)
	for _, g := range []sides{old, oldChanges, oldGoes} {
		g.Close()
	}
	old.registry.Wait()
	want("after the reload", 1, 1, 0)
	if list := old.stat(stays, observe.TCP).Connections; len(list) == 1 && list[0].Local != first {
		t.Errorf("the connection of the server that stays is %s and was %s", list[0].Local, first)
	}
	keeps.Close()
	renewed.Close()
	old.registry.Wait()
	want("at the end", 0, 0, 0)
}

// TestListWhileConnectionsComeAndGo is for the race detector: listing reads sockets that others close.
func TestListWhileConnectionsComeAndGo(t *testing.T) {
	f := startFake(t, false, func(_ *dns.Msg, _ observe.Proto, n int) fault { return fault{hangUp: n%5 == 0} })
	g := openGroup(t, GroupConfig{}, f)
	defer g.stats.WatchConnections(g.registry.Connections)()
	var wg sync.WaitGroup
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		wg.Go(func() {
			for range 300 {
				// The answer does not matter here.
				_, _ = g.Exchange(context.Background(), Query{Msg: ask("n.example."), Proto: proto})
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			return
		default:
			g.stats.Snapshot()
		}
	}
}

// startTLSFake is a fakeServer that speaks TLS alone, as dns.example, and the pool that trusts it.
func startTLSFake(t *testing.T, b behaviour) (*fakeServer, *x509.CertPool) {
	t.Helper()
	certificate, pool := selfSigned(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{t: t, open: make(map[net.Conn]struct{}), tcp: l, udp: new(net.UDPConn)}
	f.set(b)
	f.addr = l.Addr().(*net.TCPAddr).AddrPort()
	f.wg.Go(f.serveTCP)
	t.Cleanup(f.stop)
	return f, pool
}

package upstream

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestPipeliningOutOfOrder: questions that are asked later and answered earlierOf do not wait.
func TestPipeliningOutOfOrder(t *testing.T) {
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		if m.Question[0].Name == "slow.example." {
			return fault{delay: 300 * time.Millisecond}
		}
		return fault{}
	})
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	g.mustAnswer(t, "warm.example.", observe.TCP)

	slowDone := make(chan Answer, 1)
	go func() {
		a, _ := g.Exchange(context.Background(), Query{Msg: ask("slow.example."), Proto: observe.TCP})
		slowDone <- a
	}()
	for i := range 20 {
		g.mustAnswer(t, fmt.Sprintf("fast%d.example.", i), observe.UDP)
	}
	select {
	case <-slowDone:
		t.Fatal("the slow answer came before the fast ones")
	default:
	}
	if a := <-slowDone; a.Msg == nil || !a.Exchange.Reused {
		t.Error("the slow question was not pipelined on the warm connection")
	}
	if s := g.stat(f, observe.TCP); s.Reused < 20 {
		t.Errorf("%d exchanges on a used connection, want at least 20", s.Reused)
	}
}

// TestHeadOfLine checks that a slow name delays no other on a server that answers a connection serially.
func TestHeadOfLine(t *testing.T) {
	f := startFake(t, true, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		if m.Question[0].Name == "slow.example." {
			return fault{delay: time.Second}
		}
		return fault{}
	})
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	for i := range 5 {
		g.mustAnswer(t, fmt.Sprintf("warm%d.example.", i), observe.TCP)
	}
	var wg sync.WaitGroup
	wg.Go(func() { g.mustAnswer(t, "slow.example.", observe.TCP) })
	time.Sleep(100 * time.Millisecond) // the slow one is late by now
	start := time.Now()
	for i := range 50 {
		g.mustAnswer(t, fmt.Sprintf("fast%d.example.", i), observe.TCP)
	}
	if took := time.Since(start); took > 600*time.Millisecond {
		t.Errorf("50 fast names behind a slow one took %s", took)
	}
	wg.Wait()
	if n := f.dials.Load(); n < 2 || n > DefaultMaxConns {
		t.Errorf("%d connections, want 2 to %d", n, DefaultMaxConns)
	}
}

// TestFewConnections checks that 128 questions at a time to a server 1 ms away need no more than 16 connections.
func TestFewConnections(t *testing.T) {
	for _, serial := range []bool{false, true} {
		f := startFake(t, serial, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: time.Millisecond} })
		g := openGroup(t, GroupConfig{ForceTCP: true}, f)
		var wg sync.WaitGroup
		for w := range 128 {
			wg.Go(func() {
				for i := range 30 {
					g.mustAnswer(t, fmt.Sprintf("n%d-%d.example.", w, i), observe.UDP)
				}
			})
		}
		wg.Wait()
		// On a busy machine it may be silent for long enough to be probed, over separate connections.
		eventually(t, "the probes have ended", func() bool { return g.stat(f, observe.TCP).InFlight == 0 })
		probes := uint64(0)
		for _, n := range g.stat(f, observe.TCP).Probes {
			probes += n
		}
		t.Logf("serial %t: %d connections, %d probes", serial, f.dials.Load(), probes)
		if n := f.dials.Load() - int64(probes); n > 16 {
			t.Errorf("serial %t: %d connections were opened", serial, n)
		}
		if serial && f.dials.Load() < 4 {
			t.Errorf("a serial server got %d connections only", f.dials.Load())
		}
	}
}

// TestStreamFaults checks that the client gets a good answer from another connection, whatever the first one was.
func TestStreamFaults(t *testing.T) {
	for name, tt := range map[string]struct {
		first   fault
		outcome observe.Outcome
	}{
		"hang up":         {fault{hangUp: true}, observe.Reset},
		"reset":           {fault{reset: true}, observe.Reset},
		"half an answer":  {fault{half: true}, observe.Reset},
		"garbage":         {fault{garbage: true}, observe.BadReply},
		"wrong ID":        {fault{wrongID: true}, observe.BadReply},
		"wrong question":  {fault{wrongQuestion: true}, observe.BadReply},
		"octet by octet":  {fault{slow: true}, observe.Reset},
		"not a word":      {fault{drop: true}, observe.Timeout},
		"half, then slow": {fault{half: true, delay: 50 * time.Millisecond}, observe.Reset},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := startFake(t, false, func(_ *dns.Msg, _ observe.Proto, n int) fault {
				if n == 1 {
					return tt.first
				}
				return fault{}
			})
			g := openGroup(t, GroupConfig{ForceTCP: true}, f)
			a := g.mustAnswer(t, "name.example.", observe.TCP)
			if len(a.Attempts) < 2 {
				t.Errorf("attempts %+v", a.Attempts)
			}
			eventually(t, "the failure is reported", func() bool { return g.stat(f, observe.TCP).Outcomes[tt.outcome] == 1 })
			s := g.stat(f, observe.TCP)
			if s.Failures[0].Err == "" || s.Failures[0].Outcome != tt.outcome {
				t.Errorf("failure %+v", s.Failures[0])
			}
			if f.dials.Load() < 2 {
				t.Error("the retry used the connection that had failed")
			}
		})
	}
}

// TestStaleConnection: the server closes connections between questions. The failure is recorded, costs the client
// nothing, and does not put the server in doubt.
func TestStaleConnection(t *testing.T) {
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, n int) fault {
		return fault{hangUp: n%2 == 0} // the second question on each connection
	})
	g := openGroup(t, GroupConfig{ForceTCP: true, MaxAttempts: 1}, f)
	g.mustAnswer(t, "one.example.", observe.TCP)
	a := g.mustAnswer(t, "two.example.", observe.TCP)
	if len(a.Attempts) != 2 || a.Attempts[0].Outcome != observe.Reset || !a.Attempts[0].Reused {
		t.Errorf("attempts %+v, want a reset on a used connection first", a.Attempts)
	}
	s := g.stat(f, observe.TCP)
	if s.Outcomes[observe.Reset] != 1 || !s.Failures[0].Reused || s.Failures[0].ConnAge <= 0 {
		t.Errorf("statistics %+v", s.Failures)
	}
	if got := g.Status()[1].Standing; got != "healthy" {
		t.Errorf("the server is %s", got)
	}
}

func TestConnectionsRetireByAgeAndIdleness(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true, Servers: []ServerConfig{{
		Addr: f.addr, MaxAge: 200 * time.Millisecond, Expire: time.Minute, Health: NewHealth(),
	}}})
	for i := range 12 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP)
		time.Sleep(50 * time.Millisecond)
	}
	if n := f.dials.Load(); n < 3 || n > 8 {
		t.Errorf("%d connections in 600 ms with max_age 200 ms", n)
	}

	f = startFake(t, false, wellBehaved)
	g = openGroup(t, GroupConfig{ForceTCP: true, Servers: []ServerConfig{{
		Addr: f.addr, Expire: 100 * time.Millisecond, Health: NewHealth(),
	}}})
	g.mustAnswer(t, "one.example.", observe.TCP)
	eventually(t, "the idle connection is closed", func() bool { return f.connections() == 0 })
}

func TestMaxIdle(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 100 * time.Millisecond} })
	g := openGroup(t, GroupConfig{ForceTCP: true, Servers: []ServerConfig{{Addr: f.addr, MaxIdle: 2, Expire: time.Minute, Health: NewHealth()}}})
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP) })
		time.Sleep(25 * time.Millisecond) // the one before is late: a connection each
	}
	wg.Wait()
	if f.dials.Load() < 3 {
		t.Fatalf("%d connections came about, the test needs more", f.dials.Load())
	}
	eventually(t, "2 idle connections are left", func() bool { return f.connections() <= 2 })
}

// TestConnectionRetiresByCount pins the limit of a connection's questions.
func TestConnectionRetiresByCount(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	g.mustAnswer(t, "one.example.", observe.TCP)
	pool := g.servers[0].stream.pool.(*streamPool)
	pool.mu.Lock()
	pool.conns[0].total = streamQueries - 1
	pool.mu.Unlock()
	g.mustAnswer(t, "last.example.", observe.TCP)
	eventually(t, "the old connection is closed", func() bool { return f.connections() == 0 })
	if a := g.mustAnswer(t, "next.example.", observe.TCP); a.Exchange.Reused {
		t.Error("the next question was asked on the connection that had its share")
	}
}

// TestSlowServerPinsNoMemory: an announced length is not believed before the octets come.
func TestSlowServerPinsNoMemory(t *testing.T) {
	var f frames
	copy(f.space(), []byte{0xff, 0xff, 0})
	f.filled(3)
	for range 10 {
		f.space()
	}
	if cap(f.buffer) > frameBuffer {
		t.Errorf("%d octets for 3 that have come", cap(f.buffer))
	}
}

func TestUnreadableUpstreamIsStuck(t *testing.T) {
	// A server that accepts and does not read: the kernel's buffers fill up, then writes block.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g := openGroup(t, GroupConfig{ForceTCP: true, Budget: 500 * time.Millisecond, Servers: []ServerConfig{{
		Addr: l.Addr().(*net.TCPAddr).AddrPort(), ReadTimeout: 300 * time.Millisecond, MaxConns: 2, Health: NewHealth(),
	}}})
	start := time.Now()
	_, err = g.Exchange(context.Background(), Query{Msg: ask("a.example."), Proto: observe.TCP})
	var failed *Error
	if !errors.As(err, &failed) || failed.Cause != CauseTimeout {
		t.Fatalf("error %v", err)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the budget of 500 ms took %s", took)
	}
}

func TestTLS(t *testing.T) {
	certificate, pool := selfSigned(t)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{t: t, open: make(map[net.Conn]struct{}), tcp: l, udp: new(net.UDPConn)}
	f.set(wellBehaved)
	f.addr = l.Addr().(*net.TCPAddr).AddrPort()
	f.wg.Go(f.serveTCP)
	t.Cleanup(f.stop)

	server := func(name string) ServerConfig {
		return ServerConfig{Addr: f.addr, TLS: &tls.Config{ServerName: name, RootCAs: pool}, TLSName: name, Health: NewHealth()}
	}
	g := openGroup(t, GroupConfig{Servers: []ServerConfig{server("dns.example")}})
	for i := range 3 {
		if a := g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP); a.Exchange.Proto != observe.TLS || a.Exchange.Reused != (i > 0) {
			t.Errorf("exchange %+v", a.Exchange)
		}
	}
	g = openGroup(t, GroupConfig{Servers: []ServerConfig{server("other.example")}, MaxAttempts: 1})
	_, err = g.Exchange(context.Background(), Query{Msg: ask("a.example."), Proto: observe.UDP})
	var failed *Error
	if !errors.As(err, &failed) || failed.Cause != CauseBadReply {
		t.Errorf("a certificate for another name: %v", err)
	}
}

func selfSigned(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"dns.example"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// unusedAddr returns an address on which nothing listens.
func unusedAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// TestFewAnswersAConnection: a server that closes each connection after few answers gets many questions at once. Each
// is answered, on another connection.
func TestFewAnswersAConnection(t *testing.T) {
	for _, most := range []int64{1, 2, 5} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			f := startFake(t, true, wellBehaved)
			f.atMost.Store(most)
			g := openGroup(t, GroupConfig{ForceTCP: true}, f)
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() { g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP) })
			}
			wg.Wait()
		})
	}
}

// TestIdleConnectionsExpire checks that a connection that was idle for longer than Expire takes no question and is
// closed, although nothing else is due for a long time.
func TestIdleConnectionsExpire(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true, Servers: []ServerConfig{{Addr: f.addr, Health: NewHealth(), Expire: time.Millisecond}}})
	for i := range 5 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP)
		eventually(t, "the connection is closed", func() bool { return f.connections() == 0 })
	}
	if n := f.dials.Load(); n != 5 {
		t.Errorf("%d connections for 5 questions, each after a pause", n)
	}
}

// TestProbesStayWithinLimit checks that a connection that a probe opened above the limit is closed after it.
func TestProbesStayWithinLimit(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true, Servers: []ServerConfig{{Addr: f.addr, Health: NewHealth(), MaxConns: 1}}})
	p := g.servers[0].stream
	for i := range 5 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.TCP)
		dials := f.dials.Load()
		p.suspect(time.Now())
		eventually(t, "it was probed", func() bool { return f.dials.Load() > dials && standingOf(g, f, observe.TCP) == "healthy" })
	}
	eventually(t, "one connection is left", func() bool { return f.connections() == 1 })
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestForgeriesAreDropped checks that forged replies are counted, and that the real answer after them is accepted.
func TestForgeriesAreDropped(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{forgeries: 6} })
	g := openGroup(t, GroupConfig{}, f)
	a := g.mustAnswer(t, "name.example.", observe.UDP)
	if len(a.Attempts) != 0 {
		t.Errorf("attempts %+v, want none but the first", a.Attempts)
	}
	s := g.stat(f, observe.UDP)
	if s.Drops[observe.DropWrongID] != 3 || s.Drops[observe.DropWrongQuestion] != 3 {
		t.Errorf("dropped %v, want 3 wrong IDs and 3 wrong questions", s.Drops)
	}
}

// TestForeignAddress: a datagram from another address does not even reach the socket.
func TestForeignAddress(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	other, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	f.set(func(m *dns.Msg, _ observe.Proto, _ int) fault {
		f.ports.Range(func(port, _ any) bool {
			forged := new(dns.Msg)
			forged.SetRcode(m, dns.RcodeRefused)
			wire, _ := forged.Pack()
			other.WriteToUDPAddrPort(wire, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port.(uint16)))
			return true
		})
		return fault{delay: 20 * time.Millisecond}
	})
	g := openGroup(t, GroupConfig{}, f)
	if a := g.mustAnswer(t, "name.example.", observe.UDP); a.Msg.Rcode != dns.RcodeSuccess {
		t.Errorf("the forged %s was taken", dns.RcodeToString[a.Msg.Rcode])
	}
}

// TestPortsAndIDs: neither is used for long, and neither can be foretold.
func TestPortsAndIDs(t *testing.T) {
	ids := make(map[uint16]int)
	var mu sync.Mutex
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		mu.Lock()
		defer mu.Unlock()
		ids[m.Id]++
		return fault{}
	})
	g := openGroup(t, GroupConfig{}, f)
	for i := range 320 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP)
	}
	ports := 0
	f.ports.Range(func(any, any) bool { ports++; return true })
	if want := 320 / datagramUses; ports < want-1 { // the kernel may give a port twice
		t.Errorf("%d source ports for 320 questions, want %d", ports, want)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ids) < 300 {
		t.Errorf("%d IDs for 320 questions", len(ids))
	}
}

func TestTruncatedGoesToTCP(t *testing.T) {
	f := startFake(t, false, func(_ *dns.Msg, p observe.Proto, _ int) fault { return fault{truncate: p == observe.UDP} })
	g := openGroup(t, GroupConfig{}, f)
	a := g.mustAnswer(t, "name.example.", observe.UDP)
	if a.Exchange.Proto != observe.TCP || a.Msg.Truncated {
		t.Errorf("the answer came over %s, TC %t", a.Exchange.Proto, a.Msg.Truncated)
	}

	// If TCP brings nothing, the truncated answer is better than none: the client may try TCP.
	f = startFake(t, false, func(_ *dns.Msg, p observe.Proto, _ int) fault {
		return fault{truncate: p == observe.UDP, reset: p == observe.TCP}
	})
	g = openGroup(t, GroupConfig{}, f)
	answer, err := g.Exchange(context.Background(), Query{Msg: ask("name.example."), Proto: observe.UDP})
	if err != nil || !answer.Msg.Truncated {
		t.Errorf("with TCP closed: %v, %v", answer.Msg, err)
	}
}

// TestOversizedDatagram: more than was offered is cut by our buffer and asked for again over TCP.
func TestOversizedDatagram(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{size: 4000} })
	g := openGroup(t, GroupConfig{}, f)
	if a := g.mustAnswer(t, "name.example.", observe.UDP); a.Exchange.Proto != observe.TCP || len(a.Msg.Answer) < 20 {
		t.Errorf("the answer came over %s with %d records", a.Exchange.Proto, len(a.Msg.Answer))
	}
}

func TestRefusedPortFailsFast(t *testing.T) {
	g := openGroup(t, GroupConfig{Servers: []ServerConfig{{Addr: unusedAddr(t), Health: NewHealth()}}})
	for _, proto := range []observe.Proto{observe.UDP, observe.TCP} {
		start := time.Now()
		_, err := g.Exchange(context.Background(), Query{Msg: ask("a.example."), Proto: proto})
		var failed *Error
		if !errors.As(err, &failed) || failed.Cause != CauseUnreachable || failed.Attempts[0].Outcome != observe.ConnRefused {
			t.Errorf("%s: %v", proto, err)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: it took %s to see an ICMP error", proto, took)
		}
	}
}

// TestFormatErrorToEDNS checks that the server is asked once more without EDNS, and without it at once from then on.
func TestFormatErrorToEDNS(t *testing.T) {
	var withEDNS, without int
	var mu sync.Mutex
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		mu.Lock()
		defer mu.Unlock()
		if m.IsEdns0() != nil {
			withEDNS++
		} else {
			without++
		}
		return fault{noEDNS: true}
	})
	g := openGroup(t, GroupConfig{}, f)
	for i := range 3 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP)
	}
	g.mustAnswer(t, "over.tcp.example.", observe.TCP)
	mu.Lock()
	defer mu.Unlock()
	if withEDNS != 1 || without != 4 {
		t.Errorf("%d queries with EDNS and %d without, want 1 and 4", withEDNS, without)
	}
}

// TestRefusedEitherWay checks that a server that refuses one type, without an OPT record in its answer, still counts
// as one that knows EDNS.
func TestRefusedEitherWay(t *testing.T) {
	var without atomic.Int64
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		if m.Question[0].Qtype == dns.TypeANY {
			return fault{rcode: dns.RcodeNotImplemented, noOPT: true}
		}
		if m.IsEdns0() == nil {
			without.Add(1)
		}
		return fault{}
	})
	g := openGroup(t, GroupConfig{}, f)
	m := ask("example.")
	m.Question[0].Qtype = dns.TypeANY
	answer, err := g.Exchange(context.Background(), Query{Msg: m, Proto: observe.UDP})
	if err != nil || answer.Msg.Rcode != dns.RcodeNotImplemented {
		t.Fatalf("answer %v, %v", answer, err)
	}
	for i := range 3 {
		g.mustAnswer(t, fmt.Sprintf("n%d.example.", i), observe.UDP)
	}
	if n := without.Load(); n > 0 {
		t.Errorf("%d queries after that had no EDNS", n)
	}
}

// TestOfferedSize checks that upstreams are offered a size that passes unfragmented, whatever the client offers.
func TestOfferedSize(t *testing.T) {
	sizes := make(chan uint16, 2)
	f := startFake(t, false, func(m *dns.Msg, _ observe.Proto, _ int) fault {
		sizes <- m.IsEdns0().UDPSize()
		return fault{}
	})
	g := openGroup(t, GroupConfig{}, f)
	g.mustAnswer(t, "plain.example.", observe.UDP)
	m := ask("edns.example.")
	m.SetEdns0(4096, true)
	if _, err := g.Exchange(context.Background(), Query{Msg: m, Proto: observe.UDP}); err != nil {
		t.Fatal(err)
	}
	if a, b := <-sizes, <-sizes; a != ednsSize || b != ednsSize {
		t.Errorf("offered %d and %d octets, want %d", a, b, ednsSize)
	}
}

// TestNoFileDescriptors checks that a process without free descriptors does not blame the upstream, and that a
// question uses an existing socket.
func TestNoFileDescriptors(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	dial := NewDialer()
	var exhausted bool
	var mu sync.Mutex
	real := dial
	dial.Datagram = func(source netip.Addr, remote netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if exhausted {
			return nil, &net.OpError{Op: "dial", Net: "udp", Err: syscall.EMFILE}
		}
		return real.Datagram(source, remote)
	}
	dial.Stream = func(ctx context.Context, source netip.Addr, remote netip.AddrPort) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if exhausted {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.EMFILE}
		}
		return real.Stream(ctx, source, remote)
	}
	g := openGroupWith(t, dial, Limits{}, GroupConfig{}, f)
	g.mustAnswer(t, "one.example.", observe.UDP)
	g.mustAnswer(t, "one.example.", observe.TCP)
	mu.Lock()
	exhausted = true
	mu.Unlock()
	g.mustAnswer(t, "two.example.", observe.UDP)
	g.mustAnswer(t, "two.example.", observe.TCP)
	// A second attempt would have a socket of its own, if one were available.
	path := g.servers[0].datagram
	q, err := newQuestion(ask("second.example."))
	if err != nil {
		t.Fatal(err)
	}
	results := make(chan *call, 1)
	now := time.Now()
	path.submit(&call{path: path, q: q, wire: q.wire, results: results, start: now, expire: now.Add(time.Second), before: []*call{{}}})
	second := <-results
	second.report()
	if !second.outcome.Answer() {
		t.Errorf("a second attempt without file descriptors: %v", second.err)
	}

	g.servers[0].datagram.pool.(*datagramPool).round(time.Now().Add(2 * datagramLife))
	_, err = g.Exchange(context.Background(), Query{Msg: ask("three.example."), Proto: observe.UDP})
	var failed *Error
	if !errors.As(err, &failed) || failed.Cause != CauseUnreachable || failed.Attempts[0].Err == "" {
		t.Errorf("without a socket: %v", err)
	}
	for _, s := range g.Status() {
		if s.Standing != "healthy" {
			t.Errorf("the upstream is %s over %s for our lack of file descriptors", s.Standing, s.Proto)
		}
	}
	mu.Lock()
	exhausted = false
	mu.Unlock()
	g.mustAnswer(t, "four.example.", observe.UDP)
}

// TestSocketsAreBounded: above the limit attempts fail, at once, and the upstream is not blamed.
func TestSocketsAreBounded(t *testing.T) {
	f := startFake(t, false, func(*dns.Msg, observe.Proto, int) fault { return fault{delay: 500 * time.Millisecond} })
	g := openGroupWith(t, NewDialer(), Limits{Sockets: 4}, GroupConfig{}, f)
	var wg sync.WaitGroup
	var mu sync.Mutex
	failures := 0
	for i := range 20 {
		wg.Go(func() {
			if _, err := g.Exchange(context.Background(), Query{Msg: ask(fmt.Sprintf("n%d.example.", i)), Proto: observe.UDP}); err != nil {
				var failed *Error
				if !errors.As(err, &failed) || failed.Cause != CauseOverloaded || !errors.Is(err, ErrOverloaded) {
					t.Errorf("error %v", err)
				}
				mu.Lock()
				failures++
				mu.Unlock()
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	if sockets, _ := g.servers[0].datagram.pool.load(); sockets > 4 {
		t.Errorf("%d sockets, 4 are allowed", sockets)
	}
	wg.Wait()
	if failures < 16 {
		t.Errorf("%d of 20 questions failed, want at least 16", failures)
	}
	s := g.stat(f, observe.UDP)
	if s.Outcomes != [observe.NumOutcomes]uint64{observe.NoError: uint64(20 - failures)} || !s.FailingSince.IsZero() {
		t.Errorf("outcomes %v, failing since %s", s.Outcomes, s.FailingSince)
	}
}

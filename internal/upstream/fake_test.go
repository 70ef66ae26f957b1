package upstream

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// fault is a misbehaviour of a fakeServer for one query.
type fault struct {
	delay         time.Duration
	drop          bool
	hangUp        bool // FIN without an answer
	reset         bool // RST without an answer
	half          bool // half an answer, then RST
	slow          bool // the answer octet by octet, 100 ms each
	garbage       bool // octets that are no message
	wrongID       bool
	wrongQuestion bool
	truncate      bool // UDP: TC and no records
	forgeries     int  // UDP: datagrams with a wrong ID and with a wrong question before the answer
	rcode         int
	size          int // about how large the answer is to be
	noEDNS        bool
	noOPT         bool // the answer has no OPT record
}

// behaviour decides on the n-th query, from 1.
type behaviour func(m *dns.Msg, proto observe.Proto, n int) fault

func wellBehaved(*dns.Msg, observe.Proto, int) fault { return fault{} }

// fakeServer is a DNS server on the loopback that answers A questions over UDP and TCP on the same
// port, or fails as its behaviour says. Its answers carry the question's name in a TXT record too, so
// that mixed-up answers show.
type fakeServer struct {
	t      testing.TB
	addr   netip.AddrPort
	serial bool         // as CoreDNS: one query at a time on a TCP connection
	atMost atomic.Int64 // answers on a TCP connection, which is then closed; 0: any number

	behave  atomic.Pointer[behaviour]
	queries atomic.Int64
	dials   atomic.Int64
	frozen  atomic.Int64 // connections up to this one lead nowhere any more
	sunk    atomic.Int64 // queries on those
	ports   sync.Map     // of UDP clients

	udp  *net.UDPConn
	tcp  net.Listener
	mu   sync.Mutex
	open map[net.Conn]struct{}
	wg   sync.WaitGroup
}

func startFake(t testing.TB, serial bool, b behaviour) *fakeServer {
	t.Helper()
	s := &fakeServer{t: t, serial: serial, open: make(map[net.Conn]struct{})}
	s.set(b)
	s.listen("127.0.0.1:0")
	t.Cleanup(s.stop)
	return s
}

func (s *fakeServer) set(b behaviour) { s.behave.Store(&b) }

// listen opens both sockets on the same port.
func (s *fakeServer) listen(addr string) {
	s.t.Helper()
	var err error
	for range 20 {
		if s.tcp, err = net.Listen("tcp", addr); err != nil {
			s.t.Fatal(err)
		}
		s.addr = s.tcp.Addr().(*net.TCPAddr).AddrPort()
		if s.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(s.addr)); err == nil {
			break
		}
		s.tcp.Close()
	}
	if err != nil {
		s.t.Fatal(err)
	}
	_ = s.udp.SetReadBuffer(4 << 20)
	s.wg.Go(s.serveUDP)
	s.wg.Go(s.serveTCP)
}

func (s *fakeServer) stop() {
	s.udp.Close()
	s.tcp.Close()
	s.hangUpAll()
	s.wg.Wait()
}

func (s *fakeServer) hangUpAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		c.Close()
	}
}

func (s *fakeServer) connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.open)
}

func (s *fakeServer) serveUDP() {
	conn := s.udp
	buffer := make([]byte, 65535)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		if err != nil {
			return
		}
		s.ports.Store(from.Port(), true)
		m := new(dns.Msg)
		if err := m.Unpack(buffer[:n]); err != nil {
			s.t.Errorf("the query cannot be read: %v", err)
			continue
		}
		f := (*s.behave.Load())(m, observe.UDP, int(s.queries.Add(1)))
		s.wg.Go(func() {
			time.Sleep(f.delay)
			if f.drop {
				return
			}
			for i := range f.forgeries {
				forged := fault{wrongID: i%2 == 0, wrongQuestion: i%2 == 1}
				conn.WriteToUDPAddrPort(reply(m, forged), from)
			}
			conn.WriteToUDPAddrPort(reply(m, f), from)
		})
	}
}

func (s *fakeServer) serveTCP() {
	for {
		conn, err := s.tcp.Accept()
		if err != nil {
			return
		}
		number := s.dials.Add(1)
		s.mu.Lock()
		s.open[conn] = struct{}{}
		s.mu.Unlock()
		s.wg.Go(func() {
			s.serveConn(conn, number)
			s.mu.Lock()
			delete(s.open, conn)
			s.mu.Unlock()
		})
	}
}

func (s *fakeServer) serveConn(conn net.Conn, number int64) {
	defer conn.Close()
	var write sync.Mutex
	var answers sync.WaitGroup
	defer answers.Wait()
	for served := int64(1); ; served++ {
		var length [2]byte
		if _, err := io.ReadFull(conn, length[:]); err != nil {
			return
		}
		wire := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(conn, wire); err != nil {
			return
		}
		m := new(dns.Msg)
		if err := m.Unpack(wire); err != nil {
			s.t.Errorf("the query cannot be read: %v", err)
			return
		}
		f := (*s.behave.Load())(m, observe.TCP, int(s.queries.Add(1)))
		if number <= s.frozen.Load() {
			f.drop = true
			s.sunk.Add(1)
		}
		respond := func() {
			time.Sleep(f.delay)
			write.Lock()
			defer write.Unlock()
			respondTCP(conn, m, f)
		}
		if most := s.atMost.Load(); s.serial || most > 0 {
			respond()
			if served == most {
				return
			}
		} else {
			answers.Go(respond)
		}
	}
}

func respondTCP(conn net.Conn, m *dns.Msg, f fault) {
	if f.drop {
		return
	}
	wire := reply(m, f)
	wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	abort := func() {
		if t, ok := conn.(*net.TCPConn); ok {
			t.SetLinger(0)
		}
		conn.Close()
	}
	switch {
	case f.hangUp:
		conn.Close()
	case f.reset:
		abort()
	case f.half:
		conn.Write(wire[:len(wire)/2])
		time.Sleep(5 * time.Millisecond)
		abort()
	case f.garbage:
		conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	case f.slow:
		for i := range wire {
			if _, err := conn.Write(wire[i : i+1]); err != nil {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	default:
		conn.Write(wire)
	}
}

// address returns the fakeServer's address of a name, whatever the case.
func address(name string) net.IP {
	var sum uint32 = 2166136261
	for _, b := range []byte(strings.ToLower(name)) {
		sum = (sum ^ uint32(b)) * 16777619
	}
	return net.IPv4(10, byte(sum>>16), byte(sum>>8), byte(sum)).To4()
}

func reply(m *dns.Msg, f fault) []byte {
	r := new(dns.Msg)
	if f.noEDNS && m.IsEdns0() != nil {
		r.SetRcodeFormatError(m)
		r.Question = m.Question
	} else {
		r.SetRcode(m, f.rcode)
		name := m.Question[0].Name
		if f.rcode == dns.RcodeSuccess && !f.truncate {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30}, A: address(name)}}
		}
		for n := 0; n < f.size; n += 200 {
			r.Answer = append(r.Answer, &dns.TXT{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeTXT, Class: dns.ClassINET, Ttl: 30}, Txt: []string{strings.Repeat("x", 190)}})
		}
		r.Truncated = f.truncate
		if opt := m.IsEdns0(); opt != nil && !f.noOPT {
			r.SetEdns0(1232, opt.Do())
		}
	}
	if f.wrongID {
		r.Id ^= 0x5555
	}
	if f.wrongQuestion {
		// Of the same length, so that only the name tells.
		name := []byte(r.Question[0].Name)
		if name[0] = '_'; len(name) == 1 {
			name = []byte("root.")
		}
		r.Question[0].Name = string(name)
	}
	wire, err := r.Pack()
	if err != nil {
		panic(err)
	}
	return wire
}

// sides is a Registry with a Group, and the statistics.
type sides struct {
	*Group
	registry *Registry
	stats    *observe.Upstreams
}

// openGroup opens a Group and closes it at the end, with the check that every exchange was reported.
func openGroup(t testing.TB, c GroupConfig, servers ...*fakeServer) sides {
	t.Helper()
	return openGroupWith(t, NewDialer(), Limits{}, c, servers...)
}

func openGroupWith(t testing.TB, dial Dialer, limits Limits, c GroupConfig, servers ...*fakeServer) sides {
	t.Helper()
	for _, s := range servers {
		c.Servers = append(c.Servers, ServerConfig{Addr: s.addr, Health: NewHealth()})
	}
	stats := observe.NewUpstreams(0)
	r := NewRegistryWithDialer(limits, stats, dial)
	g, err := r.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.Close()
		r.Wait()
		for _, s := range stats.Snapshot() {
			if s.InFlight != 0 {
				t.Errorf("%s %s: %d exchanges were never reported", s.Upstream, s.Proto, s.InFlight)
			}
		}
	})
	return sides{Group: g, registry: r, stats: stats}
}

func ask(name string) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, dns.TypeA)
	return m
}

// mustAnswer asks for name and checks that the answer is the one to it.
func (s sides) mustAnswer(t testing.TB, name string, proto observe.Proto) Answer {
	t.Helper()
	m := ask(name)
	a, err := s.Exchange(context.Background(), Query{Msg: m, Proto: proto})
	if err != nil {
		t.Fatalf("%s over %s: %v", name, proto, err)
	}
	if err := checkAnswer(m, a.Msg); err != nil {
		t.Fatalf("%s over %s: %v", name, proto, err)
	}
	return a
}

// checkAnswer returns how a NOERROR answer differs from the correct one to m.
func checkAnswer(m, a *dns.Msg) error {
	switch {
	case a.Id != m.Id:
		return fmt.Errorf("ID %d, asked with %d", a.Id, m.Id)
	case !a.Response || a.RecursionDesired != m.RecursionDesired || a.CheckingDisabled != m.CheckingDisabled:
		return fmt.Errorf("flags %+v", a.MsgHdr)
	case len(a.Question) != 1 || a.Question[0] != m.Question[0]:
		return fmt.Errorf("question %v, asked %v", a.Question, m.Question)
	case (a.IsEdns0() != nil) != (m.IsEdns0() != nil):
		return fmt.Errorf("OPT %v, asked with %v", a.IsEdns0(), m.IsEdns0())
	case a.Rcode != dns.RcodeSuccess, a.Truncated:
		return nil
	case len(a.Answer) == 0:
		return fmt.Errorf("no records")
	}
	rr, ok := a.Answer[0].(*dns.A)
	if !ok || rr.Hdr.Name != m.Question[0].Name || !rr.A.Equal(address(rr.Hdr.Name)) {
		return fmt.Errorf("record %v is not the one of %s", a.Answer[0], m.Question[0].Name)
	}
	return nil
}

// stat returns the statistics of one path.
func (s sides) stat(f *fakeServer, proto observe.Proto) observe.UpstreamSnapshot {
	for _, u := range s.stats.Snapshot() {
		if u.Upstream == f.addr.String() && u.Proto == proto {
			return u
		}
	}
	return observe.UpstreamSnapshot{}
}

// eventually waits for cond, generously.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
	}
	t.Fatalf("it did not come about that %s", what)
}

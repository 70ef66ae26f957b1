package lab

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// ask queries the first replica's own address for web.default.
func ask(t *testing.T, l *Lab, transport Transport, timeout time.Duration) (*dns.Msg, time.Duration, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	return l.Pods[0].Ask(ctx, transport, l.KubeDNS[0].Host.IPv4, "web.default.svc.cluster.local", dns.TypeA)
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

func TestFaults(t *testing.T) {
	l := Start(t, Config{})
	const long, short = 20 * time.Second, 300 * time.Millisecond
	wantAnswer := func(t *testing.T, m *dns.Msg, _ time.Duration, err error) {
		if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Errorf("%v, %v; want an answer", m, err)
		}
	}
	wantErr := func(wants ...error) func(*testing.T, *dns.Msg, time.Duration, error) {
		return func(t *testing.T, _ *dns.Msg, took time.Duration, err error) {
			if took >= idleTimeout {
				t.Errorf("failed after %v, by the idle timeout only", took)
			}
			if !slices.ContainsFunc(wants, func(want error) bool { return errors.Is(err, want) }) {
				t.Errorf("error %v, want one of %v", err, wants)
			}
		}
	}
	wantTimeout := func(t *testing.T, m *dns.Msg, _ time.Duration, err error) {
		if !isTimeout(err) {
			t.Errorf("%v, %v; want a timeout", m, err)
		}
	}
	for _, c := range []struct {
		name      string
		fault     Fault
		transport Transport
		timeout   time.Duration
		check     func(*testing.T, *dns.Msg, time.Duration, error)
	}{
		{"none, udp", Fault{}, UDP, long, wantAnswer},
		{"none, tcp", Fault{}, TCP, long, wantAnswer},
		{"refuse, udp", Fault{Refuse: true}, UDP, long, wantErr(unix.ECONNREFUSED)},
		{"refuse, tcp", Fault{Refuse: true}, TCP, long, wantErr(unix.ECONNREFUSED)},
		{"refuse tcp only, udp", Fault{Transport: TCP, Refuse: true}, UDP, long, wantAnswer},
		{"drop, udp", Fault{Drop: 1}, UDP, short, wantTimeout},
		{"drop, tcp", Fault{Drop: 1}, TCP, short, wantTimeout},
		{"servfail", Fault{Rcode: dns.RcodeServerFailure}, TCP, long, func(t *testing.T, m *dns.Msg, _ time.Duration, err error) {
			if err != nil || m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%v, %v; want SERVFAIL", m, err)
			}
		}},
		{"delay", Fault{Delay: 200 * time.Millisecond}, UDP, long, func(t *testing.T, _ *dns.Msg, took time.Duration, err error) {
			if err != nil || took < 200*time.Millisecond {
				t.Errorf("answered after %v, %v; want at least 200ms", took, err)
			}
		}},
		{"close on accept", Fault{Close: CloseOnAccept}, TCP, long, wantErr(io.EOF, unix.ECONNRESET, unix.EPIPE)},
		{"close on query", Fault{Close: CloseOnQuery}, TCP, long, wantErr(io.EOF, unix.ECONNRESET)},
		{"close mid answer", Fault{Close: CloseMidAnswer}, TCP, long, wantErr(io.ErrUnexpectedEOF)},
		{"closing does not touch udp", Fault{Close: CloseOnQuery}, UDP, long, wantAnswer},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := l.KubeDNS[0].Break(c.fault); err != nil {
				t.Fatal(err)
			}
			m, took, err := ask(t, l, c.transport, c.timeout)
			c.check(t, m, took, err)
			if err := l.KubeDNS[0].Mend(); err != nil {
				t.Fatal(err)
			}
			for _, transport := range []Transport{UDP, TCP} {
				if m, _, err := ask(t, l, transport, long); err != nil || len(m.Answer) != 1 {
					t.Errorf("mended, over %s: %v, %v", transport, m, err)
				}
			}
		})
	}
}

// A share of drops drops about that share: of 400 queries 3 sigma are 30.
func TestDropShare(t *testing.T) {
	l := Start(t, Config{})
	if err := l.KubeDNS[0].Break(Fault{Transport: UDP, Drop: 0.5}); err != nil {
		t.Fatal(err)
	}
	st, err := Stream{From: l.Pods[0], Server: l.KubeDNS[0].Host.IPv4, QPS: 4000, Max: 400, Timeout: time.Second, Window: 400}.Start()
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Wait(within(t), 400); err != nil {
		t.Fatal(err)
	}
	ss, err := st.Stop()
	if err != nil {
		t.Fatal(err)
	}
	if lost := len(ss.Lost()); lost < 150 || lost > 250 {
		t.Errorf("%d of %d lost, want about half", lost, len(ss))
	}
	if asked := l.KubeDNS[0].Record.Total(UDP); asked != 400 {
		t.Errorf("the server saw %d queries, want 400", asked)
	}
}

// An open connection is reset when the server begins to refuse.
func TestRefuseResetsConnections(t *testing.T) {
	l := Start(t, Config{})
	conn, err := l.Pods[0].Dial(within(t), "tcp", netip.AddrPortFrom(l.KubeDNS[0].Host.IPv4, 53).String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	exchange := func() error {
		if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		if err := c.WriteMsg(new(dns.Msg).SetQuestion("kubernetes.default.svc.cluster.local.", dns.TypeA)); err != nil {
			return err
		}
		_, err := c.ReadMsg()
		return err
	}
	for range 2 {
		if err := exchange(); err != nil {
			t.Fatalf("two queries on one connection: %v", err)
		}
	}
	if n := l.KubeDNS[0].Record.Conns(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	if err := l.KubeDNS[0].Break(Fault{Refuse: true}); err != nil {
		t.Fatal(err)
	}
	if err := exchange(); err == nil || isTimeout(err) {
		t.Errorf("after the refusal: %v, want a broken connection", err)
	}
}

func TestIsolate(t *testing.T) {
	l := Start(t, Config{})
	host := l.KubeDNS[0].Host
	if err := host.Isolate(); err != nil {
		t.Fatal(err)
	}
	for _, transport := range []Transport{UDP, TCP} {
		if m, _, err := ask(t, l, transport, 300*time.Millisecond); !isTimeout(err) {
			t.Errorf("isolated, %s: %v, %v; want a timeout", transport, m, err)
		}
	}
	if err := host.Rejoin(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := ask(t, l, TCP, 20*time.Second); err != nil {
		t.Errorf("rejoined: %v", err)
	}
}

func TestAnswersFitTheirTransport(t *testing.T) {
	l := Start(t, Config{})
	server := netip.AddrPortFrom(l.KubeDNS[0].Host.IPv4, 53)
	for _, c := range []struct {
		name      string
		transport Transport
		size      uint16 // EDNS, 0 for none
		truncated bool
	}{
		{"many.default.svc.cluster.local.", UDP, 0, true},
		{"many.default.svc.cluster.local.", UDP, 1232, false}, // 60 compressed records of 16 octets
		{"many.default.svc.cluster.local.", TCP, 0, false},
		{"big.example.org.", UDP, 4096, true}, // forwarded, and still not above 1232
		{"big.example.org.", TCP, 0, false},
		{"web.default.svc.cluster.local.", UDP, 0, false},
	} {
		q := new(dns.Msg).SetQuestion(c.name, dns.TypeA)
		if c.size > 0 {
			q.SetEdns0(c.size, false)
		}
		m, _, err := l.Pods[0].Exchange(within(t), c.transport, server, q)
		if err != nil {
			t.Fatal(err)
		}
		if m.Truncated != c.truncated || (m.IsEdns0() != nil) != (c.size > 0) {
			t.Errorf("%s over %s with size %d: truncated %v, EDNS %v", c.name, c.transport, c.size, m.Truncated, m.IsEdns0() != nil)
		}
	}
}

func TestRecord(t *testing.T) {
	l := Start(t, Config{})
	q := new(dns.Msg).SetQuestion("WeB.Default.svc.cluster.local.", dns.TypeAAAA)
	q.SetEdns0(1400, false)
	s := l.KubeDNS[1]
	if _, _, err := l.Pods[1].Exchange(within(t), TCP, netip.AddrPortFrom(s.Host.IPv4, 53), q); err != nil {
		t.Fatal(err)
	}
	got := s.Record.Queries()
	if len(got) != 1 {
		t.Fatalf("recorded %+v", got)
	}
	g := got[0]
	if g.Name != "WeB.Default.svc.cluster.local." || g.Transport != TCP || g.Type != dns.TypeAAAA || g.Server != "kube-dns-2" ||
		g.Client.Addr() != l.Pods[1].IPv4 || g.ID != q.Id || !g.EDNS || g.Size != 1400 {
		t.Errorf("recorded %+v", g)
	}
	if n := l.KubeDNSAsked("web.default.svc.cluster.local", TCP); n != 1 {
		t.Errorf("asked %d times over TCP, want 1", n)
	}
	if n := s.Record.AskedBelow("svc.cluster.local", UDP); n != 0 {
		t.Errorf("asked %d times over UDP, want 0", n)
	}
	l.ResetRecords()
	if n := l.KubeDNSTotal(""); n != 0 {
		t.Errorf("%d queries after the reset", n)
	}
}

func TestRecordIsBounded(t *testing.T) {
	var r Record
	for i := range maxQueries + 10 {
		r.add(Query{Name: "a.", ID: uint16(i), Transport: UDP})
	}
	qs := r.Queries()
	if len(qs) != maxQueries || qs[0].ID != 10 || qs[len(qs)-1].ID != 9 || r.Total(UDP) != maxQueries+10 {
		t.Errorf("%d kept, first id %d, last %d, total %d", len(qs), qs[0].ID, qs[len(qs)-1].ID, r.Total(UDP))
	}
}

func TestClusterZone(t *testing.T) {
	z := clusterZone(30)
	const svc = ".svc.cluster.local."
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // the answers' data, in order
	}{
		{"kubernetes.default" + svc, dns.TypeA, 0, "10.233.0.1"},
		{"kubernetes.default" + svc, dns.TypeAAAA, 0, ""},
		{"KuberNetes.default" + svc, dns.TypeA, 0, "10.233.0.1"},
		{"v6only.shop" + svc, dns.TypeA, 0, ""},
		{"default" + svc, dns.TypeA, 0, ""}, // an empty non-terminal
		{"nothing.default" + svc, dns.TypeA, dns.RcodeNameError, ""},
		{"_http._tcp.web.default" + svc, dns.TypeSRV, 0, "0 100 80 web.default" + svc},
		{"db.default" + svc, dns.TypeA, 0, "10.233.65.20 10.233.65.21 10.233.65.22"},
		{"db-1.db.default" + svc, dns.TypeA, 0, "10.233.65.21"},
		{"_postgres._tcp.db.default" + svc, dns.TypeSRV, 0, "0 33 5432 db-0.db.default" + svc + " 0 33 5432 db-1.db.default" + svc + " 0 33 5432 db-2.db.default" + svc},
		{"alias.default" + svc, dns.TypeA, 0, "web.default" + svc + " 10.233.12.34"},
		{"ext.default" + svc, dns.TypeA, 0, "www.example.org."},
		{"10-233-65-20.default.pod.cluster.local.", dns.TypeA, 0, "10.233.65.20"},
		{"10-233-65-20.nowhere.pod.cluster.local.", dns.TypeA, dns.RcodeNameError, ""},
		{"x.any.default" + svc, dns.TypeA, 0, "10.233.12.99"},
		{"1.0.233.10.in-addr.arpa.", dns.TypePTR, 0, "kubernetes.default" + svc},
		{"21.65.233.10.in-addr.arpa.", dns.TypePTR, 0, "db-1.db.default" + svc},
		{"9.9.233.10.in-addr.arpa.", dns.TypePTR, dns.RcodeNameError, ""},
		{"dns-version.cluster.local.", dns.TypeTXT, 0, `"1.1.0"`},
		{"_under_score.default" + svc, dns.TypeA, 0, "10.233.12.50"},
		{LongName, dns.TypeA, 0, "10.233.12.55"},
		{"www.example.org.", dns.TypeA, dns.RcodeRefused, ""},
	} {
		m := z.answer(new(dns.Msg).SetQuestion(c.name, c.qtype))
		var got []string
		for i, rr := range m.Answer {
			got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			if i == 0 && rr.Header().Name != c.name {
				t.Errorf("%s: the owner is %s", c.name, rr.Header().Name)
			}
		}
		if m.Rcode != c.rcode || strings.Join(got, " ") != c.want {
			t.Errorf("%s %s: %s %q, want %s %q", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[m.Rcode], got, dns.RcodeToString[c.rcode], c.want)
		}
		if len(m.Answer) == 0 && m.Rcode != dns.RcodeRefused && (len(m.Ns) != 1 || m.Ns[0].Header().Rrtype != dns.TypeSOA) {
			t.Errorf("%s: a negative answer without SOA: %v", c.name, m.Ns)
		}
	}
	if n, err := dns.PackDomainName(LongName, make([]byte, 300), 0, nil, false); err != nil || n != 255 {
		t.Errorf("LongName has %d octets (%v), want 255", n, err)
	}
}

func TestZoneSet(t *testing.T) {
	z := newZone(5, "cluster.local.")
	look := func() int { return z.answer(new(dns.Msg).SetQuestion("a.b.cluster.local.", dns.TypeA)).Rcode }
	for i, step := range []struct {
		records []string
		rcode   int
	}{{nil, dns.RcodeNameError}, {[]string{"5 IN A 10.0.0.1"}, 0}, {[]string{"5 IN TXT x"}, 0}, {nil, dns.RcodeNameError}} {
		if i > 0 {
			if err := z.Set("A.b.cluster.local", step.records...); err != nil {
				t.Fatal(err)
			}
		}
		if got := look(); got != step.rcode {
			t.Errorf("step %d: %s, want %s", i, dns.RcodeToString[got], dns.RcodeToString[step.rcode])
		}
	}
	if err := z.Set("a.cluster.local", "five minutes"); err == nil {
		t.Error("a record that is none: no error")
	}
}

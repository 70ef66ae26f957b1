package upstream

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/miekg/dns"
)

func wire(t testing.TB, name string) []byte {
	t.Helper()
	b := make([]byte, 255)
	n, err := dns.PackDomainName(dns.Fqdn(name), b, 0, nil, false)
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

func TestExists(t *testing.T) {
	for name, want := range map[string]bool{
		"www.example.com":                           true,
		"web.default.svc.cluster.local":             true,
		"WEB.default.SVC.Cluster.local":             true,
		"svc.cluster.local":                         true,
		"cluster.local":                             true,
		"mycluster.local":                           true,
		"default.svc.cluster.local":                 false,
		"www.example.com.cluster.local":             false,
		"www.example.com.default.svc.cluster.local": false,
		"web.default.svcs.cluster.local":            false,
		"a.b.notsvc.cluster.local":                  false,
	} {
		if got := Exists(wire(t, name)); got != want {
			t.Errorf("%s exists: %v, want %v", name, got, want)
		}
	}
}

// reply returns the server's answer, parsed by another implementation.
func reply(t testing.TB, q *dns.Msg) *dns.Msg {
	t.Helper()
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	m := new(dns.Msg)
	if err := m.Unpack(Answer(nil, b)); err != nil {
		t.Fatalf("%v: %v", q.Question, err)
	}
	return m
}

func TestAnswer(t *testing.T) {
	long := "a123456789b123456789c123456789d123456789e123456789f123456789." // pushes the zone past offset 256
	for name, rcode := range map[string]int{
		"www.example.com.":                          dns.RcodeSuccess,
		"web.default.svc.cluster.local.":            dns.RcodeSuccess,
		"www.example.com.svc.cluster.local.":        dns.RcodeNameError,
		long + long + long + "a1234.cluster.local.": dns.RcodeNameError,
	} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeMX} {
			q := new(dns.Msg).SetQuestion(name, qtype)
			q.SetEdns0(1232, false)
			m := reply(t, q)
			if m.Rcode != rcode || m.Id != q.Id || !m.Response || !m.Authoritative || m.IsEdns0() == nil || m.Question[0] != q.Question[0] {
				t.Fatalf("%s: %v", name, m)
			}
			if rcode == dns.RcodeSuccess && qtype != dns.TypeMX {
				var got net.IP
				switch rr := m.Answer[0].(type) {
				case *dns.A:
					got = rr.A
				case *dns.AAAA:
					got = rr.AAAA
				}
				a, _ := netip.AddrFromSlice(got)
				if want := Address(wire(t, name), qtype); a.Unmap() != want && a != want {
					t.Errorf("%s has %v, want %v", name, a, want)
				}
				continue
			}
			soa, ok := m.Ns[0].(*dns.SOA)
			if len(m.Answer) != 0 || !ok || soa.Minttl != TTL || soa.Hdr.Ttl != TTL {
				t.Errorf("%s %s: no SOA for the negative answer: %v", name, dns.TypeToString[qtype], m)
			}
			if ok && dns.IsSubDomain("cluster.local.", name) != (soa.Hdr.Name == "cluster.local.") {
				t.Errorf("%s: SOA of %s", name, soa.Hdr.Name)
			}
		}
	}
}

func FuzzAnswer(f *testing.F) {
	q, err := new(dns.Msg).SetQuestion("www.example.com.svc.cluster.local.", dns.TypeA).Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(q)
	f.Add(q[:20])
	f.Fuzz(func(t *testing.T, q []byte) {
		a := Answer([]byte("before"), q)
		if !bytes.HasPrefix(a, []byte("before")) {
			t.Fatal("what stood before the answer has changed")
		}
		if a = a[6:]; len(a) == 0 {
			return
		}
		end := 12 + nameLen(q[12:]) + 4
		if len(a) < end || !bytes.Equal(a[12:end], q[12:end]) || !bytes.Equal(a[:2], q[:2]) || a[2]&0x80 == 0 || len(a) > 512 {
			t.Fatalf("query %x\nanswer %x", q, a)
		}
	})
}

func TestServe(t *testing.T) {
	s, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, delay := range []time.Duration{0, 20 * time.Millisecond} {
		s.SetDelay(delay)
		for _, network := range []string{"udp", "tcp"} {
			before := s.Counters()
			c, err := dns.DialTimeout(network, s.Addr().String(), 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			if err := c.SetDeadline(start.Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for i := range 10 { // without waiting: the connection is pipelined
				q := new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA)
				q.Id = uint16(i)
				if err := c.WriteMsg(q); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 10 {
				m, err := c.ReadMsg()
				if err != nil {
					t.Fatalf("%s, answer %d: %v", network, i, err)
				}
				if int(m.Id) != i || len(m.Answer) != 1 {
					t.Errorf("%s, answer %d: %v", network, i, m)
				}
			}
			if took := time.Since(start); took < delay-tooShortToSleep {
				t.Errorf("%s: answered after %v, the delay is %v", network, took, delay)
			}
			c.Close()
			after := s.Counters()
			asked := after.UDP - before.UDP
			if network == "tcp" {
				asked = after.TCP - before.TCP
			}
			if asked != 10 || network == "tcp" && after.Connections != before.Connections+1 {
				t.Errorf("%s: counted %+v after %+v", network, after, before)
			}
		}
	}
}

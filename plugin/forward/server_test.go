package forward

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/freeport"
)

// testServer is an upstream on a loopback port, over UDP and TCP.
type testServer struct {
	addr string
	udp  atomic.Int64 // questions, health checks left out
	tcp  atomic.Int64
	done sync.WaitGroup
	srvs []*dns.Server
}

// serve starts an upstream that ends with the test.
func serve(t *testing.T, h dns.HandlerFunc) *testServer {
	t.Helper()
	return serveAt(t, "127.0.0.1:0", h)
}

func serveAt(t *testing.T, addr string, h dns.HandlerFunc) *testServer {
	t.Helper()
	s := &testServer{}
	l, pc := listenBoth(t, addr)
	s.addr = l.Addr().String()
	counted := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		if len(r.Question) != 1 || r.Question[0].Name != "." {
			if _, ok := w.RemoteAddr().(*net.UDPAddr); ok {
				s.udp.Add(1)
			} else {
				s.tcp.Add(1)
			}
		}
		h(w, r)
	})
	for _, srv := range []*dns.Server{{PacketConn: pc, Handler: counted}, {Listener: l, Handler: counted, MaxTCPQueries: -1}} {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		s.srvs = append(s.srvs, srv)
		s.done.Go(func() { srv.ActivateAndServe() })
		<-up
	}
	t.Cleanup(s.close)
	return s
}

func (s *testServer) close() {
	for _, srv := range s.srvs {
		srv.Shutdown()
	}
	s.srvs = nil
	s.done.Wait()
}

func (s *testServer) questions() int64 { return s.udp.Load() + s.tcp.Load() }

// listenBoth finds a port that is free for both transports.
func listenBoth(t *testing.T, addr string) (net.Listener, net.PacketConn) {
	t.Helper()
	var last error
	for range 20 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		last = err
		l.Close()
	}
	t.Fatalf("no port is free for both UDP and TCP: %v", last)
	return nil, nil
}

// deadAddr is an address where nobody listens.
func deadAddr(t *testing.T) string {
	t.Helper()
	return "127.0.0.1:" + freeport.Text(t)
}

func mustRR(t *testing.T, s string) dns.RR {
	t.Helper()
	rr, err := dns.NewRR(s)
	if err != nil {
		t.Fatal(err)
	}
	return rr
}

// answerA answers every question with one address.
func answerA(ip string) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{&dns.A{
			Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
			A:   net.ParseIP(ip),
		}}
		w.WriteMsg(m)
	}
}

func answerRcode(rcode int) dns.HandlerFunc {
	return func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(r, rcode)) }
}

// silent never answers.
func silent(dns.ResponseWriter, *dns.Msg) {}

package fastpath

import (
	"bytes"
	"fmt"
	"log"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"localcache.dev/localcache/plugin/cache"

	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/any"
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/cancel"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/local"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/shed"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/tsig"
	_ "github.com/coredns/coredns/plugin/view"
)

// tested is the plugin of this process, which is one as CoreDNS's registry of directives is.
var tested *Plugin

// caches is the directive cache, by a clock that tests may set.
var (
	caches     *cache.Plugin
	cacheClock atomic.Pointer[func() time.Time]
)

func cacheNow() time.Time {
	if now := cacheClock.Load(); now != nil {
		return (*now)()
	}
	return time.Now()
}

// testInFlight can be filled by a test.
const testInFlight = 64

// logged is what was logged.
var logged syncBuffer

func TestMain(m *testing.M) {
	caddy.Quiet, dnsserver.Quiet = true, true
	clog.SetOutput(&logged)
	log.SetOutput(&logged)
	d := slices.Clone(dnsserver.Directives)
	d = slices.Insert(d, slices.Index(d, "cache")+1, directive)
	d = slices.Insert(d, slices.Index(d, "cache"), "arrivals", "decorate", "hold", "updates")
	if err := dnsserver.SetDirectives(d); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	caches = cache.New(cache.Options{Now: cacheNow})
	caches.Register()
	if err := caches.RegisterMetrics(prometheus.DefaultRegisterer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	tested = New(Options{InFlight: testInFlight})
	tested.Register()
	plugin.Register("arrivals", setupArrivals)
	plugin.Register("decorate", setupDecorate)
	plugin.Register("hold", setupHold)
	plugin.Register("updates", setupUpdates)
	if err := tested.RegisterMetrics(prometheus.DefaultRegisterer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := tested.RegisterMetrics(own); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// own has only our metrics: to gather all takes long with the histograms of many servers.
var own = prometheus.NewRegistry()

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// since returns what was logged after from octets.
func (s *syncBuffer) since(from int) string { return s.String()[from:] }

// upstream is a name server that counts what it is asked.
type upstream struct {
	addr   string
	asked  atomic.Int64
	handle atomic.Pointer[func(w dns.ResponseWriter, r *dns.Msg)]
}

// newUpstream answers A and AAAA of each name with addresses, TXT with nothing, names below nx. with NXDOMAIN and
// names below fail. with SERVFAIL.
func newUpstream(t testing.TB) *upstream {
	t.Helper()
	pc, ln := listenBoth(t)
	u := &upstream{addr: pc.LocalAddr().String()}
	u.set(zone)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		u.asked.Add(1)
		(*u.handle.Load())(w, r)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: ln, Handler: h}} {
		done := make(chan struct{})
		go func() { defer close(done); s.ActivateAndServe() }()
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return u
}

// listenBoth opens a port for UDP and TCP: one that the kernel chooses for the one may be in use for the other.
func listenBoth(t testing.TB) (net.PacketConn, net.Listener) {
	t.Helper()
	for range 100 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("tcp", pc.LocalAddr().String())
		if err == nil {
			return pc, ln
		}
		pc.Close()
	}
	t.Fatal("no port is free")
	return nil, nil
}

func (u *upstream) set(h func(w dns.ResponseWriter, r *dns.Msg)) { u.handle.Store(&h) }

// zoneTTL is the TTL of all records of zone.
const zoneTTL = 60

func zone(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(zoneReply(r, zoneTTL)) }

func zoneReply(r *dns.Msg, ttl uint32) *dns.Msg {
	m := new(dns.Msg).SetReply(r)
	m.RecursionAvailable, m.Compress = true, true
	q := r.Question[0]
	hdr := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: q.Name, Rrtype: t, Class: dns.ClassINET, Ttl: ttl}
	}
	soa := &dns.SOA{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl}, Ns: "ns.", Mbox: "m.", Minttl: ttl}
	name := strings.ToLower(q.Name)
	switch {
	case dns.IsSubDomain("nx.", name):
		m.Rcode = dns.RcodeNameError
		m.Ns = []dns.RR{soa}
	case dns.IsSubDomain("fail.", name):
		m.Rcode = dns.RcodeServerFailure
	case dns.IsSubDomain("alias.", name) && q.Qtype == dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(dns.TypeCNAME), Target: "target.example."}}
		m.Ns = []dns.RR{soa}
	case dns.IsSubDomain("alias.", name):
		a := hdr(q.Qtype)
		a.Name = "target.example."
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(dns.TypeCNAME), Target: "target.example."}}
		if q.Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: a, A: net.IPv4(10, 0, 0, 9)})
		}
	case q.Qtype == dns.TypeA:
		n := 1
		if dns.IsSubDomain("big.", name) {
			n = 28
		} else if dns.IsSubDomain("three.", name) {
			n = 3
		}
		for i := range n {
			m.Answer = append(m.Answer, &dns.A{Hdr: hdr(dns.TypeA), A: net.IPv4(10, 0, byte(len(name)), byte(i+1))})
		}
	case q.Qtype == dns.TypeAAAA:
		m.Answer = []dns.RR{&dns.AAAA{Hdr: hdr(dns.TypeAAAA), AAAA: net.ParseIP("fd00::1")}}
	case q.Qtype == dns.TypeSRV:
		m.Answer = []dns.RR{&dns.SRV{Hdr: hdr(dns.TypeSRV), Priority: 1, Weight: 2, Port: 3, Target: "a." + q.Name}}
		m.Extra = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a." + q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: ttl}, A: net.IPv4(10, 1, 2, 3)}}
	default:
		m.Ns = []dns.RR{soa}
	}
	if o := r.IsEdns0(); o != nil {
		m.SetEdns0(1232, o.Do())
	}
	return m
}

// running is an instance of CoreDNS.
type running struct {
	*caddy.Instance
	t testing.TB
}

// run starts a Corefile, with UPSTREAM in it standing for u's address.
func run(t testing.TB, corefile string, u *upstream) *running {
	t.Helper()
	in, err := caddy.Start(input(corefile, u))
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	r := &running{Instance: in, t: t}
	t.Cleanup(func() {
		r.ShutdownCallbacks()
		r.Stop()
	})
	return r
}

func input(corefile string, u *upstream) caddy.Input {
	if u != nil {
		corefile = strings.ReplaceAll(corefile, "UPSTREAM", u.addr)
	}
	return caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}
}

// reload replaces the instance.
func (r *running) reload(corefile string, u *upstream) {
	r.t.Helper()
	in, err := r.Restart(input(corefile, u))
	if err != nil {
		r.t.Fatalf("reload: %v", err)
	}
	r.Instance = in
}

// addr is the address of the i-th server.
func (r *running) addr(i int) string { return r.Servers()[i].LocalAddr().String() }

// client is a UDP client with a socket of its own.
type client struct {
	net.Conn
	t testing.TB
}

func dial(t testing.TB, addr string) *client { return dialFrom(t, "", addr) }

func dialFrom(t testing.TB, from, addr string) *client {
	t.Helper()
	var d net.Dialer
	if from != "" {
		d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
	}
	c, err := d.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{Conn: c, t: t}
}

// patience is how long an answer may take on a machine that is busy with other things.
const patience = 20 * time.Second

// send sends a packed query.
func (c *client) send(b []byte) {
	c.t.Helper()
	if _, err := c.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

// raw asks and returns the reply's octets.
func (c *client) raw(query []byte) []byte {
	c.t.Helper()
	c.send(query)
	return c.receive()
}

func (c *client) receive() []byte {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 65535)
	n, err := c.Read(b)
	if err != nil {
		c.t.Fatalf("no answer: %v", err)
	}
	return b[:n]
}

func (c *client) ask(name string, qtype uint16) *dns.Msg {
	c.t.Helper()
	return c.exchange(question(name, qtype))
}

func (c *client) exchange(q *dns.Msg) *dns.Msg {
	c.t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(c.raw(pack(c.t, q))); err != nil {
		c.t.Fatal(err)
	}
	if m.Id != q.Id {
		c.t.Fatalf("the answer has ID %d, the query %d", m.Id, q.Id)
	}
	return m
}

func question(name string, qtype uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, qtype) }

func pack(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hits is how many queries the fast path has answered for all servers.
func hits(t testing.TB) float64 {
	t.Helper()
	ch := make(chan prometheus.Metric, 1000)
	tested.metrics.hits.Collect(ch)
	close(ch)
	total := 0.0
	for m := range ch {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			t.Fatal(err)
		}
		total += d.GetCounter().GetValue()
	}
	return total
}

// gather returns the series of one metric.
func gather(t testing.TB, name string) []*dto.Metric {
	t.Helper()
	from := prometheus.DefaultGatherer
	if strings.HasPrefix(name, "coredns_fastpath_") {
		from = own
	}
	families, err := from.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()
		}
	}
	return nil
}

// sum adds up the series of a metric that have these labels.
func sum(t testing.TB, name string, labels map[string]string) float64 {
	t.Helper()
	total := 0.0
metrics:
	for _, m := range gather(t, name) {
		have := map[string]string{}
		for _, l := range m.GetLabel() {
			have[l.GetName()] = l.GetValue()
		}
		for k, v := range labels {
			if have[k] != v {
				continue metrics
			}
		}
		total += m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	return total
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// untilHit asks until the fast path answers.
func (c *client) untilHit(name string, qtype uint16) *dns.Msg {
	c.t.Helper()
	var m *dns.Msg
	eventually(c.t, "a hit of the fast path for "+name, func() bool {
		before := hits(c.t)
		m = c.ask(name, qtype)
		return settled(c.t, before)
	})
	return m
}

// settled tells whether a hit was counted since before. The answer is on its way a moment earlier than the count.
func settled(t testing.TB, before float64) bool {
	for range 20 {
		if hits(t) > before {
			return true
		}
		time.Sleep(time.Millisecond)
	}
	return false
}

package cache

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	plugintest "github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// origin is what stands behind a cache: it answers, or fails, as a function of the question and of the time, and notes
// what it was asked.
type origin struct {
	seed  uint64
	delay bool // some answers take longer than a verification waits

	mu    sync.Mutex
	asked []string
}

func (*origin) Name() string { return "origin" }

// phase is how long the origin says the same of a name.
const phase = 37 * time.Second

func (o *origin) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	q := r.Question[0]
	edns := ""
	if opt := r.IsEdns0(); opt != nil {
		edns = opt.String()
	}
	o.mu.Lock()
	o.asked = append(o.asked, fmt.Sprintf("%v %s AD=%t CD=%t RD=%t %s %s", time.Now().UnixNano(), q.String(), r.AuthenticatedData, r.CheckingDisabled,
		r.RecursionDesired, edns, w.RemoteAddr().Network()))
	o.mu.Unlock()
	h := fnv.New64a()
	fmt.Fprint(h, o.seed, strings.ToLower(q.Name), q.Qtype, time.Now().UnixNano()/int64(phase))
	rng := rand.New(rand.NewPCG(h.Sum64(), 3))
	if o.delay && rng.IntN(3) == 0 {
		// Not a number of milliseconds: at the very end of a timeout either may come first.
		time.Sleep(time.Duration(50_500+1000*rng.IntN(400)) * time.Microsecond)
	}
	m, rcode, err := respond(rng, r)
	if strings.HasPrefix(q.Name, "wild") {
		metadata.SetValueFunc(ctx, wildcardLabel, func() string { return "*." + q.Name })
	}
	if m != nil {
		if werr := w.WriteMsg(m); werr != nil {
			return dns.RcodeServerFailure, werr
		}
	}
	return rcode, err
}

// respond is one of the things that handlers and name servers do.
func respond(rng *rand.Rand, r *dns.Msg) (*dns.Msg, int, error) {
	q := r.Question[0]
	m := new(dns.Msg).SetReply(r)
	m.Authoritative, m.AuthenticatedData, m.RecursionAvailable = rng.IntN(2) == 0, rng.IntN(2) == 0, rng.IntN(2) == 0
	m.Compress = rng.IntN(2) == 0
	ttl := func() uint32 { return []uint32{0, 1, 3, 7, 30, 31, 60, 300, 7200, 1 << 31}[rng.IntN(10)] }
	hdr := func(name string, t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: q.Qclass, Ttl: ttl()}
	}
	record := func(name string) dns.RR {
		switch q.Qtype {
		case dns.TypeAAAA:
			return &dns.AAAA{Hdr: hdr(name, dns.TypeAAAA), AAAA: net.ParseIP(fmt.Sprintf("fd00::%x", rng.IntN(9)+1))}
		case dns.TypeTXT:
			return &dns.TXT{Hdr: hdr(name, dns.TypeTXT), Txt: []string{"a\"b", strings.Repeat("x", rng.IntN(200)), "\\007"}}
		case dns.TypeMX:
			return &dns.MX{Hdr: hdr(name, dns.TypeMX), Preference: 1, Mx: "mail." + name}
		}
		return &dns.A{Hdr: hdr(name, dns.TypeA), A: net.IPv4(10, 0, 0, byte(rng.IntN(9)))}
	}
	soa := func() dns.RR {
		return &dns.SOA{Hdr: hdr("example.org.", dns.TypeSOA), Ns: "ns.example.org.", Mbox: "m.example.org.", Minttl: 5}
	}
	if opt := r.IsEdns0(); opt != nil && rng.IntN(2) == 0 {
		m.SetEdns0(1232, opt.Do())
		if rng.IntN(2) == 0 {
			m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_EDE{InfoCode: 22, ExtraText: "x"})
		}
	}
	now := time.Now()
	signature := func(until time.Time) dns.RR {
		return &dns.RRSIG{Hdr: hdr(q.Name, dns.TypeRRSIG), TypeCovered: q.Qtype, SignerName: "example.org.", Signature: "AAAA",
			Inception: uint32(now.Add(-time.Hour).Unix()), Expiration: uint32(until.Unix())}
	}
	switch rng.IntN(26) {
	case 0, 1, 2, 3, 4, 5:
		for range 1 + rng.IntN(4) {
			m.Answer = append(m.Answer, record(q.Name))
		}
	case 6:
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "b.example.org."}, record("B.example.org.")}
	case 7: // without an end
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "b.example.org."}}
	case 8: // NODATA
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "b.example.org."}}
		m.Ns = []dns.RR{soa()}
	case 9: // round and round
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "b.example.org."}, &dns.CNAME{Hdr: hdr("b.example.org.", dns.TypeCNAME), Target: q.Name}}
	case 10:
		m.Ns = []dns.RR{soa()}
	case 11, 12:
		m.Rcode, m.Ns = dns.RcodeNameError, []dns.RR{soa()}
	case 13: // for how long?
		m.Rcode = dns.RcodeNameError
	case 14, 15:
		m.Rcode = dns.RcodeServerFailure
	case 16:
		return nil, dns.RcodeServerFailure, errors.New("no upstream answers")
	case 17:
		m.Rcode = []int{dns.RcodeRefused, dns.RcodeNotImplemented, dns.RcodeFormatError}[rng.IntN(3)]
	case 18:
		m.Ns = []dns.RR{&dns.NS{Hdr: hdr("org.", dns.TypeNS), Ns: "ns.org."}}
	case 19:
		m.Truncated = true
		m.Answer = []dns.RR{record(q.Name)}
	case 20: // another question's
		m.Question = []dns.Question{{Name: "evil.example.org.", Qtype: q.Qtype, Qclass: q.Qclass}}
		m.Answer = []dns.RR{record("evil.example.org.")}
	case 21:
		m.Response = false
		m.Answer = []dns.RR{record(q.Name)}
	case 22:
		m.Answer = []dns.RR{record(q.Name), signature(now.Add(time.Hour))}
		m.Extra = append([]dns.RR{&dns.A{Hdr: hdr("mail."+q.Name, dns.TypeA), A: net.IPv4(10, 9, 9, 9)}}, m.Extra...)
	case 23:
		m.Answer = []dns.RR{record(q.Name), signature(now.Add(-time.Minute))}
	case 24: // as whoami
		m.Extra = append(m.Extra, &dns.TXT{Hdr: hdr("who."+q.Name, dns.TypeTXT), Txt: []string{"you"}})
	case 25: // two names for one
		m.Answer = []dns.RR{&dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "b.example.org."}, &dns.CNAME{Hdr: hdr(q.Name, dns.TypeCNAME), Target: "c.example.org."}, record("c.example.org.")}
	}
	return m, m.Rcode, nil
}

// client notes what it is written.
type client struct {
	plugintest.ResponseWriter
	replies []string
}

func (c *client) WriteMsg(m *dns.Msg) error {
	packed, err := m.Pack()
	c.replies = append(c.replies, fmt.Sprintf("%v compress=%t %x %v", m, m.Compress, packed, err))
	return nil
}

// stanza has CoreDNS's cache, or ours, built by its own setup, in front of next.
func stanza(t *testing.T, p *Plugin, text string, next plugin.Handler) plugin.Handler {
	t.Helper()
	if p != nil {
		return newCacheOf(t, p, text, next)
	}
	c := caddy.NewTestController("dns", text)
	c.ServerBlockKeys = []string{"."}
	setup, err := caddy.DirectiveAction("dns", "cache")
	if err != nil {
		t.Fatal(err)
	}
	if err := setup(c); err != nil {
		t.Fatal(err)
	}
	plugins := dnsserver.GetConfig(c).Plugin
	return plugins[len(plugins)-1](next)
}

// stanzas are what the two are told. A disabled kind is not refreshed here: CoreDNS keeps it then, which we do not. Nor
// does CoreDNS remember a wildcard when it refreshes.
var stanzas = []string{
	"cache",
	"cache 20 example.org",
	"cache {\n success 5000 60 2\n denial 5000 10 1\n servfail 12s\n}",
	"cache {\n success 5000 60 0\n denial 5000 10 0\n servfail 0\n}",
	"cache {\n success 5000 60 0\n servfail 700ms\n}",
	"cache {\n keepttl\n disable denial sub.example.org\n}",
	"cache {\n disable success sub.example.org\n disable denial\n}",
	"cache {\n prefetch 2 20s 30%\n}",
	"cache {\n prefetch 1 1h 90%\n keepttl\n}",
	"cache {\n prefetch 9 30s 80%\n}",
	"cache {\n serve_stale\n}",
	"cache {\n serve_stale 40s immediate\n prefetch 2\n}",
	"cache {\n serve_stale 1h immediate 30s 20s\n}",
	"cache {\n serve_stale 1h verify\n}",
	"cache {\n serve_stale 1h verify 100ms\n keepttl\n}",
	"cache {\n serve_stale 1h verify 100ms 30s 15s\n prefetch 3 1m 50%\n}",
	"cache {\n serve_stale 1h verify 0 30s 15s\n}",
	"cache {\n serve_stale 2m\n serve_stale_policy prefer_positive\n}",
	"cache {\n serve_stale 2m verify 200ms\n serve_stale_policy prefer_positive\n}",
	"cache {\n serve_stale 2m verify\n serve_stale_policy prefer_positive\n success 4000 600 1\n}",
}

var soak = flag.Int("soak", 1, "so many random streams for each stanza of TestAsCoreDNS")

// A long random stream of queries, by a clock that jumps: CoreDNS's cache and ours say the same, ask the same, at the same
// times, and count the same.
func TestAsCoreDNS(t *testing.T) {
	steps := 4000
	if testing.Short() {
		steps = 500
	}
	for i, text := range stanzas {
		t.Run(text, func(t *testing.T) {
			for n := range *soak {
				synctest.Test(t, func(t *testing.T) { compare(t, text, uint64(n*len(stanzas)+i), steps) })
			}
		})
	}
}

func compare(t *testing.T, text string, seed uint64, steps int) {
	p := New(Options{})
	registry := prometheus.NewRegistry()
	if err := p.RegisterMetrics(registry); err != nil {
		t.Fatal(err)
	}
	slow := strings.Contains(text, "verify")
	origins := [2]*origin{{seed: seed, delay: slow}, {seed: seed, delay: slow}}
	handlers := [2]plugin.Handler{stanza(t, nil, text, origins[0]), stanza(t, p, text, origins[1])}
	before := counts(t, prometheus.DefaultGatherer)
	rng := rand.New(rand.NewPCG(seed, 1))
	names := []string{"a.example.org.", "b.example.org.", "c.sub.example.org.", "d.sub.example.org.", "other.example.", "x\\.y.example.org.", "example.org.", "*.example.org."}
	if !strings.Contains(text, "prefetch") && !strings.Contains(text, "serve_stale") {
		names = append(names, "wild.example.org.")
	}
	for step := range steps {
		switch rng.IntN(12) {
		case 0:
			time.Sleep(time.Duration(rng.Int64N(int64(90 * time.Second))))
		case 1:
			time.Sleep(time.Duration(rng.Int64N(int64(10 * time.Minute))))
		default:
			time.Sleep(time.Duration(rng.Int64N(int64(2 * time.Second))))
		}
		q := query(rng, names)
		if rng.IntN(3) == 0 { // one that many ask
			q = new(dns.Msg).SetQuestion(names[0], dns.TypeA)
		}
		var said [2]string
		var wg sync.WaitGroup
		for i, h := range handlers {
			wg.Go(func() { said[i] = ask(h, q.Copy()) })
		}
		wg.Wait()
		synctest.Wait() // for what began in the background
		if said[0] != said[1] {
			t.Fatalf("step %d, %s: CoreDNS says\n%s\nand we\n%s\nthe origin was asked\n%q\n%q", step, q, said[0], said[1], last(origins[0].asked), last(origins[1].asked))
		}
		for _, o := range origins {
			o.mu.Lock()
		}
		same := slices.Equal(origins[0].asked, origins[1].asked)
		a, b := last(origins[0].asked), last(origins[1].asked)
		for _, o := range origins {
			o.mu.Unlock()
		}
		if !same {
			t.Fatalf("step %d: CoreDNS asks\n%q\nand we\n%q", step, a, b)
		}
	}
	time.Sleep(time.Minute) // until nothing is under way
	synctest.Wait()
	if !slices.Equal(origins[0].asked, origins[1].asked) {
		for i := range origins[0].asked {
			if i >= len(origins[1].asked) || origins[0].asked[i] != origins[1].asked[i] {
				t.Fatalf("question %d: CoreDNS asks\n%q\nand we\n%q", i, last(origins[0].asked[:i+1]), last(origins[1].asked[:min(i+1, len(origins[1].asked))]))
			}
		}
		t.Fatal("we ask more than CoreDNS")
	}
	want, got := counts(t, prometheus.DefaultGatherer), counts(t, registry)
	runtime.KeepAlive(handlers) // the gauge is of caches that somebody has
	for name, n := range want {
		if _, ok := got[name]; !ok && n != before[name] {
			t.Errorf("%s is %v with CoreDNS, and not there with us", name, n)
		}
	}
	for name, n := range got {
		if strings.Contains(name, "coredns_cache_entries") {
			if n != want[name] {
				t.Errorf("%s is %v with CoreDNS and %v with us", name, want[name], n)
			}
		} else if d := want[name] - before[name]; n != d {
			t.Errorf("%s is %v with CoreDNS and %v with us", name, d, n)
		}
	}
	if len(got) < 7 {
		t.Errorf("there are %v", got)
	}
	if n := len(origins[0].asked); n == 0 || n == steps {
		t.Errorf("the origin was asked %d times for %d queries", n, steps)
	}
}

func last(s []string) []string { return s[max(0, len(s)-3):] }

// query is one of a stub resolver's, or worse.
func query(rng *rand.Rand, names []string) *dns.Msg {
	name := names[rng.IntN(len(names))]
	if rng.IntN(5) == 0 {
		name = strings.ToUpper(name)
	}
	q := new(dns.Msg).SetQuestion(name, []uint16{dns.TypeA, dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeMX, dns.TypeCNAME, dns.TypeANY}[rng.IntN(7)])
	q.Id = uint16(rng.Uint32())
	q.RecursionDesired = rng.IntN(10) != 0
	q.AuthenticatedData = rng.IntN(6) == 0
	q.CheckingDisabled = rng.IntN(8) == 0
	if rng.IntN(3) == 0 {
		q.SetEdns0(uint16(512+rng.IntN(4000)), rng.IntN(2) == 0)
	}
	switch rng.IntN(60) {
	case 0:
		q.Opcode = dns.OpcodeUpdate
	case 1:
		q.Question[0].Qclass = dns.ClassCHAOS
	case 2:
		q.Question[0].Qtype = dns.TypeAXFR
	}
	return q
}

// ask is what a handler does with a query: replies, return values, and the metadata that it leaves.
func ask(h plugin.Handler, q *dns.Msg) string {
	w := &client{}
	ctx := metadata.ContextWithMetadata(context.Background())
	sent := q.String()
	rcode, err := h.ServeDNS(ctx, w, q)
	wildcard := ""
	if f := metadata.ValueFunc(ctx, wildcardLabel); f != nil {
		wildcard = f()
	}
	if now := q.String(); now != sent {
		return "the query was changed: " + now
	}
	return fmt.Sprintf("%s\nrcode %d, error %v, wildcard %q", strings.Join(w.replies, "\n"), rcode, err, wildcard)
}

// counts are the samples of cache's metrics with their labels.
func counts(t *testing.T, g prometheus.Gatherer) map[string]float64 {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "coredns_cache_") {
			continue
		}
		for _, m := range f.Metric {
			all[fmt.Sprint(f.GetName(), " ", f.GetHelp(), labels(m))] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return all
}

func labels(m *dto.Metric) (all []string) {
	for _, l := range m.Label {
		all = append(all, l.GetName()+"="+l.GetValue())
	}
	return all
}

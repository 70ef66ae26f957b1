package forward

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/pkg/dnstest"
	"github.com/coredns/coredns/plugin/test"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/upstream"
)

// last is the plugin after forward: it says that it was asked.
var last = plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) {
	return dns.RcodeNotZone, errors.New("the next plugin was asked")
})

// chainOf sets the stanzas of one block up as a server would, started.
func chainOf(t *testing.T, p *Plugin, stanzas string) plugin.Handler {
	t.Helper()
	c := caddy.NewTestController("dns", stanzas)
	configs, err := p.parse(c)
	if err != nil {
		t.Fatal(err)
	}
	var next plugin.Handler = last
	for i := len(configs) - 1; i >= 0; i-- {
		f := &forward{plugin: p, config: configs[i]}
		if err := p.start(f, 1, dnsserver.GetConfig(c)); err != nil {
			t.Fatal(err)
		}
		next = &handler{forward: f, next: next}
	}
	return next
}

// ask sends one question through h. The reply is nil where nothing was written.
func ask(t *testing.T, h plugin.Handler, q *dns.Msg) (*dns.Msg, int, error) {
	t.Helper()
	w := dnstest.NewRecorder(&test.ResponseWriter{})
	rcode, err := h.ServeDNS(t.Context(), w, q)
	return w.Msg, rcode, err
}

func question(name string) *dns.Msg { return new(dns.Msg).SetQuestion(name, dns.TypeA) }

func firstA(t *testing.T, m *dns.Msg) string {
	t.Helper()
	if m == nil || len(m.Answer) != 1 {
		t.Fatalf("no answer in %v", m)
	}
	return m.Answer[0].(*dns.A).A.String()
}

// TestAnswer wants the client's own ID, case and flags, whatever was sent upstream.
func TestAnswer(t *testing.T) {
	s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		m.Answer = []dns.RR{mustRR(t, "www.example.org. 60 IN A 192.0.2.1")}
		if r.IsEdns0() != nil {
			m.SetEdns0(1232, false)
		}
		w.WriteMsg(m)
	})
	h := chainOf(t, newTestPlugin(t), "forward . "+s.addr)
	for _, edns := range []bool{false, true} {
		q := question("wWw.eXample.ORG.")
		q.CheckingDisabled = true
		if edns {
			q.SetEdns0(4096, true)
		}
		m, rcode, err := ask(t, h, q)
		if err != nil || rcode != dns.RcodeSuccess {
			t.Fatalf("rcode %d, %v", rcode, err)
		}
		if firstA(t, m) != "192.0.2.1" {
			t.Errorf("got %v", m)
		}
		if m.Id != q.Id || m.Question[0] != q.Question[0] || !m.Response || !m.RecursionDesired || !m.CheckingDisabled {
			t.Errorf("the reply is another client's: %v to %v", m, q)
		}
		if (m.IsEdns0() != nil) != edns {
			t.Errorf("OPT %v, but the client's is %v", m.IsEdns0(), q.IsEdns0())
		}
	}
}

func TestMatches(t *testing.T) {
	s := serve(t, answerA("192.0.2.1"))
	h := chainOf(t, newTestPlugin(t), "forward example.org "+s.addr+" {\nexcept sub.example.org a.b.example.org example.org\n}")
	for name, forwarded := range map[string]bool{
		"example.org.": true, "EXAMPLE.org.": true, "www.example.org.": false,
		"sub.example.org.": false, "example.net.": false, ".": false, "badexample.org.": false,
	} {
		m, rcode, _ := ask(t, h, question(name))
		if forwarded != (m != nil) || !forwarded && rcode != dns.RcodeNotZone {
			t.Errorf("%s: got %v, rcode %d; forwarded should be %v", name, m, rcode, forwarded)
		}
	}
	h = chainOf(t, newTestPlugin(t), "forward . "+s.addr+" {\nexcept example.org\n}")
	for name, forwarded := range map[string]bool{".": true, "example.net.": true, "example.org.": false, "x.Example.org.": false} {
		if m, _, _ := ask(t, h, question(name)); forwarded != (m != nil) {
			t.Errorf("%s: got %v; forwarded should be %v", name, m, forwarded)
		}
	}
}

// TestTransport sees which transport each property leads to, by the client's own.
func TestTransport(t *testing.T) {
	for _, tt := range []struct {
		property string
		client   bool // over TCP
		tcp      bool // to the upstream
	}{
		{"", false, false}, {"", true, true},
		{"force_tcp", false, true}, {"prefer_udp", true, false}, {"force_tcp\nprefer_udp", false, true},
	} {
		s := serve(t, answerA("192.0.2.1"))
		h := chainOf(t, newTestPlugin(t), "forward . "+s.addr+" {\n"+tt.property+"\n}")
		w := dnstest.NewRecorder(&test.ResponseWriter{TCP: tt.client})
		if _, err := h.ServeDNS(t.Context(), w, question("example.org.")); err != nil {
			t.Fatal(err)
		}
		if got := s.tcp.Load() == 1 && s.udp.Load() == 0; got != tt.tcp {
			t.Errorf("%q, client over TCP %v: %d questions over UDP, %d over TCP", tt.property, tt.client, s.udp.Load(), s.tcp.Load())
		}
	}
}

// TestNext covers next and next_on_nodata: they lead to another stanza of the block, and nowhere else.
func TestNext(t *testing.T) {
	nxdomain, nodata := serve(t, answerRcode(dns.RcodeNameError)), serve(t, answerRcode(dns.RcodeSuccess))
	good := serve(t, answerA("192.0.2.1"))
	for _, tt := range []struct {
		stanzas string
		rcode   int
		answers int
	}{
		{"forward . NX {\nnext NXDOMAIN\n}\nforward . GOOD", dns.RcodeSuccess, 1},
		{"forward . NX {\nnext SERVFAIL\n}\nforward . GOOD", dns.RcodeNameError, 0},
		{"forward . NX\nforward . GOOD", dns.RcodeNameError, 0},
		{"forward . NX {\nnext NXDOMAIN\n}\nforward . NX {\nnext NXDOMAIN\n}\nforward . GOOD", dns.RcodeSuccess, 1},
		{"forward . NX {\nnext NXDOMAIN\n}", dns.RcodeNameError, 0},
		{"forward . EMPTY {\nnext_on_nodata\n}\nforward . GOOD", dns.RcodeSuccess, 1},
		{"forward . EMPTY {\nnext NOERROR\n}\nforward . GOOD", dns.RcodeSuccess, 1},
		{"forward . EMPTY\nforward . GOOD", dns.RcodeSuccess, 0},
		{"forward . EMPTY {\nnext_on_nodata\n}", dns.RcodeSuccess, 0},
		{"forward . NX {\nnext_on_nodata\n}\nforward . GOOD", dns.RcodeNameError, 0},
	} {
		stanzas := strings.NewReplacer("NX {", nxdomain.addr+" {", "NX\n", nxdomain.addr+"\n", "EMPTY", nodata.addr, "GOOD", good.addr).Replace(tt.stanzas)
		m, _, err := ask(t, chainOf(t, newTestPlugin(t), stanzas), question("example.org."))
		if err != nil || m == nil {
			t.Fatalf("%q: %v, %v", tt.stanzas, m, err)
		}
		if m.Rcode != tt.rcode || len(m.Answer) != tt.answers {
			t.Errorf("%q: got %s with %d records, want %s with %d", tt.stanzas, dns.RcodeToString[m.Rcode], len(m.Answer), dns.RcodeToString[tt.rcode], tt.answers)
		}
	}
}

func TestFailover(t *testing.T) {
	servfail, refused := serve(t, answerRcode(dns.RcodeServerFailure)), serve(t, answerRcode(dns.RcodeRefused))
	good := serve(t, answerA("192.0.2.1"))
	for _, tt := range []struct {
		to, property string
		rcode        int
	}{
		{servfail.addr + " " + refused.addr + " " + good.addr, "failover SERVFAIL REFUSED", dns.RcodeSuccess},
		{servfail.addr + " " + refused.addr + " " + good.addr, "failover SERVFAIL", dns.RcodeRefused},
		{servfail.addr + " " + good.addr, "", dns.RcodeServerFailure},
		{servfail.addr + " " + refused.addr, "failover SERVFAIL REFUSED", dns.RcodeRefused},
	} {
		h := chainOf(t, newTestPlugin(t), "forward . "+tt.to+" {\npolicy sequential\n"+tt.property+"\n}")
		m, _, err := ask(t, h, question("example.org."))
		if err != nil || m == nil || m.Rcode != tt.rcode {
			t.Errorf("%q: got %v, %v, want %s", tt.property, m, err, dns.RcodeToString[tt.rcode])
		}
	}
}

// TestDeadUpstream answers from the other of two, at once.
func TestDeadUpstream(t *testing.T) {
	good := serve(t, answerA("192.0.2.1"))
	for _, property := range []string{"", "force_tcp"} {
		h := chainOf(t, newTestPlugin(t), "forward . "+deadAddr(t)+" "+good.addr+" {\npolicy sequential\n"+property+"\n}")
		m, _, err := ask(t, h, question("example.org."))
		if err != nil {
			t.Fatal(err)
		}
		firstA(t, m)
	}
}

// TestMaxConcurrent refuses the question above the limit, and counts it.
func TestMaxConcurrent(t *testing.T) {
	asked, release := make(chan struct{}, 1), make(chan struct{})
	s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		select {
		case asked <- struct{}{}:
		default: // another attempt for the same question
		}
		<-release
		answerA("192.0.2.1")(w, r)
	})
	p := newTestPlugin(t)
	h := chainOf(t, p, "forward . "+s.addr+" {\nmax_concurrent 1\n}")
	var done sync.WaitGroup
	done.Go(func() {
		if _, rcode, err := ask(t, h, question("one.example.org.")); err != nil || rcode != dns.RcodeSuccess {
			t.Errorf("the first question: rcode %d, %v", rcode, err)
		}
	})
	<-asked
	m, rcode, err := ask(t, h, question("two.example.org."))
	if m != nil || rcode != dns.RcodeRefused || !errors.Is(err, upstream.ErrOverloaded) {
		t.Errorf("the second question: %v, rcode %d, %v", m, rcode, err)
	}
	if n := value(t, p.metrics.rejects); n != 1 {
		t.Errorf("coredns_forward_max_concurrent_rejects_total is %v", n)
	}
	close(release)
	done.Wait()
}

// TestFailure wants an error and no reply, for cache's sake, that names the upstream; and through the
// block's outermost handler a reply with an Extended DNS Error, where the client can read one.
func TestFailure(t *testing.T) {
	quiet := serve(t, silent)
	for _, tt := range []struct {
		to   string
		code uint16
	}{
		{deadAddr(t), dns.ExtendedErrorCodeNetworkError},
		{quiet.addr, dns.ExtendedErrorCodeNoReachableAuthority},
	} {
		h := chainOf(t, newTestPlugin(t), "forward . "+tt.to)
		began := time.Now()
		m, rcode, err := ask(t, h, question("example.org."))
		if m != nil || rcode != dns.RcodeServerFailure || err == nil || !strings.Contains(err.Error(), tt.to) {
			t.Errorf("%s: got %v, rcode %d, error %v", tt.to, m, rcode, err)
		}
		// musl asks anew after 2.5 s. The margin is for a busy machine.
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("%s: the failure took %s", tt.to, took)
		}

		outer := explainer{next: h}
		if m, rcode, err = ask(t, outer, question("example.org.")); m != nil || rcode != dns.RcodeServerFailure || err == nil {
			t.Errorf("%s, client without EDNS: got %v, rcode %d, %v", tt.to, m, rcode, err)
		}
		q := question("example.org.")
		q.SetEdns0(1232, true)
		m, rcode, err = ask(t, outer, q)
		if m == nil || rcode != dns.RcodeSuccess || err == nil {
			t.Fatalf("%s, client with EDNS: got %v, rcode %d, %v", tt.to, m, rcode, err)
		}
		opt := m.IsEdns0()
		if m.Rcode != dns.RcodeServerFailure || m.Id != q.Id || opt == nil || !opt.Do() || len(opt.Option) != 1 {
			t.Fatalf("%s: got %v", tt.to, m)
		}
		ede, ok := opt.Option[0].(*dns.EDNS0_EDE)
		if !ok || ede.InfoCode != tt.code || !strings.Contains(ede.ExtraText, tt.to) {
			t.Errorf("%s: got %v, want code %d and the upstream's address", tt.to, opt.Option[0], tt.code)
		}
	}
}

// TestExplainsOnly wants every reply and error of other plugins to pass the outermost handler untouched.
func TestExplainsOnly(t *testing.T) {
	other := errors.New("another plugin's")
	for _, rcode := range []int{dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeSuccess} {
		h := explainer{next: plugin.HandlerFunc(func(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return rcode, other })}
		q := question("example.org.")
		q.SetEdns0(1232, false)
		if m, got, err := ask(t, h, q); m != nil || got != rcode || !errors.Is(err, other) {
			t.Errorf("got %v, rcode %d, %v", m, got, err)
		}
	}
}

// TestInvalid refuses what cannot be packed, without asking anybody.
func TestInvalid(t *testing.T) {
	s := serve(t, answerA("192.0.2.1"))
	h := chainOf(t, newTestPlugin(t), "forward . "+s.addr)
	q := question("example.org.")
	q.Answer = []dns.RR{&dns.TXT{Hdr: dns.RR_Header{Name: "example.org.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{strings.Repeat("x", 256)}}}
	m, rcode, err := ask(t, h, q)
	if m != nil || rcode != dns.RcodeFormatError || err == nil {
		t.Errorf("got %v, rcode %d, %v", m, rcode, err)
	}
	if n := s.questions(); n != 0 {
		t.Errorf("%d questions reached the upstream", n)
	}
}

func TestFailFast(t *testing.T) {
	s := serve(t, silent)
	p := newTestPlugin(t)
	h := chainOf(t, p, "forward . "+s.addr+" {\nread_timeout 50ms\nmax_fails 1\nhealth_check 1h\nfailfast_all_unhealthy_upstreams\n}")
	for i := range 20 {
		before := s.questions()
		_, rcode, err := ask(t, h, question(fmt.Sprintf("n%d.example.org.", i)))
		if rcode != dns.RcodeServerFailure || err == nil {
			t.Fatalf("rcode %d, %v", rcode, err)
		}
		if errors.Is(err, upstream.ErrAllDown) {
			if s.questions() != before {
				t.Error("a question was sent although every upstream is down")
			}
			if n := value(t, p.metrics.broken); n < 1 {
				t.Errorf("coredns_forward_healthcheck_broken_total is %v", n)
			}
			return
		}
	}
	t.Error("an upstream that never answers did not go down")
}

func TestMetadata(t *testing.T) {
	good := serve(t, answerA("192.0.2.1"))
	dead := deadAddr(t)
	for to, want := range map[string]string{good.addr: good.addr, dead: dead} {
		h := chainOf(t, newTestPlugin(t), "forward . "+to)
		ctx := metadata.ContextWithMetadata(t.Context())
		w := dnstest.NewRecorder(&test.ResponseWriter{})
		_, err := h.ServeDNS(ctx, w, question("example.org."))
		if to == good.addr && err != nil {
			t.Fatal(err)
		}
		f := metadata.ValueFunc(ctx, "forward/upstream")
		if f == nil || f() != want {
			t.Errorf("forward/upstream is not %s", want)
		}
	}
}

// TestOneExchange has many clients ask one cold name, each with an ID and case of its own.
func TestOneExchange(t *testing.T) {
	release := make(chan struct{})
	s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) { <-release; answerA("192.0.2.1")(w, r) })
	p := newTestPlugin(t)
	h := chainOf(t, p, "forward . "+s.addr+" {\nread_timeout 20s\n}")
	const clients = 100
	var done sync.WaitGroup
	for i := range clients {
		name := "www.example.org."
		if i%2 == 0 {
			name = "WWW.example.ORG."
		}
		done.Go(func() {
			q := question(name)
			q.Id = uint16(i)
			m, _, err := ask(t, h, q)
			if err != nil || m == nil || m.Id != uint16(i) || m.Question[0].Name != name {
				t.Errorf("client %d asked %s: got %v, %v", i, name, m, err)
			}
		})
	}
	deadline := time.Now().Add(10 * time.Second)
	for s.questions() == 0 && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(50 * time.Millisecond)
	close(release)
	done.Wait()
	// A late attempt may be hedged; a hundred clients on their own would not be two.
	if n := s.questions(); n > 2 {
		t.Errorf("%d exchanges for one name", n)
	}
}

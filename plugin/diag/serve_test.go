package diag

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	_ "github.com/coredns/coredns/plugin/acl"     // a directive of the Corefiles here
	_ "github.com/coredns/coredns/plugin/bind"    // a directive of the Corefiles here
	_ "github.com/coredns/coredns/plugin/errors"  // a directive of the Corefiles here
	_ "github.com/coredns/coredns/plugin/metrics" // a directive of the Corefiles here
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/upstream"
	_ "github.com/coredns/coredns/plugin/rewrite" // a directive of the Corefiles here
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/freeport"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/plugin/cache"
)

// whole is the one Plugin that these tests register: CoreDNS has no way to take one back.
var whole = sync.OnceValue(func() *Plugin {
	caddy.Quiet, dnsserver.Quiet = true, true
	p := New(Options{
		Queries: observe.NewQueries(observe.QueriesOptions{}), Upstreams: observe.NewUpstreams(0),
		Socket: filepath.Join(socketDir, "diag.sock"), Version: "test",
	})
	p.Register()
	cache.New(cache.Options{}).Register()
	plugin.Register("testattach", p.Attach)
	plugin.Register("testhold", func(c *caddy.Controller) error {
		c.Next()
		dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler { return holder{next} })
		return nil
	})
	plugin.Register("testanswer", func(c *caddy.Controller) error {
		c.Next()
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return answerer{} })
		return nil
	})
	if err := dnsserver.SetDirectives(append(append([]string{"testattach", "testhold"}, dnsserver.Directives...), "testanswer", directive)); err != nil {
		panic(err)
	}
	return p
})

var socketDir string

func TestMain(m *testing.M) {
	clog.Discard()
	var err error
	if socketDir, err = os.MkdirTemp("", "diag"); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(socketDir)
	os.Exit(code)
}

// answerer plays forward and the like: what becomes of a query stands in the first label of its name.
type answerer struct{}

var (
	down atomic.Bool // upstreams are
	gone atomic.Bool // all names are
)

func (answerer) Name() string { return "testanswer" }

func (a answerer) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	name := r.Question[0].Name
	kind, _, _ := strings.Cut(strings.ToLower(name), ".")
	kind, _, _ = strings.Cut(kind, "-")
	m := new(dns.Msg).SetReply(r)
	ttl := 3600
	switch kind {
	case "drop":
		return dns.RcodeSuccess, nil
	case "panic":
		panic("on purpose")
	case "refused":
		return dns.RcodeRefused, nil
	case "local":
		ttl = 0
	case "raw":
		m.Rcode = dns.RcodeNameError
		data, _ := m.Pack()
		_, err := w.Write(data)
		return dns.RcodeNameError, err
	case "second":
		// As dns64 and template do.
		return a.lookUp(ctx, w, r, m)
	default:
		observe.TraceFrom(ctx).Wait(5 * time.Millisecond)
		step := observe.Step{Upstream: "192.0.2.1:53", Duration: 5 * time.Millisecond}
		if down.Load() || kind == "fail" {
			step.Outcome = observe.Timeout
			observe.TraceFrom(ctx).Add(step)
			return dns.RcodeServerFailure, errors.New("silent")
		}
		observe.TraceFrom(ctx).Add(step)
		if kind == "nx" || gone.Load() {
			m.Rcode = dns.RcodeNameError
			soa, _ := dns.NewRR("example.org. 60 IN SOA a. b. 1 2 3 4 60")
			m.Ns = []dns.RR{soa}
			return dns.RcodeNameError, w.WriteMsg(m)
		}
		if kind == "short" || kind == "held" {
			ttl = 1
		}
		if kind == "held" {
			held.answered.Add(1)
		}
	}
	rr, err := dns.NewRR(fmt.Sprintf("%s %d IN A 192.0.2.7", name, ttl))
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	m.Answer = []dns.RR{rr}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func (answerer) lookUp(ctx context.Context, w dns.ResponseWriter, r, m *dns.Msg) (int, error) {
	found, err := upstream.New().Lookup(ctx, request.Request{W: w, Req: r}, "up-second.example.org.", dns.TypeA)
	if err != nil {
		return dns.RcodeServerFailure, err
	}
	m.Answer = found.Answer
	return dns.RcodeSuccess, w.WriteMsg(m)
}

// freePort is a port that nobody has, for UDP and TCP.
func input(port, block string) caddy.Input {
	return caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns", Contents: []byte(fmt.Sprintf(".:%s {\nbind 127.0.0.1\n%s\n}\n", port, block))}
}

// serve starts CoreDNS with one block, and forgets what was counted before.
func serve(t *testing.T, block string) (inst *caddy.Instance, port string) {
	t.Helper()
	whole()
	port = freeport.Text(t)
	inst, err := caddy.Start(input(port, block))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, inst); down.Store(false) })
	return inst, port
}

func stop(t *testing.T, inst *caddy.Instance) {
	t.Helper()
	for _, err := range inst.ShutdownCallbacks() {
		t.Error(err)
	}
	if err := inst.Stop(); err != nil {
		t.Error(err)
	}
}

func ask(t *testing.T, network, port, name string) *dns.Msg {
	t.Helper()
	m, _, err := (&dns.Client{Net: network, Timeout: 5 * time.Second}).Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), "127.0.0.1:"+port)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return m
}

// counted is what was counted since before.
type counted struct {
	sources map[string]uint64
	rcodes  map[string]uint64
}

func total() observe.Counts {
	return whole().options.Queries.Snapshot(time.Now()).Total[observe.SinceStart]
}

// since waits until n queries more than before are counted: the reply is there a little before.
func since(t *testing.T, before observe.Counts, n uint64) counted {
	t.Helper()
	var now observe.Counts
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if now = total(); now.Queries()-before.Queries() >= n || time.Now().After(deadline) {
			break
		}
	}
	if got := now.Queries() - before.Queries(); got != n {
		t.Errorf("%d queries were counted, want %d", got, n)
	}
	c := counted{map[string]uint64{}, map[string]uint64{}}
	for i := range now.Sources {
		if n := now.Sources[i] - before.Sources[i]; n > 0 {
			c.sources[observe.Source(i).String()] = n
		}
	}
	for i := range now.Rcodes {
		if n := now.Rcodes[i] - before.Rcodes[i]; n > 0 {
			c.rcodes[observe.Outcome(i).String()] = n
		}
	}
	return c
}

func (c counted) String() string { return fmt.Sprint(c.sources, c.rcodes) }

// TestRecords: each kind of end, as the client saw it, and where it came from.
func TestRecords(t *testing.T) {
	_, port := serve(t, "diag\nerrors\nacl {\nblock type ANY\n}\nrewrite name exact before.example.org. up-after.example.org.\ncache\ntestanswer")
	for _, tt := range []struct {
		name, network string
		asks          []string
		want          string
	}{
		{"miss", "udp", []string{"up.example.org."}, "map[upstream:1] map[noerror:1]"},
		{"hit", "udp", []string{"up.example.org.", "UP.example.org."}, "map[cache:2] map[noerror:2]"},
		{"tcp", "tcp", []string{"up-tcp.example.org.", "up-tcp.example.org."}, "map[cache:1 upstream:1] map[noerror:2]"},
		{"denial", "udp", []string{"nx.example.org.", "nx.example.org."}, "map[cache:1 upstream:1] map[nxdomain:2]"},
		{"made here", "udp", []string{"local.example.org."}, "map[local:1] map[noerror:1]"},
		{"rewritten", "udp", []string{"before.example.org.", "before.example.org."}, "map[cache:1 upstream:1] map[noerror:2]"},
		{"failure", "udp", []string{"fail.example.org."}, "map[upstream:1] map[servfail:1]"},
		{"failure from memory", "udp", []string{"fail.example.org."}, "map[cache:1] map[servfail:1]"},
		{"rcode without a reply", "udp", []string{"refused.example.org."}, "map[local:1] map[refused:1]"},
		{"packed by a handler", "udp", []string{"raw.example.org."}, "map[local:1] map[nxdomain:1]"},
		{"look-up within", "udp", []string{"second.example.org."}, "map[upstream:1] map[noerror:1]"},
		{"panic", "udp", []string{"panic.example.org."}, "map[local:1] map[servfail:1]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := total()
			for _, name := range tt.asks {
				ask(t, tt.network, port, name)
			}
			if got := since(t, before, uint64(len(tt.asks))).String(); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if n := whole().options.Queries.Totals(time.Now()).InFlight; n != 0 {
		t.Errorf("%d queries are in flight", n)
	}
}

// TestAttach: a block can have it without the word, and has it once where both are there.
func TestAttach(t *testing.T) {
	for _, words := range []string{"testattach", "testattach\ndiag", "testattach\ndiag {\nslow 1s\n}", "diag\ndiag"} {
		for _, chain := range []string{"\ntestanswer", "\ncache\ntestanswer"} {
			_, port := serve(t, words+chain)
			before := total()
			ask(t, "udp", port, "local.example.org.")
			if got := since(t, before, 1).String(); got != "map[local:1] map[noerror:1]" {
				t.Errorf("%q: got %v", words+chain, got)
			}
		}
		_, port := serve(t, words+"\ncache\ntestanswer")
		before := total()
		ask(t, "udp", port, "up.example.org.")
		ask(t, "udp", port, "up.example.org.")
		if got := since(t, before, 2).String(); got != "map[cache:1 upstream:1] map[noerror:2]" {
			t.Errorf("%q: got %v", words, got)
		}
	}
}

// holder keeps replies back until upstreams have answered as many questions as were asked.
type holder struct{ next plugin.Handler }

var held struct{ asked, answered atomic.Int32 }

func (holder) Name() string { return "testhold" }

func (h holder) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	held.asked.Add(1)
	return h.next.ServeDNS(ctx, holdingWriter{w}, r)
}

type holdingWriter struct{ dns.ResponseWriter }

func (w holdingWriter) WriteMsg(m *dns.Msg) error {
	for deadline := time.Now().Add(10 * time.Second); held.answered.Load() < held.asked.Load() && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	return w.ResponseWriter.WriteMsg(m)
}

// TestPrefetch: what a hit sets off is not what its client waited for, not even where it ends before the hit does.
func TestPrefetch(t *testing.T) {
	_, port := serve(t, "diag\ntesthold\ncache {\nsuccess 100 1 0\nprefetch 1 1m 90%\n}\ntestanswer")
	before := total()
	ask(t, "udp", port, "held.example.org.")
	since(t, before, 1)
	before = total()
	ask(t, "udp", port, "held.example.org.")
	if got := since(t, before, 1).String(); got != "map[cache:1] map[noerror:1]" {
		t.Errorf("got %v", got)
	}
	if held.answered.Load() < 2 {
		t.Error("there was no prefetch")
	}
	if waited := total().Upstream - before.Upstream; waited != 0 {
		t.Errorf("the hit waited %v for an upstream", waited)
	}
}

// TestDropped: a client that gets nothing is not one that got an answer.
func TestDropped(t *testing.T) {
	_, port := serve(t, "diag\ntestanswer")
	before := total()
	c, err := net.Dial("udp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data, _ := new(dns.Msg).SetQuestion("drop.example.org.", dns.TypeA).Pack()
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	if got := since(t, before, 1).String(); got != "map[local:1] map[other_rcode:1]" {
		t.Errorf("got %v", got)
	}
	story := whole().options.Queries.Snapshot(time.Now()).Stories[0]
	if story.Name != "drop.example.org." || story.Rcode != observe.NoReply {
		t.Errorf("got %+v", story)
	}
}

// TestStale takes the upstream away: what cache still has is stale, and the wait of a verification is seen.
func TestStale(t *testing.T) {
	for _, tt := range []struct {
		mode, fresh string
	}{
		{"serve_stale 1h", "map[stale:1] map[noerror:1]"},
		{"serve_stale 1h immediate 30s", "map[stale:1] map[noerror:1]"},
		{"serve_stale 1h verify", "map[upstream:1] map[noerror:1]"},
		{"serve_stale 1h verify\nservfail 0", "map[upstream:1] map[noerror:1]"},
		{"serve_stale 1h\nkeepttl", "map[stale:1] map[noerror:1]"},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			_, port := serve(t, "diag\ncache {\nsuccess 100 1 0\n"+tt.mode+"\n}\ntestanswer")
			ask(t, "udp", port, "short.example.org.")
			expire(t, port)
			down.Store(true)
			before := total()
			for range 3 {
				if m := ask(t, "udp", port, "short.example.org."); m.Rcode != 0 || len(m.Answer) != 1 {
					t.Fatalf("no stale answer: %v", m)
				}
			}
			if got := since(t, before, 3).String(); got != "map[stale:3] map[noerror:3]" {
				t.Errorf("got %v", got)
			}
			down.Store(false)
			before = total()
			ask(t, "udp", port, "short.example.org.")
			if got := since(t, before, 1).String(); got != tt.fresh {
				t.Errorf("with the upstream back: got %v, want %v", got, tt.fresh)
			}
		})
	}
}

// TestStaleIsPreferred: the name is gone, and the stanza says that its last address is given all the same.
func TestStaleIsPreferred(t *testing.T) {
	for mode, want := range map[string]string{
		"serve_stale 1h":                  "map[stale:3] map[noerror:3]",
		"serve_stale 1h immediate 30s":    "map[stale:3] map[noerror:3]",
		"serve_stale 1h verify 0 30s":     "map[stale:3] map[noerror:3]",
		"serve_stale 1h verify 500ms 30s": "map[stale:3] map[noerror:3]",
	} {
		t.Run(mode, func(t *testing.T) {
			_, port := serve(t, "diag\ncache {\nsuccess 100 1 0\n"+mode+"\nserve_stale_policy prefer_positive\n}\ntestanswer")
			ask(t, "udp", port, "short.example.org.")
			expire(t, port)
			gone.Store(true)
			defer gone.Store(false)
			before := total()
			for range 3 {
				if m := ask(t, "udp", port, "short.example.org."); m.Rcode != 0 || len(m.Answer) != 1 {
					t.Fatalf("no stale answer: %v", m)
				}
			}
			if got := since(t, before, 3).String(); got != want {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// TestFreshWithTheTTLOfStaleOnes: an answer that has just as much left as stale ones are given is not stale.
func TestFreshWithTheTTLOfStaleOnes(t *testing.T) {
	for _, name := range []string{"www.example.org.", "WWW.example.org."} {
		_, port := serve(t, "diag\ncache {\nsuccess 100 30 30\nserve_stale 1h verify 1s 30s 30s\n}\ntestanswer")
		before := total()
		ask(t, "udp", port, name)
		since(t, before, 1)
		before = total()
		exact := 0
		for range 3 {
			if m := ask(t, "udp", port, name); len(m.Answer) == 1 && m.Answer[0].Header().Ttl == 30 {
				exact++
			}
		}
		if got := since(t, before, 3).String(); got != "map[cache:3] map[noerror:3]" {
			t.Errorf("got %v, %d of the answers with a TTL of 30", got, exact)
		}
	}
}

// expire waits until a TTL of 1 s is over.
func expire(t *testing.T, port string) {
	t.Helper()
	time.Sleep(1100 * time.Millisecond) // a TTL has no event to wait for
}

// TestTransparent: the replies with the directive are those without it, byte for byte but for the ID.
func TestTransparent(t *testing.T) {
	const chain = "errors\ncache\ntestanswer"
	_, with := serve(t, "diag\n"+chain)
	_, without := serve(t, chain)
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{"up.example.org.", "up.example.org.", "Up.eXample.org.", "nx.example.org.", "nx.example.org.", "local.example.org.", "fail.example.org.", "refused.example.org.", "raw.example.org.", "second.example.org.", "panic.example.org."} {
			a, b := ask(t, network, with, name), ask(t, network, without, name)
			a.Id = b.Id
			for _, m := range []*dns.Msg{a, b} { // the second may be one tick later
				for _, rr := range append(append([]dns.RR{}, m.Answer...), m.Ns...) {
					rr.Header().Ttl = rr.Header().Ttl / 10
				}
			}
			if a.String() != b.String() {
				t.Errorf("%s %s: got\n%v\nwant\n%v", network, name, a, b)
			}
		}
	}
}

// TestLookups: CoreDNS finds a block's handlers as ever.
func TestLookups(t *testing.T) {
	block := &dnsserver.Config{}
	block.AddPlugin(func(next plugin.Handler) plugin.Handler { return named{"cache", next} })
	block.AddPlugin(func(next plugin.Handler) plugin.Handler { return named{"forward", next} })
	surround(whole(), block)
	var stack plugin.Handler
	var names []string
	for i := len(block.Plugin) - 1; i >= 0; i-- {
		stack = block.Plugin[i](stack)
		names = append(names, fmt.Sprintf("%s:%T", stack.Name(), stack))
	}
	if got, want := strings.Join(names, " "), "forward:diag.named cache:diag.named diag:*diag.handler"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	empty := &dnsserver.Config{}
	if surround(whole(), empty); len(empty.Plugin) != 0 {
		t.Error("a block without plugins has one now, and is not refused any more")
	}
}

type named struct {
	name string
	next plugin.Handler
}

func (n named) Name() string                                                        { return n.name }
func (n named) ServeDNS(context.Context, dns.ResponseWriter, *dns.Msg) (int, error) { return 0, nil }

// body asks the API.
func body(t *testing.T, client *http.Client, url, token string) (int, string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// TestReload: history and listeners go on; what the new Corefile does not have ends; a reload that fails changes nothing.
func TestReload(t *testing.T) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	first, second := freeport.Text(t), freeport.Text(t)
	inst, port := serveOnly(t, "diag {\nlisten 127.0.0.1:"+first+"\naccess open\nslow 50ms\n}\ncache\ntestanswer")
	before := total()
	ask(t, "udp", port, "up.example.org.")
	since(t, before, 1)
	url := func(port string) string { return "http://127.0.0.1:" + port + "/statusz" }
	status := func(port string) int {
		code, _ := body(t, client, url(port), "")
		return code
	}
	if got := status(first); got != 200 {
		t.Fatalf("status %d", got)
	}
	restarted, err := inst.Restart(input(port, "diag {\nlisten 127.0.0.1:"+first+" 127.0.0.1:"+second+"\naccess open\nslow 1s\n}\ncache\ntestanswer"))
	if err != nil {
		t.Fatal(err)
	}
	inst = restarted
	if status(first) != 200 || status(second) != 200 {
		t.Error("after the reload: not both listeners are served")
	}
	if got := whole().options.Queries.Options(); got.Slow != time.Second || got.Clients != defaultClients {
		t.Errorf("after the reload: %+v", got)
	}
	since(t, before, 1) // history is there
	if _, err := inst.Restart(input(port, "diag {\nlisten 127.0.0.1:"+second+"\naccess open\n}\nbind 192.0.2.1\ncache\ntestanswer")); err == nil {
		t.Fatal("an address that is not ours could be bound")
	}
	if status(first) != 200 || status(second) != 200 || whole().options.Queries.Options().Slow != time.Second {
		t.Error("a reload that failed has changed something")
	}
	if restarted, err = inst.Restart(input(port, "diag\ncache\ntestanswer")); err != nil {
		t.Fatal(err)
	}
	inst = restarted
	if status(first) != 0 || status(second) != 0 {
		t.Error("listeners that nobody wants are served")
	}
	if !recorded(t, true) {
		t.Error("the fast path's hits are not recorded")
	}
	if _, err := os.Stat(whole().options.Socket); err != nil {
		t.Error(err)
	}
	if restarted, err = inst.Restart(input(port, "cache\ntestanswer")); err != nil {
		t.Fatal(err)
	}
	if !recorded(t, false) {
		t.Error("without the directive the fast path's hits are recorded")
	}
	if _, err := os.Stat(whole().options.Socket); !os.IsNotExist(err) {
		t.Errorf("without the directive the socket is still there: %v", err)
	}
	stop(t, restarted)
}

// recorded tells whether a hit of the fast path is recorded or not, as wanted.
func recorded(t *testing.T, want bool) bool {
	before := total()
	whole().RecordAll([]observe.Query{{Client: netip.MustParseAddrPort("10.0.0.1:53"), Name: []byte{0}, Received: time.Now().UnixNano()}})
	after := total()
	return (after.Queries() > before.Queries()) == want
}

func serveOnly(t *testing.T, block string) (*caddy.Instance, string) {
	t.Helper()
	whole()
	port := freeport.Text(t)
	inst, err := caddy.Start(input(port, block))
	if err != nil {
		t.Fatal(err)
	}
	return inst, port
}

// TestAccess: a listener with a token lets nobody else in, and takes the next token when its file changes.
func TestAccess(t *testing.T) {
	client := &http.Client{Timeout: 5 * time.Second}
	file, port := filepath.Join(t.TempDir(), "token"), freeport.Text(t)
	write := func(token string) {
		if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("0123456789abcdef0123")
	serve(t, "diag {\nlisten 127.0.0.1:"+port+"\naccess token "+file+"\n}\ntestanswer")
	url := "http://127.0.0.1:" + port + "/api/v1/summary"
	for token, want := range map[string]int{"": 401, "0123456789abcdef012": 401, "0123456789abcdef0123": 200} {
		if got, text := body(t, client, url, token); got != want {
			t.Errorf("%q: status %d, want %d: %s", token, got, want, text)
		}
	}
	write("another token, which is long enough")
	eventually(t, "the new token", func() bool {
		got, _ := body(t, client, url, "another token, which is long enough")
		return got == 200
	})
	if got, _ := body(t, client, url, "0123456789abcdef0123"); got != 401 {
		t.Errorf("the old token: status %d", got)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no token lets nobody in", func() bool {
		got, _ := body(t, client, url, "another token, which is long enough")
		return got == 503
	})
	remote, err := api.NewRemote(api.RemoteOptions{Socket: whole().options.Socket})
	if err != nil {
		t.Fatal(err)
	}
	var v api.List[api.Status]
	if err := remote.Get(t.Context(), "/statusz", nil, &v); err != nil || len(v.Items) != 1 || len(v.Items[0].Listeners) != 2 {
		t.Errorf("the socket: %v, %+v", err, v.Items)
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

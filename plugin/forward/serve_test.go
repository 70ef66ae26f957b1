package forward

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind"   // a directive of the Corefiles here
	_ "github.com/coredns/coredns/plugin/dnstap" // a directive of the Corefiles here
	_ "github.com/coredns/coredns/plugin/errors" // a directive of the Corefiles here
	clog "github.com/coredns/coredns/plugin/pkg/log"
	dnstap "github.com/dnstap/golang-dnstap"
	"github.com/miekg/dns"
	"google.golang.org/protobuf/proto"

	"localcache.dev/localcache/plugin/cache"
)

// whole is the one Plugin that these tests register: CoreDNS has no way to take one back.
var whole = sync.OnceValue(func() *Plugin {
	caddy.Quiet, dnsserver.Quiet = true, true
	p := New(Options{})
	p.Register()
	cache.New(cache.Options{}).Register()
	return p
})

func TestMain(m *testing.M) {
	clog.Discard()
	os.Exit(m.Run())
}

// serverOf starts CoreDNS with one block on a port of its own.
func serverOf(t *testing.T, block string) (*caddy.Instance, string) {
	t.Helper()
	whole()
	addr := deadAddr(t)
	_, port, _ := strings.Cut(addr, ":")
	inst, err := caddy.Start(corefile(port, block))
	if err != nil {
		t.Fatal(err)
	}
	return inst, addr
}

func corefile(port, block string) caddy.Input {
	return caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns",
		Contents: []byte(fmt.Sprintf(".:%s {\nbind 127.0.0.1\nerrors\n%s\n}\n", port, block))}
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

func exchange(t *testing.T, addr string, q *dns.Msg) *dns.Msg {
	t.Helper()
	m, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(q, addr)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestServeStale takes the upstream away: cache still has an answer, and has to be let give it. Where it
// has none the client learns why.
func TestServeStale(t *testing.T) {
	for _, mode := range []string{"serve_stale 1h", "serve_stale 1h verify"} {
		t.Run(mode, func(t *testing.T) {
			s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
				m := new(dns.Msg).SetReply(r)
				m.Answer = []dns.RR{mustRR(t, r.Question[0].Name+" 1 IN A 192.0.2.1")}
				w.WriteMsg(m)
			})
			inst, addr := serverOf(t, "cache {\nsuccess 100 1 0\n"+mode+"\n}\nforward . "+s.addr)
			defer stop(t, inst)
			firstA(t, exchange(t, addr, question("www.example.org.")))
			s.close()
			time.Sleep(1200 * time.Millisecond) // the TTL
			for range 5 {
				// With EDNS, so that an explanation that cache stores instead of the answer would show.
				q := question("www.example.org.")
				q.SetEdns0(1232, false)
				m := exchange(t, addr, q)
				if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
					t.Fatalf("no stale answer: %v", m)
				}
				time.Sleep(50 * time.Millisecond)
			}
			q := question("other.example.org.")
			q.SetEdns0(1232, false)
			m := exchange(t, addr, q)
			opt := m.IsEdns0()
			if m.Rcode != dns.RcodeServerFailure || opt == nil || len(opt.Option) != 1 {
				t.Fatalf("got %v", m)
			}
			if ede, ok := opt.Option[0].(*dns.EDNS0_EDE); !ok || !strings.Contains(ede.ExtraText, s.addr) {
				t.Errorf("got %v, want an Extended DNS Error that names %s", opt.Option[0], s.addr)
			}
		})
	}
}

// TestServeReload reloads under load: no question is lost, and the upstream sees one connection.
func TestServeReload(t *testing.T) {
	var mu sync.Mutex
	peers := map[string]bool{}
	s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		mu.Lock()
		peers[w.RemoteAddr().String()] = true
		mu.Unlock()
		answerA("192.0.2.1")(w, r)
	})
	block := "forward . " + s.addr + " {\nforce_tcp\n}"
	inst, addr := serverOf(t, block)
	_, port, _ := strings.Cut(addr, ":")
	exchange(t, addr, question("first.example.org."))
	for i := range 3 {
		// One that fails in between: what it opened must not stay, and what is in force must.
		if _, err := inst.Restart(corefile(port, "forward . "+s.addr+" {\nnonsense\n}")); err == nil {
			t.Fatal("nonsense was loaded")
		}
		next, err := inst.Restart(corefile(port, block))
		if err != nil {
			t.Fatal(err)
		}
		inst = next
		m := exchange(t, addr, question(fmt.Sprintf("n%d.example.org.", i)))
		firstA(t, m)
	}
	stop(t, inst)
	mu.Lock()
	defer mu.Unlock()
	if len(peers) != 1 {
		t.Errorf("the upstream saw %d connections: %v", len(peers), peers)
	}
}

// TestServeDnstap reads what the dnstap directive of the block writes about an exchange.
func TestServeDnstap(t *testing.T) {
	good, dead := serve(t, answerA("192.0.2.1")), deadAddr(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	input := dnstap.NewFrameStreamSockInput(l)
	frames := make(chan []byte, 100)
	go input.ReadInto(frames)
	defer l.Close()
	inst, addr := serverOf(t, "dnstap tcp://"+l.Addr().String()+" full\nforward . "+dead+" "+good.addr+" {\npolicy sequential\n}")
	defer stop(t, inst)
	exchange(t, addr, question("example.org."))

	type seen struct {
		kind dnstap.Message_Type
		port uint32
	}
	_, goodPort, _ := strings.Cut(good.addr, ":")
	_, deadPort, _ := strings.Cut(dead, ":")
	missing := map[string]bool{
		"FORWARDER_QUERY " + deadPort: true, "FORWARDER_QUERY " + goodPort: true, "FORWARDER_RESPONSE " + goodPort: true,
	}
	for timeout := time.After(10 * time.Second); len(missing) > 0; {
		select {
		case f := <-frames:
			var d dnstap.Dnstap
			if err := proto.Unmarshal(f, &d); err != nil {
				t.Fatal(err)
			}
			m := d.GetMessage()
			s := seen{m.GetType(), m.GetResponsePort()}
			delete(missing, fmt.Sprintf("%s %d", s.kind, s.port))
			if s.kind == dnstap.Message_FORWARDER_RESPONSE {
				reply := new(dns.Msg)
				if err := reply.Unpack(m.GetResponseMessage()); err != nil || len(reply.Answer) != 1 {
					t.Errorf("the raw message is %v, %v", reply, err)
				}
				if m.GetQueryPort() == 0 {
					t.Error("our own end is missing")
				}
			}
		case <-timeout:
			t.Fatalf("not told: %v", missing)
		}
	}
}

// TestServeErrors wants what is wrong with a Corefile to be told with its place.
func TestServeErrors(t *testing.T) {
	whole()
	_, err := caddy.Start(corefile("0", "forward . 192.0.2.1 {\n\npolicy fastest\n}"))
	if err == nil || !strings.Contains(err.Error(), "plugin/forward: Corefile:6 - Error during parsing: unknown policy 'fastest'") {
		t.Errorf("got %v", err)
	}
}

package fastpath

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin/loadbalance"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/freeport"
)

// The unexported fields of others that are read are there and have the types that are expected. If this fails
// with another version of CoreDNS or caddy, the fast path would be off.
func TestUnexportedFields(t *testing.T) {
	var listener caddy.ServerListener
	if _, err := field[caddy.Server](&listener, "server"); err != nil {
		t.Error(err)
	}
	if _, err := field[net.PacketConn](&listener, "packet"); err != nil {
		t.Error(err)
	}
	if _, err := sitesOf(&dnsserver.Server{}); err != nil {
		t.Error(err)
	}
	if _, err := stockOf(&dnsserver.Server{}); err != nil {
		t.Error(err)
	}
	if shufflesAtRandom(loadbalance.LoadBalance{}) {
		t.Error("a loadbalance without a policy")
	}
	for _, name := range []string{"nothing", "address"} {
		if _, err := field[bool](&listener, name); err == nil {
			t.Errorf("the field %q of a listener was read as a bool", name)
		}
	}
}

// A socket that is not found is served by CoreDNS, with one warning.
func TestSocketNotFound(t *testing.T) {
	find := tested.find
	tested.find = func(*caddy.Instance, *dnsserver.Server) (*net.UDPConn, error) { return nil, errors.New("no such luck") }
	defer func() { tested.find = find }()
	tested.warned.Store(false)
	u := newUpstream(t)
	from := len(logged.String())
	port := freeport.Port(t)
	r := run(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1 127.0.0.2\n cache\n fastpath\n forward . UPSTREAM\n}", port), u)
	for i := range 2 {
		c := dial(t, r.addr(i))
		for range 3 {
			if m := c.ask("a.example.", dns.TypeA); len(m.Answer) != 1 {
				t.Errorf("answer %v", m)
			}
		}
	}
	if n := strings.Count(logged.since(from), "no such luck"); n != 1 {
		t.Errorf("%d warnings: %s", n, logged.since(from))
	}
	labels := map[string]string{"server": fmt.Sprintf("dns://127.0.0.1:%d", port), "reason": "no_socket"}
	if n := series(t, "coredns_fastpath_adopted", labels); n != 1 {
		t.Errorf("%d series of adopted with %v", n, labels)
	}
	r.ShutdownCallbacks()
	if n := series(t, "coredns_fastpath_adopted", labels); n != 0 {
		t.Errorf("%d series of adopted after the end", n)
	}
	tested.warned.Store(false)
}

// setupDecorate has a block decorate its server's writers, as shed does.
func setupDecorate(c *caddy.Controller) error {
	for c.Next() {
		dnsserver.GetConfig(c).UDPDecorateWriterFunc = func(*dnsserver.Server) dns.DecorateWriter {
			return func(w dns.Writer) dns.Writer { return w }
		}
	}
	return nil
}

// A block without the directive that comes last and decorates its server's writers keeps us out: the log says so, and
// the metric.
func TestDecoratorOfAnother(t *testing.T) {
	u := newUpstream(t)
	const with = ".:%[1]d {\n bind 127.0.0.1\n cache\n fastpath\n forward . UPSTREAM\n}\n"
	for name, c := range map[string]struct {
		corefile string
		reason   string
	}{
		"last":           {with + "x.:%[1]d {\n bind 127.0.0.1\n decorate\n forward . UPSTREAM\n}", "decorator"},
		"first":          {"x.:%[1]d {\n bind 127.0.0.1\n decorate\n forward . UPSTREAM\n}\n" + with, ""},
		"none replayed":  {".:%[1]d {\n bind 127.0.0.1\n log\n cache\n fastpath\n forward . UPSTREAM\n}\nx.:%[1]d {\n bind 127.0.0.1\n decorate\n forward . UPSTREAM\n}", "decorator"},
		"not our server": {with + "x.:%[1]d {\n bind 127.0.0.2\n decorate\n forward . UPSTREAM\n}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			port := freeport.Port(t)
			server := fmt.Sprintf("dns://127.0.0.1:%d", port)
			corefile := fmt.Sprintf(c.corefile, port)
			from := len(logged.String())
			r := run(t, corefile, u)
			// A server that does not serve yet cannot be stopped.
			serving := func() {
				for i := range r.Servers() {
					dial(t, r.addr(i)).ask("a.x.", dns.TypeA)
				}
			}
			serving()
			for range 2 { // the second time after a reload
				eventually(t, "the metric", func() bool {
					return series(t, "coredns_fastpath_adopted", map[string]string{"server": server, "reason": c.reason}) == 1
				})
				if n := series(t, "coredns_fastpath_adopted", map[string]string{"server": server}); n != 1 {
					t.Errorf("%d series of adopted", n)
				}
				if n := series(t, "coredns_fastpath_adopted", map[string]string{"server": fmt.Sprintf("dns://127.0.0.2:%d", port)}); n != 0 {
					t.Errorf("%d series of a server that is none of ours", n)
				}
				if n := strings.Count(logged.since(from), server+": CoreDNS serves the socket itself: "); n != 0 && c.reason == "" || n == 0 && c.reason != "" {
					t.Errorf("%d lines in the log", n)
				}
				r.reload(corefile, u)
				serving()
			}
			// Once for each start.
			if n := strings.Count(logged.since(from), server+": CoreDNS serves the socket itself: "); n != 3 && c.reason != "" {
				t.Errorf("%d lines in the log after three starts", n)
			}
		})
	}
}

func TestServersOfAllKinds(t *testing.T) {
	for name, test := range map[string]struct {
		corefile string
		servers  int
		network  string
	}{
		"several binds": {".:0 {\n bind 127.0.0.1 127.0.0.2 127.0.0.3\n cache\n fastpath\n forward . UPSTREAM\n}", 3, ""},
		"IPv6":          {".:0 {\n bind ::1\n cache\n fastpath\n forward . UPSTREAM\n}", 1, ""},
		"shed":          {".:0 {\n bind 127.0.0.1\n shed\n cache\n fastpath\n forward . UPSTREAM\n}", 1, ""},
		"shed in another block": {".:0 {\n bind 127.0.0.1\n shed\n cache\n fastpath\n forward . UPSTREAM\n}\n" +
			"x.:0 {\n bind 127.0.0.1\n cache\n fastpath\n forward . UPSTREAM\n}", 1, ""},
		"everything that passes": {".:0 {\n bind 127.0.0.1\n metadata\n cancel\n nsid\n bufsize\n prometheus 127.0.0.1:0\n errors\n local\n any\n loadbalance\n cache\n fastpath 100\n template IN MX example {\n answer \"{{ .Name }} 60 IN MX 10 a.\"\n }\n forward . UPSTREAM\n}", 1, ""},
		"twice":                  {".:0 {\n bind 127.0.0.1\n fastpath off\n cache\n fastpath 7\n forward . UPSTREAM\n}", 1, ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := run(t, test.corefile, newUpstream(t))
			if n := len(r.Servers()); n != test.servers {
				t.Fatalf("%d servers", n)
			}
			for i := range test.servers {
				c := dial(t, r.addr(i))
				if m := c.untilHit("a.example.", dns.TypeA); len(m.Answer) != 1 {
					t.Errorf("answer %v", m)
				}
				for _, q := range []*dns.Msg{nsid("a.example."), odd("a.example.")} {
					if m := c.exchange(q); len(m.Answer) != 1 {
						t.Errorf("answer %v", m)
					}
				}
			}
		})
	}
}

// odd is a query that is not plain and has no options, so that miekg/dns answers it: a bit of the header is set that
// means nothing (RFC 1035, section 4.1.1, Z).
func odd(name string) *dns.Msg {
	q := question(name, dns.TypeA)
	q.Zero = true
	return q
}

// nsid is a query with an EDNS option.
func nsid(name string) *dns.Msg {
	q := question(name, dns.TypeA).SetEdns0(1232, false)
	q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_NSID{Code: dns.EDNS0NSID}}
	return q
}

func TestMultisocket(t *testing.T) {
	u := newUpstream(t)
	port := freeport.Port(t)
	r := run(t, fmt.Sprintf(".:%d {\n bind 127.0.0.1\n multisocket 2\n cache\n fastpath\n forward . UPSTREAM\n}", port), u)
	// The start does not wait until its servers serve.
	eventually(t, "both sockets are adopted", func() bool {
		return sum(t, "coredns_fastpath_adopted", map[string]string{"server": fmt.Sprintf("dns://127.0.0.1:%d", port)}) == 2
	})
	// What one learnt, the other knows: many clients come to both.
	dial(t, r.addr(0)).untilHit("a.example.", dns.TypeA)
	before, asked := hits(t), u.asked.Load()
	for range 64 {
		dial(t, r.addr(0)).ask("a.example.", dns.TypeA)
	}
	eventually(t, "all 64 are hits", func() bool { return hits(t) >= before+64 })
	if n := u.asked.Load(); n != asked {
		t.Errorf("the upstream was asked %d times more", n-asked)
	}
}

// On a socket that is bound to no address, replies leave from the one that was asked: hits, misses, and what is not
// plain. A connected client would not see another's.
func TestWildcard(t *testing.T) {
	u := newUpstream(t)
	r := run(t, ".:0 {\n cache\n fastpath\n forward . UPSTREAM\n}", u)
	_, port, err := net.SplitHostPort(r.addr(0))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "127.0.0.7", "::1"} {
		c := dial(t, net.JoinHostPort(host, port))
		c.ask("miss."+strings.ReplaceAll(host, ":", "x")+".", dns.TypeA)
		c.untilHit("a.example.", dns.TypeA)
		c.exchange(nsid("a.example."))
		c.exchange(odd("a.example."))
	}
}

func series(t testing.TB, name string, labels map[string]string) int {
	t.Helper()
	n := 0
	for _, m := range gather(t, name) {
		ok := true
		for k, v := range labels {
			found := false
			for _, l := range m.GetLabel() {
				found = found || l.GetName() == k && l.GetValue() == v
			}
			ok = ok && found
		}
		if ok {
			n++
		}
	}
	return n
}

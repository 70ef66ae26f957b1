package netns

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// bothLocalIPs are the local addresses of a node with both families, as -localip and bind take them.
const (
	localIPv6    = "fd00:169:254::10"
	bothLocalIPs = lab.LocalIP + "," + localIPv6
)

// bindBoth is Corefile.example for bothLocalIPs.
func bindBoth(t *testing.T) string {
	t.Helper()
	const one = "bind " + lab.LocalIP + "\n"
	corefile := string(localcache.CorefileExample)
	if !strings.Contains(corefile, one) {
		t.Fatal("Corefile.example binds to something else")
	}
	return strings.ReplaceAll(corefile, one, "bind "+lab.LocalIP+" "+localIPv6+"\n")
}

// askedUDP and askedTCP are how many queries, each from a new socket, are sent before the connection tracking table
// is read. The kernel forgets an answered UDP flow after 30 s; the queries take less than a second.
const (
	askedUDP = 40
	askedTCP = 20
	// mostOfThem is the least number of entries for tracked queries: occasionally two sockets get the same port, one
	// after the other, and share an entry.
	mostOfThem = (askedUDP + askedTCP) * 9 / 10
)

// tracked has a host ask server and returns the entries that the node has of that, in addition to those
// from before.
func tracked(t *testing.T, l *lab.Lab, from *lab.Host, server netip.Addr) []lab.Flow {
	t.Helper()
	before, err := l.Node.Conntrack(server)
	if err != nil {
		t.Fatal(err)
	}
	for i := range askedUDP + askedTCP {
		transport := lab.UDP
		if i >= askedUDP {
			transport = lab.TCP
		}
		m, _, err := from.Ask(t.Context(), transport, server, "web.default.svc.cluster.local.", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
			t.Fatalf("%s over %s: %v", server, transport, m)
		}
	}
	flows, err := l.Node.Conntrack(server)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(flows, func(f lab.Flow) bool {
		// localcache itself asks the Service too.
		others := from != l.Node && f.From.Addr() != from.IPv4 && f.From.Addr() != from.IPv6
		return others || slices.Contains(before, f)
	})
}

// localAddresses are those that the lab's kernel has the family of.
func localAddresses(l *lab.Lab) (option string, addrs []netip.Addr) {
	if !l.ServiceV6.IsValid() {
		return lab.LocalIP, []netip.Addr{localIP}
	}
	return bothLocalIPs, []netip.Addr{localIP, netip.MustParseAddr(localIPv6)}
}

// TestConntrackCure checks that queries to the local addresses leave no entries, from pods and from the node itself,
// whereas those to the Service leave one each.
func TestConntrackCure(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := lab.Start(t, lab.Config{})
		option, addrs := localAddresses(l)
		corefile := string(localcache.CorefileExample)
		if len(addrs) > 1 {
			corefile = bindBoth(t)
		}
		start(t, l, serveOptions{Backend: backend, Corefile: corefile, LocalIP: option})
		for _, a := range addrs {
			for _, from := range []*lab.Host{l.Pods[0], l.Node} {
				if flows := tracked(t, l, from, a); len(flows) > 0 {
					t.Errorf("%d queries from %s to %s left %d entries: %v", askedUDP+askedTCP, from, a, len(flows), flows)
				}
			}
		}
		for _, service := range []netip.Addr{l.Service, l.ServiceV6} {
			if !service.IsValid() {
				continue
			}
			if flows := tracked(t, l, l.Pods[0], service); len(flows) < mostOfThem {
				t.Errorf("%d queries to the Service at %s left %d entries", askedUDP+askedTCP, service, len(flows))
			}
		}
	})
}

// TestConntrackDisease checks that without the rules each query to a local address leaves an entry, as one to a
// Service does: what TestConntrackCure would see without the rules.
func TestConntrackDisease(t *testing.T) {
	for _, c := range []struct {
		name, property string
		args           []string
	}{
		{"setupiptables=false", "", []string{"-setupiptables=false"}},
		{"notrack off", "notrack off\n", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lab.Start(t, lab.Config{})
			option, addrs := localAddresses(l)
			corefile := string(localcache.CorefileExample)
			if len(addrs) > 1 {
				corefile = bindBoth(t)
			}
			changed := strings.Replace(corefile, "setup {\n", "setup {\n"+c.property, 1)
			d := start(t, l, serveOptions{Corefile: changed, LocalIP: option, Args: c.args, NoWait: true,
				Env: []string{"KUBE_DNS_ENDPOINTS="}}) // a fallback would need rules
			d.waitAnswers(startTimeout)
			for _, a := range addrs {
				if flows := tracked(t, l, l.Pods[0], a); len(flows) < mostOfThem {
					t.Errorf("%d queries to %s left %d entries", askedUDP+askedTCP, a, len(flows))
				}
			}
		})
	}
}

// TestForwarding checks that cache misses go to the servers in the Corefile: names of the cluster reach kube-dns over
// TCP only, whatever the pod's transport, and the others only the node's own resolver.
func TestForwarding(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	option, addrs := localAddresses(l)
	corefile := string(localcache.CorefileExample)
	if len(addrs) > 1 {
		corefile = bindBoth(t)
	}
	start(t, l, serveOptions{Corefile: corefile, LocalIP: option})
	l.ResetRecords()
	n := 0
	for _, a := range addrs {
		for _, transport := range []lab.Transport{lab.UDP, lab.TCP} {
			for range 20 {
				n++
				for _, name := range []string{fmt.Sprintf("n%d.%s", n, lab.AnyClusterName), fmt.Sprintf("n%d.%s", n, lab.AnyExternalName)} {
					m, _, err := l.Pods[0].Ask(t.Context(), transport, a, name, dns.TypeA)
					if err != nil {
						t.Fatal(err)
					}
					if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
						t.Fatalf("%s of %s over %s: %v", name, a, transport, m)
					}
				}
			}
		}
		for _, name := range []string{"34.12.233.10.in-addr.arpa.", reverse("fd00:10:233::1234")} {
			if _, _, err := l.Pods[0].Ask(t.Context(), lab.UDP, a, name, dns.TypePTR); err != nil {
				t.Fatal(err)
			}
		}
	}
	if udp, tcp := l.KubeDNSTotal(lab.UDP), l.KubeDNSTotal(lab.TCP); udp != 0 || tcp < n+2 {
		t.Errorf("kube-dns was asked %d times over UDP and %d times over TCP; want 0, and at least %d", udp, tcp, n+2)
	}
	for _, s := range l.KubeDNS {
		if asked := s.Record.AskedBelow("example.org.", ""); asked != 0 {
			t.Errorf("%s was asked %d times for external names", s.Host, asked)
		}
	}
	if asked := l.Upstream.Record.AskedBelow("cluster.local.", "") + l.Upstream.Record.AskedBelow("arpa.", ""); asked != 0 {
		t.Errorf("the upstream was asked %d times for the cluster's names", asked)
	}
	if udp, tcp := l.Upstream.Record.AskedBelow("example.org.", lab.UDP), l.Upstream.Record.AskedBelow("example.org.", lab.TCP); udp+tcp != n {
		t.Errorf("the upstream was asked %d times over UDP and %d times over TCP; want %d together", udp, tcp, n)
	}
	for _, q := range l.Upstream.Record.Queries() {
		if q.Client.Addr() != l.Node.IPv4 {
			t.Fatalf("the upstream was asked by %s, not by the node: %+v", q.Client, q)
		}
	}
}

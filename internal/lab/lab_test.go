package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Getenv(envReached) != "" {
		os.Exit(beReached())
	}
	os.Exit(Main(m))
}

// within bounds the waits of a test.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// startDirect starts a lab whose pods ask the Service itself.
func startDirect(t *testing.T) *Lab {
	t.Helper()
	return Start(t, Config{Nameserver: []netip.Addr{plan.service}})
}

func TestPodsResolveThroughTheService(t *testing.T) {
	l := startDirect(t)
	for _, c := range []struct {
		lookup Lookup
		want   []string
	}{
		{Lookup{Name: "kubernetes", Network: "ip4"}, []string{"10.233.0.1"}},
		{Lookup{Name: "web.default", Network: "ip"}, []string{"10.233.12.34", "fd00:10:233::1234"}},
		{Lookup{Name: "web.default.svc.cluster.local.", Network: "ip6"}, []string{"fd00:10:233::1234"}},
		{Lookup{Name: "_http._tcp.web.default.svc.cluster.local", Network: "srv"}, []string{"web.default.svc.cluster.local. 80"}},
		{Lookup{Name: "10.233.0.1", Network: "ptr"}, []string{"kubernetes.default.svc.cluster.local."}},
		{Lookup{Name: "fd00:10:233::1234", Network: "ptr"}, []string{"web.default.svc.cluster.local."}},
		{Lookup{Name: "198.51.100.53", Network: "ptr"}, []string{"ns.example.org."}},
		{Lookup{Name: "www.example.org", Network: "ip4"}, []string{"203.0.113.80"}},
		{Lookup{Name: "ext.default", Network: "ip4"}, []string{"203.0.113.80"}},
	} {
		rs, err := l.Pods[0].Resolve(within(t), c.lookup)
		if err != nil {
			t.Fatal(err)
		}
		got := slices.Sorted(slices.Values(rs[0].Answers))
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: answers %v (%s), want %v", c.lookup, got, rs[0].Err, c.want)
		}
	}
	rs, err := l.Pods[1].Resolve(within(t), Lookup{Name: "nothing.example.org"})
	if err != nil || len(rs) != 1 || !rs[0].NotFound {
		t.Errorf("a name that does not exist: %+v, %v", rs, err)
	}
	if n := l.KubeDNSAsked("nothing.example.org.default.svc.cluster.local", ""); n != 2 {
		t.Errorf("the first name of the search list was asked %d times, want 2 (A and AAAA)", n)
	}
}

func TestGetentResolvesThroughTheService(t *testing.T) {
	l := startDirect(t)
	got, err := l.Pods[0].Getent(within(t), "ahostsv4", "kubernetes")
	if errors.Is(err, ErrNoGetent) {
		t.Skip(err)
	}
	if err != nil || !slices.Equal(got, []string{"10.233.0.1"}) {
		t.Errorf("getent ahostsv4 kubernetes: %v, %v; want 10.233.0.1", got, err)
	}
	if got, err := l.Pods[0].Getent(within(t), "ahosts", "nothing.default"); err != nil || len(got) != 0 {
		t.Errorf("getent ahosts nothing.default: %v, %v; want nothing", got, err)
	}
}

// Pods, the node and a replica itself reach the Service, over both transports and families, with every packet filter.
func TestServiceIsSpreadOverTheReplicas(t *testing.T) {
	for _, proxy := range []Proxy{ProxyNFTables, ProxyIPTablesNFT, ProxyIPTablesLegacy} {
		t.Run("proxy="+string(proxy), func(t *testing.T) {
			spread(t, Start(t, Config{Proxy: proxy}))
		})
	}
}

func spread(t *testing.T, l *Lab) {
	services := []netip.Addr{l.Service}
	if l.ServiceV6.IsValid() {
		services = append(services, l.ServiceV6)
	}
	for _, service := range services {
		for _, from := range []*Host{l.Pods[0], l.Node, l.KubeDNS[0].Host} {
			for _, transport := range []Transport{UDP, TCP} {
				l.ResetRecords()
				for range 10 {
					m, _, err := from.Ask(within(t), transport, service, "web.default.svc.cluster.local", dns.TypeA)
					if err != nil || len(m.Answer) != 1 {
						t.Fatalf("%s asks %s over %s: %v, %v", from, service, transport, m, err)
					}
				}
				if a, b := l.KubeDNS[0].Record.Total(transport), l.KubeDNS[1].Record.Total(transport); a != 5 || b != 5 {
					t.Errorf("%s asked %s over %s 10 times: replicas got %d and %d, want 5 each", from, service, transport, a, b)
				}
			}
		}
	}
}

func TestConntrackShowsTheTranslation(t *testing.T) {
	l := startDirect(t)
	for range 4 {
		if _, _, err := l.Pods[0].Ask(within(t), UDP, l.Service, "web.default.svc.cluster.local", dns.TypeA); err != nil {
			t.Fatal(err)
		}
	}
	flows, err := l.Node.Conntrack(l.Service)
	if err != nil || len(flows) != 4 {
		t.Fatalf("flows to the Service: %v, %v; want 4", flows, err)
	}
	ends, _ := l.Endpoints()
	for _, f := range flows {
		if f.Protocol != unix.IPPROTO_UDP || f.From.Addr() != l.Pods[0].IPv4 || !slices.Contains(ends, f.Answerer.Addr()) {
			t.Errorf("flow %+v: want udp from %s answered by one of %v", f, l.Pods[0].IPv4, ends)
		}
	}
	if err := l.Node.FlushConntrack(); err != nil {
		t.Fatal(err)
	}
	if flows, err := l.Node.Conntrack(l.Service); err != nil || len(flows) != 0 {
		t.Errorf("after the flush: %v, %v; want none", flows, err)
	}
}

// A program sees the network and resolver configuration of its host only.
func TestHostsAreApart(t *testing.T) {
	l := Start(t, Config{})
	for h, want := range map[*Host]string{
		l.Pods[0]: "nameserver 169.254.25.10\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n",
		l.Node:    "nameserver 198.51.100.53\n",
	} {
		var got []byte
		err := h.Do(func() (err error) {
			got, err = os.ReadFile("/etc/resolv.conf")
			return err
		})
		if err != nil || string(got) != want {
			t.Errorf("%s: /etc/resolv.conf is %q, %v; want %q", h, got, err, want)
		}
	}
	if err := l.Pods[0].WriteResolvConf("nameserver 127.0.0.1\n"); err != nil {
		t.Fatal(err)
	}
	err := l.Pods[0].Do(func() error {
		got, err := os.ReadFile("/etc/resolv.conf")
		if string(got) != "nameserver 127.0.0.1\n" {
			t.Errorf("rewritten resolv.conf is %q", got)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	machine, err := os.ReadFile("/etc/resolv.conf")
	if err != nil && !errors.Is(err, os.ErrNotExist) || strings.Contains(string(machine), LocalIP) {
		t.Errorf("outside of the hosts /etc/resolv.conf is %q, %v", machine, err)
	}
}

func TestDoReportsAClosureThatNeverReturns(t *testing.T) {
	l := Start(t, Config{})
	err := l.Node.Do(func() error { runtime.Goexit(); return nil })
	if err == nil || !strings.Contains(err.Error(), "ended its goroutine") {
		t.Errorf("error %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{Pods: 65}, {Pods: -1}, {KubeDNS: 9}, {Proxy: "ipvs"}} {
		if err := cfg.complete(); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}

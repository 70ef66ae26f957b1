package diag

import (
	"context"
	"net"
	"testing"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// nothing takes what is written to it.
type nothing struct {
	dns.ResponseWriter
	remote net.Addr
}

func (n nothing) RemoteAddr() net.Addr  { return n.remote }
func (nothing) WriteMsg(*dns.Msg) error { return nil }
func (n nothing) LocalAddr() net.Addr   { return n.remote }

// constant answers by writing a message that is there.
type constant struct{ m *dns.Msg }

func (constant) Name() string { return "constant" }
func (c constant) ServeDNS(_ context.Context, w dns.ResponseWriter, _ *dns.Msg) (int, error) {
	return dns.RcodeSuccess, w.WriteMsg(c.m)
}

func chain(with bool) plugin.Handler {
	r := new(dns.Msg).SetQuestion("api.shop.svc.cluster.local.", dns.TypeA)
	m := new(dns.Msg).SetReply(r)
	block := &dnsserver.Config{}
	block.AddPlugin(func(plugin.Handler) plugin.Handler { return constant{m} })
	if with {
		surround(&Plugin{options: Options{Queries: observe.NewQueries(observe.QueriesOptions{})}}, block)
	}
	var stack plugin.Handler
	for i := len(block.Plugin) - 1; i >= 0; i-- {
		stack = block.Plugin[i](stack)
	}
	return stack
}

// BenchmarkHandler is what a query of the chain costs more.
func BenchmarkHandler(b *testing.B) {
	for name, with := range map[string]bool{"without": false, "with": true} {
		b.Run(name, func(b *testing.B) {
			h := chain(with)
			r := new(dns.Msg).SetQuestion("api.shop.svc.cluster.local.", dns.TypeA)
			w := nothing{remote: &net.UDPAddr{IP: net.IPv4(10, 244, 1, 5), Port: 4242}}
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := h.ServeDNS(ctx, w, r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAllocations: a query of the chain allocates its record, and the context that carries the trace.
func TestAllocations(t *testing.T) {
	h := chain(true)
	r := new(dns.Msg).SetQuestion("api.shop.svc.cluster.local.", dns.TypeA)
	w := nothing{remote: &net.UDPAddr{IP: net.IPv4(10, 244, 1, 5), Port: 4242}}
	if n := testing.AllocsPerRun(1000, func() { _, _ = h.ServeDNS(t.Context(), w, r) }); n > 3 {
		t.Errorf("%v allocations, want 3 at most", n)
	}
}

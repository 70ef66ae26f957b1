// Command floor is the benchmark's server with a forward that answers by itself: the cost of CoreDNS around any
// forward, and with fastpath in the Corefile the cost of that.
package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"

	"localcache.dev/localcache/bench/forward/chain"
	"localcache.dev/localcache/bench/forward/fast"
)

func answer(_ context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	m := new(dns.Msg).SetReply(r)
	m.Answer = []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: r.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
		A:   net.IPv4(192, 0, 2, 1),
	}}
	return dns.RcodeSuccess, w.WriteMsg(m)
}

func main() {
	if err := fast.Register(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	plugin.Register("forward", func(c *caddy.Controller) error {
		dnsserver.GetConfig(c).AddPlugin(func(plugin.Handler) plugin.Handler { return plugin.HandlerFunc(answer) })
		return nil
	})
	os.Exit(chain.Run())
}

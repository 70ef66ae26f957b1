package netns

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	nft "github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/lab"
)

// TestUpstreamFailuresAreSeen checks that the metrics distinguish an upstream that answers from one that refuses,
// including failures, which CoreDNS does not count.
func TestUpstreamFailuresAreSeen(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{})
	ask := func(name string) {
		t.Helper()
		// The answer does not matter here, not even SERVFAIL from a broken upstream.
		if _, _, err := l.Pods[0].Ask(t.Context(), lab.UDP, d.server, name, 1); err != nil {
			t.Fatal(err)
		}
	}
	exchanges := func(to, proto, outcome string) string {
		return fmt.Sprintf(`outcome="%s",proto="%s",to="%s"`, outcome, proto, to)
	}
	const name = "coredns_diag_upstream_exchanges_total"
	ask("seen." + lab.AnyClusterName)
	d.until(5*time.Second, "an answered exchange with kube-dns is counted", func() error {
		n, err := d.readMetric(name, exchanges(l.Service.String()+":53", "tcp", "noerror"))
		if err == nil && n < 1 {
			err = fmt.Errorf("it is %v", n)
		}
		return err
	})

	external := l.Upstream.Host.IPv4.String() + ":53"
	if err := l.Upstream.Break(lab.Fault{Refuse: true}); err != nil {
		t.Fatal(err)
	}
	before := d.metric(name, exchanges(external, "udp", "conn_refused"))
	ask("unseen." + lab.AnyExternalName)
	if n := d.metric(name, exchanges(external, "udp", "conn_refused")); n <= before {
		t.Errorf("%v refused exchanges with %s, after %v before", n, external, before)
	}
}

// TestConnectionsAreSeen checks that the running process reports how many connections are open to an upstream, and
// its round-trip time.
func TestConnectionsAreSeen(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{Env: []string{"LOCALCACHE_SOCKET=" + diagSocket(l)}})
	for _, name := range []string{"seen." + lab.AnyClusterName, "seen." + lab.AnyExternalName} {
		if _, _, err := l.Pods[0].Ask(t.Context(), lab.UDP, d.server, name, 1); err != nil {
			t.Fatal(err)
		}
	}
	kubeDNS := l.Service.String() + ":53"
	out, err := d.tool("top", "upstreams", "-window", "start", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var told api.List[api.Upstream]
	if err := json.Unmarshal([]byte(out), &told); err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(told.Items, func(u api.Upstream) bool { return u.Upstream == kubeDNS && u.Proto == "tcp" })
	if i < 0 {
		t.Fatalf("no %s over TCP in %s", kubeDNS, out)
	}
	if u := told.Items[i]; u.OpenConnections < 1 || len(u.Connections) != u.OpenConnections || u.Connections[0].RTTSeconds <= 0 {
		t.Errorf("%s: %d connections, with %+v", kubeDNS, u.OpenConnections, u.Connections)
	}

	if out, err = d.tool("top", "upstreams", "-o", "wide"); err != nil {
		t.Fatal(err)
	}
	t.Log("\n" + out)
	lines := strings.Split(out, "\n")
	columns := strings.Fields(lines[0])
	at, rtt := slices.Index(columns, "CONNECTIONS"), slices.Index(columns, "RTT")
	i = slices.IndexFunc(lines, func(s string) bool { return strings.HasPrefix(s, kubeDNS+" ") && strings.Contains(s, " tcp ") })
	if i < 0 || at < 0 || rtt < 0 {
		t.Fatalf("no %s over TCP with its connections in\n%s", kubeDNS, out)
	}
	// A healthy upstream has no value with a space in it.
	if row := strings.Fields(lines[i]); len(row) != len(columns) || row[at] == "0" || row[rtt] == "-" {
		t.Errorf("%q has no connection or no round-trip time", lines[i])
	}
}

// TestHostUnreachable: a router that says that the upstream cannot be reached is believed at once (RFC 1122, section
// 3.2.2.1), and not waited out.
func TestHostUnreachable(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{})
	if err := l.Upstream.Host.Do(rejectDNS); err != nil {
		t.Fatal(err)
	}
	external := l.Upstream.Host.IPv4.String() + ":53"
	for _, transport := range []lab.Transport{lab.UDP, lab.TCP} { // forward asks as it was asked
		reply, took, err := l.Pods[0].Ask(t.Context(), transport, d.server, "unreachable-"+string(transport)+"."+lab.AnyExternalName, 1)
		if err != nil {
			t.Fatal(err)
		}
		// Without the ICMP message it would take 2.3 s; half of that allows for a slow machine. Of the attempts over
		// TCP only the first is reported, because the kernel sends one such message a second (icmp_ratelimit,
		// icmp(7)).
		if reply.Rcode != 2 || transport == lab.UDP && took > 1200*time.Millisecond {
			t.Errorf("%v: rcode %d after %v", transport, reply.Rcode, took)
		}
		labels := fmt.Sprintf(`outcome="unreachable",proto="%s",to="%s"`, transport, external)
		if n := d.metric("coredns_diag_upstream_exchanges_total", labels); n < 1 {
			t.Errorf("%v: %v exchanges are counted as unreachable", transport, n)
		}
	}
}

// rejectDNS has the calling thread's namespace answer DNS with ICMP host unreachable.
func rejectDNS() error {
	c, err := nft.New()
	if err != nil {
		return err
	}
	table := c.AddTable(&nft.Table{Name: "reject", Family: nft.TableFamilyINet})
	chain := c.AddChain(&nft.Chain{
		Name: "input", Table: table, Type: nft.ChainTypeFilter, Hooknum: nft.ChainHookInput, Priority: nft.ChainPriorityFilter,
	})
	c.AddRule(&nft.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // the port
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0, 53}},
		&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_HOST_UNREACH},
	}})
	return c.Flush()
}

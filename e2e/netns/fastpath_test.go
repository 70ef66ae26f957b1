package netns

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// The metrics of the fast path. A server with a bind has its address in the label.
const (
	fastHits    = "coredns_fastpath_hits_total"
	fastAdopted = "coredns_fastpath_adopted"
)

// clusterServer is the label of the socket on the local address.
var clusterServer = fmt.Sprintf(`server="dns://%s:53"`, lab.LocalIP)

// simple is a Corefile whose cache does not prefetch, so that the second hit of a name is replayed.
func simple(bind string) string {
	return fmt.Sprintf(".:53 {\n%s\n    errors\n    cache 30\n    prometheus :9253\n    forward . 10.233.0.3 {\n        force_tcp\n    }\n}\n", bind)
}

var boundSimple = simple("    bind " + lab.LocalIP)

// askWeb asks for a name that is there from the first pod.
func (d *daemon) askWeb(server netip.Addr) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m, _, err := d.lab.Pods[0].Ask(ctx, lab.UDP, server, "web.default.svc.cluster.local.", dns.TypeA)
	if err == nil && (m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0) {
		err = fmt.Errorf("%s with %d records", dns.RcodeToString[m.Rcode], len(m.Answer))
	}
	return err
}

// untilFastHits asks until more queries than before were answered by the fast path.
func (d *daemon) untilFastHits(server netip.Addr, labels string, before float64) {
	d.t.Helper()
	d.until(startTimeout, "the fast path answers", func() error {
		if err := d.askWeb(server); err != nil {
			return err
		}
		v, err := d.readMetric(fastHits, labels)
		if err == nil && v <= before {
			err = fmt.Errorf("%v hits", v)
		}
		return err
	})
}

// TestFastPathByDefault starts the shipped Corefile: the socket is adopted, hits are counted there and in
// CoreDNS's own metrics.
func TestFastPathByDefault(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{})
	if v := d.metric(fastAdopted, `reason="",`+clusterServer); v != 1 {
		t.Errorf("%v sockets are adopted", v)
	}
	d.untilFastHits(d.server, clusterServer, 0)
	requests := clusterServer + `,view="",zones="cluster.local."`
	hits, all := d.metric(fastHits, clusterServer), d.metric("coredns_cache_requests_total", requests)
	const n = 50
	for range n {
		if err := d.askWeb(d.server); err != nil {
			t.Fatal(err)
		}
	}
	d.until(startTimeout, "every query is counted", func() error {
		if now := d.metric("coredns_cache_requests_total", requests); now < all+n {
			return fmt.Errorf("%v of %d", now-all, n)
		}
		return nil
	})
	if v := d.metric(fastHits, clusterServer); v < hits+1 {
		t.Errorf("%v of %d queries were answered by the fast path", v-hits, n)
	}
}

func TestFastPathOff(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{Corefile: boundSimple, Args: []string{"-fastpath=off"}})
	for range 30 {
		if err := d.askWeb(d.server); err != nil {
			t.Fatal(err)
		}
	}
	for name, labels := range map[string]string{fastAdopted: `reason="",` + clusterServer, fastHits: clusterServer} {
		if v, err := d.readMetric(name, labels); err == nil {
			t.Errorf("%s is %v", name, v)
		}
	}
}

// TestFastPathWildcard asks a socket that is bound to no address: the pod accepts a reply only from the address that
// it asked.
func TestFastPathWildcard(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{Corefile: simple("")})
	d.untilFastHits(d.server, `server="dns://:53"`, 0)
}

// TestFastPathHandover has two processes on one address. The remaining one answers hits with the fast path: the newer
// one after a rolling update, and the older one after a crash.
func TestFastPathHandover(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	o := serveOptions{Corefile: boundSimple, Args: []string{"-syncinterval", "1s"}, Metrics: firstMetrics}
	o.Corefile = strings.ReplaceAll(o.Corefile, "prometheus :9253\n", "\n")
	first := start(t, l, o)
	first.untilFastHits(first.server, clusterServer, 0)
	o.Metrics = secondMetrics
	second := start(t, l, o)
	takesOver(t, second, first)
	second.untilFastHits(second.server, clusterServer, 0)
	first.terminate()
	second.untilFastHits(second.server, clusterServer, second.metric(fastHits, clusterServer))

	o.Metrics = thirdMetrics
	third := start(t, l, o)
	takesOver(t, third, second)
	third.kill()
	second.untilFastHits(second.server, clusterServer, second.metric(fastHits, clusterServer))
}

package netns

import (
	"fmt"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// TestUpstreamFailuresAreSeen: an upstream that answers and one that refuses can be told apart in the
// metrics, failures included, which CoreDNS does not count.
func TestUpstreamFailuresAreSeen(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{})
	ask := func(name string) {
		t.Helper()
		// What it is answered with does not matter here, SERVFAIL from a broken upstream neither.
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

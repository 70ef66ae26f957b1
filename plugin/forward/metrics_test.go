package forward

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

// TestMetricNames holds names and labels, which dashboards depend on.
func TestMetricNames(t *testing.T) {
	s, refusing := serve(t, answerA("192.0.2.1")), serve(t, answerRcode(dns.RcodeRefused))
	p := newTestPlugin(t)
	registry := prometheus.NewPedanticRegistry()
	if err := p.RegisterMetrics(registry); err != nil {
		t.Fatal(err)
	}
	dead := deadAddr(t)
	for _, stanza := range []string{
		"forward . " + s.addr, "forward . " + s.addr + " {\nforce_tcp\n}", "forward . " + refusing.addr, "forward . " + dead,
	} {
		h := chainOf(t, p, stanza)
		for i := range 2 {
			ask(t, h, question(fmt.Sprintf("n%d.example.org.", i)))
		}
	}
	// The dead one is in doubt and probed.
	probed := p.metrics.probeFailures.WithLabelValues("forward", dead)
	for deadline := time.Now().Add(10 * time.Second); value(t, probed) < 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no failed health check is counted")
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				v := strings.NewReplacer(s.addr, "S", refusing.addr, "R", dead, "D").Replace(l.GetValue())
				labels = append(labels, l.GetName()+"="+v)
			}
			got[f.GetName()+"{"+strings.Join(labels, ",")+"}"] = true
		}
	}
	for _, want := range []string{
		"coredns_forward_healthcheck_broken_total{}",
		"coredns_forward_max_concurrent_rejects_total{}",
		"coredns_proxy_request_duration_seconds{proxy_name=forward,rcode=NOERROR,to=S}",
		"coredns_proxy_request_duration_seconds{proxy_name=forward,rcode=REFUSED,to=R}",
		"coredns_proxy_healthcheck_failures_total{proxy_name=forward,to=D}",
		"coredns_proxy_conn_cache_hits_total{proto=udp,proxy_name=forward,to=S}",
		"coredns_proxy_conn_cache_hits_total{proto=tcp,proxy_name=forward,to=S}",
		"coredns_proxy_conn_cache_misses_total{proto=tcp,proxy_name=forward,to=S}",
		"coredns_diag_upstream_exchanges_total{outcome=noerror,proto=udp,to=S}",
		"coredns_diag_upstream_exchanges_total{outcome=conn_refused,proto=udp,to=D}",
		"coredns_diag_upstream_exchange_duration_seconds{proto=tcp,to=S}",
		"coredns_diag_upstream_drops_total{proto=udp,reason=wrong_id,to=S}",
	} {
		if !got[want] {
			t.Errorf("no %s", want)
		}
	}
	for name := range got {
		if !strings.HasPrefix(name, "coredns_forward_") && !strings.HasPrefix(name, "coredns_proxy_") && !strings.HasPrefix(name, "coredns_diag_upstream_") {
			t.Errorf("%s is not among the names that were agreed", name)
		}
	}
	// An upstream that fails is counted where CoreDNS counts nothing.
	for _, f := range families {
		if f.GetName() != "coredns_diag_upstream_exchanges_total" {
			continue
		}
		refused := 0.0
		for _, m := range f.Metric {
			labels := fmt.Sprint(m.Label)
			if strings.Contains(labels, dead) && strings.Contains(labels, "conn_refused") {
				refused += m.Counter.GetValue()
			}
		}
		if refused < 1 {
			t.Error("no refused exchange was counted")
		}
	}
}

// TestExtendedRcodes: an answer is counted under its whole RCODE, of which a message's header has four bits only.
func TestExtendedRcodes(t *testing.T) {
	for _, tt := range []struct {
		rcode int
		want  string
		low   string // what its lowest four bits stand for
	}{
		{dns.RcodeBadVers, "BADSIG", "NOERROR"}, // the library's word for 16, and so CoreDNS's
		{dns.RcodeBadCookie, "BADCOOKIE", "YXRRSET"},
		{dns.RcodeNotZone, "NOTZONE", "NOERROR"},
	} {
		s := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg).SetRcode(r, tt.rcode)
			if r.IsEdns0() == nil { // asked again after BADVERS
				m.Rcode = dns.RcodeNameError
			} else {
				m.SetEdns0(1232, false)
			}
			w.WriteMsg(m)
		})
		for _, property := range []string{"", "force_tcp"} {
			p := newTestPlugin(t)
			if _, _, err := ask(t, chainOf(t, p, "forward . "+s.addr+" {\n"+property+"\n}"), question("example.org.")); err != nil {
				t.Fatal(err)
			}
			registry := prometheus.NewPedanticRegistry()
			if err := registry.Register(p.metrics.duration); err != nil {
				t.Fatal(err)
			}
			families, err := registry.Gather()
			if err != nil || len(families) != 1 {
				t.Fatalf("%d metrics, %v", len(families), err)
			}
			counted := map[string]uint64{}
			for _, m := range families[0].Metric {
				for _, l := range m.Label {
					if l.GetName() == "rcode" {
						counted[l.GetValue()] = m.Histogram.GetSampleCount()
					}
				}
			}
			if counted[tt.want] == 0 || counted[tt.low] != 0 {
				t.Errorf("%s %s: counted as %v", tt.want, property, counted)
			}
		}
	}
}

// TestStockMetrics takes the names out of CoreDNS's source, so that ours follow it from release to release.
func TestStockMetrics(t *testing.T) {
	p := newTestPlugin(t)
	p.metrics.probeFailures.WithLabelValues("forward", "a")
	p.metrics.duration.WithLabelValues("forward", "a", "NOERROR")
	p.metrics.reused.WithLabelValues("forward", "a", "udp")
	p.metrics.opened.WithLabelValues("forward", "a", "udp")
	registry := prometheus.NewPedanticRegistry()
	if err := p.RegisterMetrics(registry); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range stockMetrics(t) {
		found := false
		for _, f := range families {
			found = found || f.GetName() == want
		}
		if !found {
			t.Errorf("CoreDNS's metric %s is not exported", want)
		}
	}
}

// value of a counter without labels.
func value(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil || len(families) != 1 {
		t.Fatalf("%d metrics, %v", len(families), err)
	}
	return families[0].Metric[0].Counter.GetValue()
}

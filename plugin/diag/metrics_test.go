package diag

import (
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/observe"
)

// TestMetrics: names and labels are an interface. None has a client or a name in it.
func TestMetrics(t *testing.T) {
	p := New(Options{Queries: observe.NewQueries(observe.QueriesOptions{}), Upstreams: observe.NewUpstreams(0)})
	defer p.Close()
	r := prometheus.NewPedanticRegistry()
	if err := p.RegisterMetrics(r); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	series := 0
	for _, f := range families {
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		sort.Strings(labels)
		got = append(got, f.GetName()+"{"+strings.Join(labels, ",")+"} "+strings.ToLower(f.GetType().String()))
		series += len(f.GetMetric())
	}
	if _, err := insertFailed(); err == nil {
		if !slices.Contains(got, "coredns_diag_conntrack_insert_failed_total{} counter") {
			t.Errorf("got %q", got)
		}
		got = slices.DeleteFunc(got, func(s string) bool { return strings.Contains(s, "conntrack") })
		series--
	}
	const want = `coredns_diag_client_evictions_total{} counter
coredns_diag_client_retransmits_suspected_total{cause} counter
coredns_diag_client_retransmits_total{cause,resolver} counter
coredns_diag_clients{} gauge
coredns_diag_events_dropped_total{reason} counter
coredns_diag_queries_in_flight{} gauge`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	if n := 3 + observe.NumCauses + observe.NumCauses*observe.NumResolvers + observe.NumLosses; series != n {
		t.Errorf("%d series, want %d", series, n)
	}
	off := New(Options{Off: true, Queries: p.options.Queries, Upstreams: p.options.Upstreams})
	if err := off.RegisterMetrics(r); err != nil {
		t.Errorf("switched off it has metrics: %v", err)
	}
}

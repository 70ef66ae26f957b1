package diag

import (
	"fmt"
	"math"
	"net/netip"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// node is a Plugin with the series of pods, their directory, and the registry.
type node struct {
	t         *testing.T
	plugin    *Plugin
	directory *pods.Directory
	registry  *prometheus.Registry
	at        time.Time
}

func newNode(t *testing.T, most int) *node {
	t.Helper()
	n := &node{t: t, directory: new(pods.Directory), registry: prometheus.NewPedanticRegistry(), at: time.Now()}
	n.plugin = New(Options{Queries: observe.NewQueries(observe.QueriesOptions{Clients: 1024}), Upstreams: observe.NewUpstreams(0), Pods: n.directory})
	t.Cleanup(n.plugin.Close)
	n.plugin.podMetrics.Store(int32(most))
	if err := n.plugin.RegisterMetrics(n.registry); err != nil {
		t.Fatal(err)
	}
	return n
}

func addrOf(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 244, byte(i >> 8), byte(i)}) }

// has makes the pods with those numbers the ones of the node. Each is web-N with the UID and the addresses that uids gives.
func (n *node) has(numbers ...int) {
	var list []pods.Pod
	for _, i := range numbers {
		list = append(list, pods.Pod{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprintf("uid-%d", i), IPs: []netip.Addr{addrOf(i)}})
	}
	list = append(list, pods.Pod{Namespace: "kube-system", Name: "proxy", UID: "p", HostNetwork: true, IPs: []netip.Addr{addrOf(5000)}})
	n.directory.Store(pods.NewTable(list))
}

// asks records queries of a client, hits of 100 µs and misses of 100 ms in turn.
func (n *node) asks(client, times int) {
	for i := range times {
		q := &observe.Query{
			Client: netip.AddrPortFrom(addrOf(client), 4000), Name: []byte("\x01a\x00"), Type: 1, Proto: observe.TCP, Source: observe.FromReplay,
			Duration: 100 * time.Microsecond,
		}
		if i%2 == 1 {
			q.Source, q.Duration = observe.FromUpstream, 100*time.Millisecond
		}
		q.Received = time.Now().Add(-q.Duration).UnixNano()
		n.plugin.options.Queries.Record(q)
	}
}

// series are the pods and how many queries each has; the families that have pods come along.
func (n *node) series() (queries map[string]uint64, families []*dto.MetricFamily) {
	n.t.Helper()
	all, err := n.registry.Gather()
	if err != nil {
		n.t.Fatal(err)
	}
	queries = map[string]uint64{}
	for _, f := range all {
		if !strings.HasPrefix(f.GetName(), "coredns_diag_pod_") {
			continue
		}
		families = append(families, f)
		for _, m := range f.GetMetric() {
			if f.GetName() == "coredns_diag_pod_queries_total" {
				queries[label(m, "namespace")+"/"+label(m, "pod")] += uint64(m.GetCounter().GetValue())
			}
		}
	}
	return queries, families
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

func (n *node) want(what string, want map[string]uint64) {
	n.t.Helper()
	if got, _ := n.series(); fmt.Sprint(got) != fmt.Sprint(want) {
		n.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// TestPodMetricNames: names and labels are an interface. Without 'metrics pods' there are none.
func TestPodMetricNames(t *testing.T) {
	n := newNode(t, 0)
	n.has(1)
	n.asks(1, 4)
	if _, families := n.series(); families != nil {
		t.Errorf("nobody asked for %v", families)
	}
	n.plugin.podMetrics.Store(defaultPodSeries)
	_, families := n.series()
	var got []string
	for _, f := range families {
		values := map[string]bool{}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		for _, m := range f.GetMetric() {
			for _, name := range []string{"source", "cache", "cause"} {
				if v := label(m, name); v != "" {
					values[v] = true
				}
			}
		}
		var list []string
		for v := range values {
			list = append(list, v)
		}
		sort.Strings(list)
		got = append(got, fmt.Sprintf("%s{%s} %s %s, %d series", f.GetName(), strings.Join(labels, ","), strings.ToLower(f.GetType().String()), strings.Join(list, " "), len(f.GetMetric())))
	}
	const want = `coredns_diag_pod_queries_total{namespace,pod,source} counter cache local replay stale upstream, 10 series
coredns_diag_pod_query_duration_seconds{cache,namespace,pod} histogram hit miss, 4 series
coredns_diag_pod_retransmits_total{cause,namespace,pod} counter query_lost reply_lost slow_upstream, 6 series`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// TestPodMetricsCap: however many pods and addresses ask, there are series for so many pods and ~other, none has an address,
// and together they are all queries.
func TestPodMetricsCap(t *testing.T) {
	n := newNode(t, 3)
	n.has(1, 2, 3, 4, 5, 6, 7, 8)
	for i := 1; i <= 8; i++ {
		n.asks(i, 10)
	}
	for i := 100; i < 1000; i++ {
		n.asks(i, 1) // of nobody
	}
	n.asks(5000, 7)
	got, families := n.series()
	sum := uint64(0)
	for name, k := range got {
		sum += k
		if strings.Contains(name, "10.244") {
			t.Errorf("a series of %s", name)
		}
	}
	if len(got) != 4 || sum != 80+900+7 || got["/~other"] != sum-30 {
		t.Errorf("got %v, %d queries", got, sum)
	}
	for _, f := range families {
		if k := len(f.GetMetric()); k > 4*observe.NumSources {
			t.Errorf("%s has %d series", f.GetName(), k)
		}
	}
	n.plugin.podMetrics.Store(2) // after a reload
	if after, _ := n.series(); len(after) != 3 || after["/~other"] != got["/~other"] {
		t.Errorf("with fewer: %v", after)
	}
	n.plugin.podMetrics.Store(0)
	n.want("without", map[string]uint64{})
}

// TestPodMetricsHost: what asks from the node's own addresses is one, and without pods all is ~other.
func TestPodMetricsHost(t *testing.T) {
	n := newNode(t, 10)
	n.asks(5000, 2)
	n.asks(1, 3)
	n.want("pods are not known", map[string]uint64{"/~other": 5})
	n.has(1)
	n.asks(5000, 2)
	// What was asked before is ~other's: a counter does not fall.
	n.want("pods are known", map[string]uint64{"/~other": 7, "/host": 0, "shop/web-1": 0})
	n.asks(1, 3)
	n.asks(5000, 1)
	n.want("they ask", map[string]uint64{"/~other": 7, "/host": 1, "shop/web-1": 3})
}

// TestPodMetricsComing: an address that comes to somebody who has a place, as those of a new interface come to the host,
// brings nothing along that was counted before; nor does one that was away.
func TestPodMetricsComing(t *testing.T) {
	n := newNode(t, 10)
	own := func(addresses ...int) {
		var ips []netip.Addr
		for _, i := range addresses {
			ips = append(ips, addrOf(i))
		}
		n.directory.Store(pods.NewTable([]pods.Pod{{Namespace: "kube-system", Name: "proxy", UID: "p", HostNetwork: true, IPs: ips}}))
	}
	own(5000)
	n.want("the place is there", map[string]uint64{"/~other": 0})
	n.asks(5000, 10)
	n.asks(5001, 1000)
	n.want("the other address is not the host's", map[string]uint64{"/~other": 1000, "/host": 10})
	own(5000, 5001)
	n.asks(5001, 1)
	n.want("now it is", map[string]uint64{"/~other": 1001, "/host": 10})
	n.asks(5001, 3)
	n.want("and asks", map[string]uint64{"/~other": 1001, "/host": 13})
	own(5000)
	n.asks(5001, 100)
	n.want("it goes away", map[string]uint64{"/~other": 1101, "/host": 13})
	own(5000, 5001)
	n.want("and comes back", map[string]uint64{"/~other": 1101, "/host": 13})
	n.asks(5001, 2)
	n.want("and asks again", map[string]uint64{"/~other": 1101, "/host": 15})
}

// TestPodMetricsLife: series go with their pod, another one inherits neither its place nor its history, and nothing ever
// falls but a series that ends.
func TestPodMetricsLife(t *testing.T) {
	n := newNode(t, 2)
	n.has(1, 2, 3)
	n.asks(1, 10)
	n.asks(2, 20)
	n.want("two pods", map[string]uint64{"shop/web-1": 10, "shop/web-2": 20, "/~other": 0})
	n.asks(3, 30)
	n.want("a third one", map[string]uint64{"shop/web-1": 10, "shop/web-2": 20, "/~other": 30})
	n.has(2, 3)
	n.want("the first one is gone, and the third has its place", map[string]uint64{"shop/web-2": 20, "shop/web-3": 0, "/~other": 30})
	n.asks(3, 5)
	n.want("it asks", map[string]uint64{"shop/web-2": 20, "shop/web-3": 5, "/~other": 30})

	// Its address comes back with another pod: observe forgets the client, whose history becomes everybody's.
	n.directory.Store(pods.NewTable([]pods.Pod{
		{Namespace: "shop", Name: "web-2", UID: "uid-2", IPs: []netip.Addr{addrOf(2)}},
		{Namespace: "shop", Name: "web-3", UID: "again", IPs: []netip.Addr{addrOf(3)}},
	}))
	if !n.plugin.options.Queries.Forget(addrOf(3), time.Now().Add(time.Second)) {
		t.Fatal("the client is not known")
	}
	n.want("the third one has gone", map[string]uint64{"shop/web-2": 20, "/~other": 30})
	n.asks(3, 7)
	n.want("its namesake has begun anew", map[string]uint64{"shop/web-2": 20, "shop/web-3": 7, "/~other": 30})
	// The client is forgotten while the pod is there, as one that was silent for long: the series goes on.
	n.plugin.options.Queries.Forget(addrOf(2), time.Now().Add(time.Second))
	n.want("forgotten", map[string]uint64{"shop/web-2": 20, "shop/web-3": 7, "/~other": 30})
	n.asks(2, 4)
	n.want("and back", map[string]uint64{"shop/web-2": 24, "shop/web-3": 7, "/~other": 30})
}

// TestPodHistogram: the native histogram has the counts of ours, in buckets that are at most a tenth lower.
func TestPodHistogram(t *testing.T) {
	var l observe.Latency
	for i := range l.Counts {
		l.Counts[i] = uint64(i + 1)
		l.Sum += time.Second
	}
	var m dto.Metric
	if err := nativeHistogram(descPodDuration, &l, time.Now(), "ns", "pod", "hit").Write(&m); err != nil {
		t.Fatal(err)
	}
	h := m.GetHistogram()
	if h.GetSampleCount() != l.Count() || h.GetSampleSum() != l.Sum.Seconds() || h.GetSchema() != 1 || h.GetZeroCount() != 1 || h.GetZeroThreshold() != 1.0/32768 {
		t.Errorf("got %v", h)
	}
	if len(h.GetPositiveSpan()) != 1 || h.GetPositiveSpan()[0].GetLength() != uint32(len(l.Counts)-1) {
		t.Fatalf("got spans %v", h.GetPositiveSpan())
	}
	count := int64(0)
	for i, d := range h.GetPositiveDelta() {
		count += d
		if count != int64(i+2) {
			t.Fatalf("bucket %d has %d", i, count)
		}
		index := int(h.GetPositiveSpan()[0].GetOffset()) + i
		low, high := observe.LatencyBounds(i + 1)
		lower, upper := bound(index-1), bound(index)
		for ours, native := range map[float64]float64{low.Seconds(): lower, high.Seconds(): upper} {
			if r := native / ours; r < 0.89 || r > 1 {
				t.Errorf("bucket %d: ours ends at %v, native at %v", i, ours, native)
			}
		}
	}
}

// bound is the upper bound of a native histogram's bucket, of schema 1 (https://prometheus.io/docs/specs/native_histograms/).
func bound(index int) float64 { return math.Pow(2, float64(index)/2) }

// TestPodMetricsNamesake: two pods of one name, as when one is still there while the next has begun, are not shown as one
// series twice.
func TestPodMetricsNamesake(t *testing.T) {
	n := newNode(t, 10)
	n.directory.Store(pods.NewTable([]pods.Pod{
		{Namespace: "shop", Name: "web", UID: "old", IPs: []netip.Addr{addrOf(1)}},
		{Namespace: "shop", Name: "web", UID: "new", IPs: []netip.Addr{addrOf(2)}},
	}))
	n.asks(1, 3)
	n.asks(2, 5)
	n.want("namesakes", map[string]uint64{"shop/web": 5, "/~other": 3})
}

// TestPodMetricsDirective: the Corefile in force says how many pods have series.
func TestPodMetricsDirective(t *testing.T) {
	inst, _ := serveOnly(t, "diag {\nmetrics pods 5\n}\ntestanswer")
	if got := whole().podMetrics.Load(); got != 5 {
		t.Errorf("%d pods", got)
	}
	stop(t, inst)
	if got := whole().podMetrics.Load(); got != 0 {
		t.Errorf("%d pods, and no Corefile is in force", got)
	}
}

// BenchmarkPodMetrics is a scrape of a full node with so many pods in series.
func BenchmarkPodMetrics(b *testing.B) {
	for _, most := range []int{0, defaultPodSeries, maxPodSeries} {
		b.Run(fmt.Sprint(most), func(b *testing.B) {
			p := New(Options{Queries: observe.NewQueries(observe.QueriesOptions{Clients: 1024}), Upstreams: observe.NewUpstreams(0), Pods: new(pods.Directory)})
			defer p.Close()
			p.podMetrics.Store(int32(most))
			r := prometheus.NewRegistry()
			if err := p.RegisterMetrics(r); err != nil {
				b.Fatal(err)
			}
			var list []pods.Pod
			for i := range maxPodSeries {
				list = append(list, pods.Pod{Namespace: "shop", Name: fmt.Sprintf("web-%d", i), UID: fmt.Sprint(i), IPs: []netip.Addr{addrOf(i)}})
				for k := range 100 {
					p.options.Queries.Record(&observe.Query{
						Client: netip.AddrPortFrom(addrOf(i), 4000), Name: []byte("\x01a\x00"), Type: 1, Source: observe.Source(k % observe.NumSources),
						Received: time.Now().UnixNano(), Duration: time.Duration(k*k) * 100 * time.Microsecond,
					})
				}
			}
			p.options.Pods.(*pods.Directory).Store(pods.NewTable(list))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Gather(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

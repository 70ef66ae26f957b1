package fastpath

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// What is counted here and added to a histogram is what the library would have counted, in all buckets.
func TestDistribution(t *testing.T) {
	options := map[string]prometheus.HistogramOpts{
		"durations": {Buckets: plugin.TimeBuckets, NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor},
		"sizes":     {Buckets: []float64{0, 100, 200, 511, 1023}, NativeHistogramBucketFactor: plugin.NativeHistogramBucketFactor},
		"classic":   {Buckets: plugin.TimeBuckets},
		"native":    {NativeHistogramBucketFactor: 1.5},
	}
	random := rand.New(rand.NewPCG(3, 4))
	values := map[string]func() float64{
		"durations": func() float64 { return math.Exp(random.Float64()*30 - 25) },
		// Whole powers of two are the ends of buckets.
		"powers": func() float64 { return math.Ldexp(1, random.IntN(30)-20) },
		"sizes":  func() float64 { return float64(random.IntN(1500)) },
		"few":    func() float64 { return float64(100 * random.IntN(3)) },
		"zero":   func() float64 { return 0 },
	}
	for name, o := range options {
		for kind, value := range values {
			t.Run(name+" of "+kind, func(t *testing.T) {
				o.Name = "test"
				whole, part := prometheus.NewHistogram(o), prometheus.NewHistogram(o)
				ours := newDistribution(written(t, part))
				for range 3000 {
					v, n := value(), 1+random.IntN(3)
					for range n {
						whole.Observe(v)
					}
					if random.IntN(2) == 0 {
						ours.observe(v, uint64(n))
					} else {
						for range n {
							part.Observe(v)
						}
					}
				}
				want, got := written(t, whole), written(t, part)
				if err := ours.addTo(got); err != nil {
					t.Fatal(err)
				}
				if got.GetSampleCount() == written(t, part).GetSampleCount() {
					t.Error("nothing was added")
				}
				if a, b := want.GetSampleSum(), got.GetSampleSum(); math.Abs(a-b) > 1e-9*math.Abs(a) {
					t.Errorf("the sum is %v, want %v", b, a)
				}
				want.SampleSum, got.SampleSum = nil, nil
				want.CreatedTimestamp, got.CreatedTimestamp = nil, nil
				if want.String() != got.String() {
					t.Errorf("the library counts\n%v\nand this is\n%v", want, got)
				}
			})
		}
	}
}

func written(t *testing.T, m prometheus.Metric) *dto.Histogram {
	t.Helper()
	var d dto.Metric
	if err := m.Write(&d); err != nil {
		t.Fatal(err)
	}
	return d.GetHistogram()
}

// CoreDNS's histograms are the ones that are known, and of the kind that is counted here.
func TestHistogramsAreReplaced(t *testing.T) {
	h := tested.metrics.histograms
	for vec, f := range map[*prometheus.HistogramVec]*family{vars.RequestDuration: h.duration, vars.RequestSize: h.query, vars.ResponseSize: h.reply} {
		if f == nil || f.HistogramVec != vec {
			t.Fatalf("%v stands for %v", f, vec)
		}
	}
	s := h.of("dns://test", "histograms.")
	if again := h.of("dns://test", "histograms."); again != s {
		t.Error("the same labels have other observations")
	}
	if len(s.duration.bounds) == 0 || !s.duration.native {
		t.Errorf("%d classic buckets, native: %v", len(s.duration.bounds), s.duration.native)
	}
	// A second Plugin of the process uses the same.
	other, err := newHistograms()
	if err != nil || other.duration != h.duration || other.query != h.query || other.reply != h.reply {
		t.Errorf("the second Plugin's are others: %v", err)
	}
	// Somebody else's metric of the same name is left alone.
	stranger := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "fastpath", Name: "test", Help: "Test."}, []string{"a"})
	prometheus.MustRegister(stranger)
	defer prometheus.Unregister(stranger)
	twin := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "fastpath", Name: "test", Help: "Test."}, []string{"a"})
	if _, err := replace(twin); err == nil {
		t.Error("a metric that is not CoreDNS's was replaced")
	}
}

// A scrape while hits are counted never goes backwards, and its numbers fit together.
func TestScrapeWhileCounting(t *testing.T) {
	h, err := newHistograms()
	if err != nil {
		t.Fatal(err)
	}
	const server, rounds, batch = "dns://scraped", 2000, 20
	// What a run before has counted stays.
	first := map[*family]uint64{}
	for _, f := range []*family{h.duration, h.query, h.reply} {
		first[f] = scraped(t, f, server).GetSampleCount()
	}
	s := h.of(server, ".")
	done := make(chan struct{})
	go func() {
		defer close(done)
		chain := h.duration.WithLabelValues(server, ".", "")
		for i := range rounds {
			s.mu.Lock()
			for j := range batch {
				s.query.inc(30 + j)
				s.reply.inc(60 + i%40)
			}
			s.duration.observe(float64(i)*1e-6, batch)
			s.mu.Unlock()
			chain.Observe(1e-3)
		}
	}()
	last := first[h.duration]
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		m := scraped(t, h.duration, server)
		if m.GetSampleCount() < last {
			t.Fatalf("%d after %d", m.GetSampleCount(), last)
		}
		last = m.GetSampleCount()
		native, count := uint64(0), int64(0)
		for _, d := range m.GetPositiveDelta() {
			count += d
			native += uint64(count)
		}
		if native += m.GetZeroCount(); native != last {
			t.Fatalf("%d in the native buckets of %d", native, last)
		}
	}
	if n := last - first[h.duration]; n != rounds*(batch+1) {
		t.Errorf("%d were counted of %d", n, rounds*(batch+1))
	}
	for name, f := range map[string]*family{"query": h.query, "reply": h.reply} {
		if n := scraped(t, f, server).GetSampleCount() - first[f]; n != rounds*batch {
			t.Errorf("%s: %d of %d", name, n, rounds*batch)
		}
	}
}

// Series are made while others are counted in and while somebody looks, and nobody waits for ever.
func TestScrapeWhileSeriesAreMade(t *testing.T) {
	h, err := newHistograms()
	if err != nil {
		t.Fatal(err)
	}
	const server, zones = "dns://made", 2000
	counted, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(counted)
		first := h.of(server, "0.")
		for i := range zones {
			// What a reader does that counts in one while it comes to another.
			first.mu.Lock()
			h.of(server, fmt.Sprintf("%d.", i+1))
			first.query.inc(40)
			first.mu.Unlock()
		}
	}()
	go func() {
		defer close(looked)
		for running := true; running; {
			select {
			case <-counted:
				running = false
			default:
			}
			for _, f := range []*family{h.duration, h.query, h.reply} {
				ch := make(chan prometheus.Metric)
				go func() {
					defer close(ch)
					f.Collect(ch)
				}()
				for range ch {
				}
			}
		}
	}()
	for _, done := range []chan struct{}{counted, looked} {
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Fatal("they wait for each other")
		}
	}
	for _, vec := range []*prometheus.HistogramVec{vars.RequestDuration, vars.RequestSize, vars.ResponseSize} {
		vec.DeletePartialMatch(prometheus.Labels{"server": server})
	}
}

// scraped is the histogram of a server; nil where there is none.
func scraped(t *testing.T, f *family, server string) *dto.Histogram {
	t.Helper()
	ch := make(chan prometheus.Metric)
	go func() {
		defer close(ch)
		f.Collect(ch)
	}()
	var found *dto.Histogram
	for m := range ch {
		var d dto.Metric
		if err := m.Write(&d); err != nil {
			t.Error(err)
		}
		for _, l := range d.GetLabel() {
			if l.GetName() == "server" && l.GetValue() == server {
				found = d.GetHistogram()
			}
		}
	}
	return found
}

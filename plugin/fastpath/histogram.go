package fastpath

import (
	"errors"
	"fmt"
	"math"
	"sort"
	"sync"
	"time"

	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Three histograms of CoreDNS count each query, and to observe one value in each, in classic and native buckets, is a
// fifteenth of the time that a hit takes. Values of hits repeat: those of a batch took as long, and there are as many
// sizes as lengths of names. So hits are counted by value here, under one lock a batch, and become part of CoreDNS's
// histograms when somebody looks.

// histograms are CoreDNS's, with what hits add to them.
type histograms struct {
	duration, query, reply *family

	mu     sync.Mutex
	series map[[2]string]*observations // by server and zone, for as long as the process lives
}

// observations are what hits of one server and zone add.
type observations struct {
	mu           sync.Mutex
	duration     *distribution
	query, reply sizes // in octets
}

// newHistograms takes the places of CoreDNS's histograms in the registry.
func newHistograms() (*histograms, error) {
	h := &histograms{series: map[[2]string]*observations{}}
	var errs [3]error
	h.duration, errs[0] = replace(vars.RequestDuration)
	h.query, errs[1] = replace(vars.RequestSize)
	h.reply, errs[2] = replace(vars.ResponseSize)
	return h, errors.Join(errs[:]...)
}

// of returns the observations of a server and zone over UDP and without a view, made when it is first needed.
func (h *histograms) of(server, zone string) *observations {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.series[[2]string{server, zone}]; s != nil {
		return s
	}
	s := new(observations)
	s.mu.Lock() // somebody may look already
	defer s.mu.Unlock()
	s.duration = h.duration.add(s.durations, server, zone, "")
	h.query.add(s.sizesOf(&s.query), server, zone, "", "udp")
	h.reply.add(s.sizesOf(&s.reply), server, zone, "", "udp")
	h.series[[2]string{server, zone}] = s
	return s
}

// durations adds what hits took to d.
func (s *observations) durations(d *distribution) {
	s.mu.Lock()
	defer s.mu.Unlock()
	d.merge(s.duration)
}

// sizesOf adds n to a distribution.
func (s *observations) sizesOf(n *sizes) func(*distribution) {
	return func(d *distribution) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for size, n := range *n {
			d.observe(float64(size), n)
		}
	}
}

// sizes are numbers of messages by their size.
type sizes []uint64

func (s *sizes) inc(size int) {
	if size >= len(*s) {
		*s = append(*s, make([]uint64, size+1-len(*s))...)
	}
	(*s)[size]++
}

// family is a histogram of CoreDNS, as the registry has it. It is a prometheus.Collector.
type family struct {
	*prometheus.HistogramVec

	mu   sync.Mutex
	more map[string][]func(*distribution) // by labels' values
}

// replace puts a family in the place of vec.
func replace(vec *prometheus.HistogramVec) (*family, error) {
	f := &family{HistogramVec: vec, more: map[string][]func(*distribution){}}
	var there prometheus.AlreadyRegisteredError
	if err := prometheus.Register(f); errors.As(err, &there) {
		switch c := there.ExistingCollector.(type) {
		case *family: // of another Plugin of this process
			return c, nil
		case *prometheus.HistogramVec:
			if c != vec {
				return nil, errUnknownHistogram
			}
		default:
			return nil, errUnknownHistogram
		}
		prometheus.Unregister(vec)
		return f, prometheus.Register(f)
	} else if err != nil {
		return nil, err
	}
	return f, nil
}

var errUnknownHistogram = errors.New("a histogram of coredns_dns is not the one that is known")

// add has what more adds to a distribution become part of the histogram with these labels. It returns an empty
// distribution of the same buckets.
func (f *family) add(more func(*distribution), labels ...string) *distribution {
	var m dto.Metric
	_ = f.WithLabelValues(labels...).(prometheus.Metric).Write(&m) // that of a histogram returns nil
	f.mu.Lock()
	defer f.mu.Unlock()
	key := labelKey(m.GetLabel())
	f.more[key] = append(f.more[key], more)
	return newDistribution(m.GetHistogram())
}

// labelKey is the same for the same labels. They are sorted by name.
func labelKey(labels []*dto.LabelPair) string {
	var key []byte
	for _, l := range labels {
		key = append(append(key, l.GetValue()...), 0xff) // which is in no UTF-8
	}
	return string(key)
}

// Collect implements prometheus.Collector. While the library goes through its histograms nobody can make one; so all are
// taken first, and what more there is, which others may have locked who make one, is added then.
func (f *family) Collect(ch chan<- prometheus.Metric) {
	each := make(chan prometheus.Metric)
	go func() {
		defer close(each)
		f.HistogramVec.Collect(each)
	}()
	var all []prometheus.Metric
	for m := range each {
		all = append(all, m)
	}
	for _, m := range all {
		ch <- f.with(m)
	}
}

// with returns m and what hits add to it.
func (f *family) with(m prometheus.Metric) prometheus.Metric {
	w := &whole{desc: m.Desc()}
	if w.err = m.Write(&w.metric); w.err != nil {
		return w
	}
	f.mu.Lock()
	more := f.more[labelKey(w.metric.GetLabel())]
	f.mu.Unlock()
	if len(more) > 0 {
		d := newDistribution(w.metric.GetHistogram())
		for _, add := range more {
			add(d)
		}
		w.err = d.addTo(w.metric.GetHistogram())
	}
	return w
}

// whole is a histogram as it is at one moment. It is a prometheus.Metric.
type whole struct {
	desc   *prometheus.Desc
	metric dto.Metric
	err    error
}

// Desc implements prometheus.Metric.
func (w *whole) Desc() *prometheus.Desc { return w.desc }

// Write implements prometheus.Metric.
func (w *whole) Write(m *dto.Metric) error {
	m.Label, m.Histogram = w.metric.Label, w.metric.Histogram
	return w.err
}

// distribution counts values in the buckets of a prometheus.Histogram.
type distribution struct {
	bounds    []float64 // of the classic buckets, without +Inf
	native    bool
	fractions []float64 // of one power of two, for the native buckets
	threshold float64   // of the zero bucket

	count    uint64
	sum      float64
	classic  []uint64 // not cumulative; the last is above all bounds
	positive map[int]int64
	zero     uint64
}

// newDistribution returns an empty one with the buckets of h.
func newDistribution(h *dto.Histogram) *distribution {
	d := &distribution{threshold: h.GetZeroThreshold()}
	for _, b := range h.GetBucket() {
		if !math.IsInf(b.GetUpperBound(), 1) {
			d.bounds = append(d.bounds, b.GetUpperBound())
		}
	}
	d.classic = make([]uint64, len(d.bounds)+1)
	// A schema of 0 or less has buckets of whole powers of two and more, which nobody here has.
	if d.native = h.Schema != nil && h.GetSchema() > 0; d.native {
		d.positive = map[int]int64{}
		n := 1 << h.GetSchema()
		for i := range n {
			d.fractions = append(d.fractions, math.Exp2(float64(i)/float64(n)-1))
		}
	}
	return d
}

// observe counts n times v, which is not negative.
func (d *distribution) observe(v float64, n uint64) {
	if n == 0 {
		return
	}
	d.count += n
	d.sum += v * float64(n)
	d.classic[sort.SearchFloat64s(d.bounds, v)] += n
	switch {
	case !d.native:
	case v > d.threshold:
		d.positive[d.key(v)] += int64(n)
	default:
		d.zero += n
	}
}

// key is the number of the native bucket of v, which is above 0: bucket i ends with 2^(i/2^schema), and includes that.
func (d *distribution) key(v float64) int {
	fraction, exponent := math.Frexp(v)
	return sort.SearchFloat64s(d.fractions, fraction) + (exponent-1)*len(d.fractions)
}

func (d *distribution) merge(other *distribution) {
	d.count += other.count
	d.sum += other.sum
	for i, n := range other.classic {
		d.classic[i] += n
	}
	for key, n := range other.positive {
		d.positive[key] += n
	}
	d.zero += other.zero
}

// addTo adds what was counted to h, whose buckets are the same.
func (d *distribution) addTo(h *dto.Histogram) error {
	if d.count == 0 {
		return nil
	}
	h.SampleCount = new(h.GetSampleCount() + d.count)
	h.SampleSum = new(h.GetSampleSum() + d.sum)
	below := uint64(0)
	for _, b := range h.GetBucket() {
		i := sort.SearchFloat64s(d.bounds, b.GetUpperBound())
		below += d.classic[i]
		b.CumulativeCount = new(b.GetCumulativeCount() + below)
	}
	if !d.native {
		return nil
	}
	key, count := 0, int64(0)
	deltas := h.GetPositiveDelta()
	for _, span := range h.GetPositiveSpan() {
		key += int(span.GetOffset())
		for range span.GetLength() {
			if len(deltas) == 0 {
				return fmt.Errorf("%d spans without their buckets", len(h.GetPositiveSpan()))
			}
			count += deltas[0]
			d.positive[key] += count
			key++
			deltas = deltas[1:]
		}
	}
	h.ZeroCount = new(h.GetZeroCount() + d.zero)
	return d.encode(h)
}

// encode has the library write the native buckets into h. All it wants besides is numbers that fit them.
func (d *distribution) encode(h *dto.Histogram) error {
	count := h.GetZeroCount()
	for _, n := range d.positive {
		count += uint64(n)
	}
	native, err := prometheus.NewConstNativeHistogram(nativeDesc, count, 0, d.positive, nil, h.GetZeroCount(), h.GetSchema(), d.threshold, time.Time{})
	if err != nil {
		return err
	}
	var m dto.Metric
	if err := native.Write(&m); err != nil {
		return err
	}
	h.PositiveSpan, h.PositiveDelta = m.GetHistogram().GetPositiveSpan(), m.GetHistogram().GetPositiveDelta()
	return nil
}

// nativeDesc is for histograms that nobody sees.
var nativeDesc = prometheus.NewDesc("fastpath_buckets", "Buckets.", nil, nil)

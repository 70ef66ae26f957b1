package diag

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

const (
	// defaultPodSeries is more than the kubelet's default limit of 110 pods a node, so that all pods get series
	// there. One pod has 10 series, so a node has 1,290 at most.
	defaultPodSeries = 128
	// maxPodSeries takes 4 MB, 4 KB each, and 10,250 series.
	maxPodSeries = 1024
	// maxTables is how often the statistics are read again because the pods changed meanwhile.
	maxTables = 3
)

var (
	descPodQueries = prometheus.NewDesc("coredns_diag_pod_queries_total",
		"Counter of a pod's queries, by where the answer came from.", []string{"namespace", "pod", "source"}, nil)
	descPodDuration = prometheus.NewDesc("coredns_diag_pod_query_duration_seconds",
		"Native histogram of the time until a pod had its answer, by whether an upstream had to be asked (miss) or not (hit).", []string{"namespace", "pod", "cache"}, nil)
	descPodRetransmits = prometheus.NewDesc("coredns_diag_pod_retransmits_total",
		"Counter of queries that a pod repeated because no reply came in time, by cause.", []string{"namespace", "pod", "cause"}, nil)
)

// podSeries turns the statistics of clients into series of pods. The first pods that ask get series, up to a limit; a
// pod keeps its place until it is gone, and its series end with it. Everything else is ~other: pods beyond the limit,
// pods that are gone, addresses of no pod.
//
// All series are counters and must neither fall nor jump when pods come and go: what a pod was counted under ~other
// before it got its place stays there, and its counts end with it.
type podSeries struct {
	mu     sync.Mutex
	before time.Time         // all that the last collection saw was earlier
	places map[string]*place // by UID, or hostPlace
	gone   observe.Counts    // of those that had a place
	total  *observe.Counts   // over all clients
}

// hostPlace is that of everything that asks from the node's own addresses.
const hostPlace = "host"

// place is a pod that has series.
type place struct {
	namespace, name string
	since           time.Time // counted from then on
	own             observe.Counts
	clients, last   map[string]history // by address, of this collection and the one before
}

// history is what the last collection saw of a client.
type history struct {
	first time.Time
	seen  observe.Counts
}

// update brings the series up to date with a snapshot that was taken before now.
func (s *podSeries) update(v *observe.QueriesSnapshot, table *pods.Table, most int, now time.Time) {
	if s.places == nil {
		s.places = map[string]*place{}
	}
	s.total = &v.Total[observe.SinceStart]
	for key, p := range s.places {
		if !p.stays(key, table) {
			s.leave(key)
			continue
		}
		p.last, p.clients = p.clients, map[string]history{}
	}
	waiting := map[string]*place{}
	for i := range v.Clients {
		c := &v.Clients[i]
		key, pod, ok := podOf(c.Client, table)
		if !ok {
			continue
		}
		p := s.places[key]
		if p == nil {
			if p = waiting[key]; p == nil {
				p = &place{namespace: pod.Namespace, name: pod.Name, since: c.FirstSeen, clients: map[string]history{}}
				waiting[key] = p
			}
			if c.FirstSeen.Before(p.since) {
				p.since = c.FirstSeen
			}
		}
		p.add(c, s.before)
	}
	s.admit(waiting, most)
	s.before = now
}

// podOf returns the pod whose series an address counts for.
func podOf(address string, table *pods.Table) (key string, pod pods.Pod, ok bool) {
	a, err := netip.ParseAddr(address)
	if err != nil {
		return "", pod, false
	}
	pod, ok = table.Of(a)
	switch {
	case !ok:
		return "", pod, false
	case pod.IsHost():
		return hostPlace, pod, true
	}
	// Series are known by name: of two pods that have had it, one at a time may be shown.
	now, ok := table.Named(pod.Namespace, pod.Name)
	return pod.UID, pod, ok && now.UID == pod.UID && pod.UID != ""
}

// stays reports whether the pod still exists.
func (p *place) stays(key string, table *pods.Table) bool {
	if known, _ := table.Known(); !known || key == hostPlace {
		return known
	}
	pod, ok := table.Named(p.namespace, p.name)
	return ok && pod.UID == key
}

// add adds the new counts of a client. What was counted elsewhere at the previous collection is not added: an address
// may move to a pod or to the host that already has a place.
func (p *place) add(c *observe.ClientSnapshot, before time.Time) {
	now := &c.Windows[observe.SinceStart]
	h, known := p.last[c.Client]
	switch d, ok := less(now, &h.seen); {
	case !known && !c.FirstSeen.After(before):
	case known && ok && h.first.Equal(c.FirstSeen):
		p.own.Add(&d)
	default: // the client was forgotten meanwhile and started again
		p.own.Add(now)
	}
	p.clients[c.Client] = history{c.FirstSeen, *now}
}

// less returns what a counted since b; ok is false if b is not a part of it.
func less(a, b *observe.Counts) (d observe.Counts, ok bool) {
	ok = true
	sub := func(to *uint64, x, y uint64) {
		if x < y {
			ok = false
			return
		}
		*to = x - y
	}
	all := func(to, x, y []uint64) {
		for i := range to {
			sub(&to[i], x[i], y[i])
		}
	}
	all(d.Sources[:], a.Sources[:], b.Sources[:])
	all(d.Rcodes[:], a.Rcodes[:], b.Rcodes[:])
	for r := range d.Retransmits {
		all(d.Retransmits[r][:], a.Retransmits[r][:], b.Retransmits[r][:])
	}
	all(d.Suspected[:], a.Suspected[:], b.Suspected[:])
	all(d.Hit.Counts[:], a.Hit.Counts[:], b.Hit.Counts[:])
	all(d.Miss.Counts[:], a.Miss.Counts[:], b.Miss.Counts[:])
	d.Hit.Sum, d.Miss.Sum = max(a.Hit.Sum-b.Hit.Sum, 0), max(a.Miss.Sum-b.Miss.Sum, 0)
	d.Upstream, d.Queued = max(a.Upstream-b.Upstream, 0), max(a.Queued-b.Queued, 0)
	return d, ok
}

// admit gives places to the pods that asked first, and takes places from the latest ones if the limit was lowered.
func (s *podSeries) admit(waiting map[string]*place, most int) {
	keys := func(m map[string]*place) []string {
		list := make([]string, 0, len(m))
		for key := range m {
			list = append(list, key)
		}
		slices.SortFunc(list, func(a, b string) int { return cmp.Or(m[a].since.Compare(m[b].since), strings.Compare(a, b)) })
		return list
	}
	if n := len(s.places) - most; n > 0 {
		list := keys(s.places)
		for _, key := range list[len(list)-n:] {
			s.leave(key)
		}
	}
	if len(s.places) >= most {
		return
	}
	for _, key := range keys(waiting) {
		if len(s.places) == most {
			return
		}
		s.places[key] = waiting[key]
	}
}

func (s *podSeries) leave(key string) {
	s.gone.Add(&s.places[key].own)
	delete(s.places, key)
}

// other returns the counts of everything without a place.
func (s *podSeries) other() observe.Counts {
	listed := s.gone
	for _, p := range s.places {
		listed.Add(&p.own)
	}
	d, _ := less(s.total, &listed)
	return d
}

// collect sends the series of p's pods. Without 'metrics pods' in the Corefile there are none, and nothing is kept.
func (s *podSeries) collect(p *Plugin, ch chan<- prometheus.Metric) {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := int(p.podMetrics.Load())
	if most == 0 {
		s.before, s.places, s.gone, s.total = time.Time{}, nil, observe.Counts{}, nil
		return
	}
	var snapshot *observe.QueriesSnapshot
	read := func() { snapshot = p.options.Queries.Snapshot(time.Now()) }
	table, settled := pods.Beside(&p.pods, maxTables, read)
	if !settled {
		read() // later changes are seen at the next collection
	}
	s.update(snapshot, table, most, time.Now())
	for _, pl := range s.places {
		sendPod(ch, pl.namespace, pl.name, &pl.own, pl.since)
	}
	other := s.other()
	sendPod(ch, "", observe.Overflow, &other, p.options.Queries.Started())
}

func sendPod(ch chan<- prometheus.Metric, namespace, pod string, c *observe.Counts, since time.Time) {
	for source, n := range c.Sources {
		ch <- prometheus.MustNewConstMetric(descPodQueries, prometheus.CounterValue, float64(n), namespace, pod, observe.Source(source).String())
	}
	for cause := range observe.NumCauses {
		var n uint64
		for r := range c.Retransmits {
			n += c.Retransmits[r][cause]
		}
		ch <- prometheus.MustNewConstMetric(descPodRetransmits, prometheus.CounterValue, float64(n), namespace, pod, observe.Cause(cause).String())
	}
	ch <- nativeHistogram(descPodDuration, &c.Hit, since, namespace, pod, "hit")
	ch <- nativeHistogram(descPodDuration, &c.Miss, since, namespace, pod, "miss")
}

// The buckets of a native histogram of schema 1 end at 2^(i/2) seconds, two an octave. Those of observe.Latency, also
// two an octave, end at 2^n and 1.5·2^n µs. They are mapped one to one, so that a bound is 5 or 10 % lower than it
// was. Values below the second bucket are near zero.
const (
	nativeSchema = 1
	nativeZero   = 1.0 / (1 << 15) // 30.5 µs, of the first bucket, which ends at 32 µs
	nativeFirst  = -29             // the index of the second bucket: it ends at 2^(-29/2) s, 43 µs
)

func nativeHistogram(desc *prometheus.Desc, l *observe.Latency, since time.Time, labels ...string) prometheus.Metric {
	buckets := map[int]int64{}
	for i, n := range l.Counts {
		if i > 0 && n > 0 {
			buckets[nativeFirst+i-1] = int64(n)
		}
	}
	return prometheus.MustNewConstNativeHistogram(desc, l.Count(), l.Sum.Seconds(), buckets, nil, l.Counts[0], nativeSchema, nativeZero, since, labels...)
}

package fastpath

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/replay"
	"localcache.dev/localcache/internal/udpbatch"
)

// metrics are ours, and those of others that hits are counted in.
type metrics struct {
	plugin *Plugin

	hits         *prometheus.CounterVec
	unsent       *prometheus.CounterVec
	socketErrors *prometheus.CounterVec
	refusedVec   *prometheus.CounterVec
	refused      [numRefusals]prometheus.Counter
	drops        *prometheus.CounterVec

	histograms *histograms // of the server
	coreErr    error       // they were not found

	adopted                 *prometheus.Desc
	entries, bytes          *prometheus.Desc
	learnt, evicted         *prometheus.Desc
	inFlight                *prometheus.Desc
	goneLearnt, goneEvicted uint64 // of stores that are gone; with Plugin.mu
}

func newMetrics(p *Plugin) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: plugin.Namespace, Subsystem: directive, Name: name, Help: help,
		}, labels)
	}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(plugin.Namespace, directive, name), help, labels, nil)
	}
	m := &metrics{
		plugin:       p,
		hits:         counter("hits_total", "Queries answered at the socket, which the metrics of dns and cache count too.", "server"),
		unsent:       counter("unsent_total", "Answers that the kernel did not take.", "server"),
		socketErrors: counter("socket_errors_total", "Reads of the socket that failed.", "server"),
		refusedVec:   counter("refused_total", "Queries dropped because too many were in flight.", "reason"),
		drops:        counter("kernel_drops_total", "Datagrams that the kernel dropped because the socket's queue was full.", "server"),
		adopted:      desc("adopted", "Sockets that were taken over; 0 with the reason where CoreDNS serves them itself.", "server", "reason"),
		entries:      desc("entries", "Answers in memory."),
		bytes:        desc("bytes", "Memory that they take, in octets, about."),
		learnt:       desc("learnt_total", "Answers stored."),
		evicted:      desc("evictions_total", "Answers that made room for others before their time."),
		inFlight:     desc("in_flight", "Queries that are being answered by the chain, without those of other transports."),
	}
	for r := admitted + 1; r < numRefusals; r++ {
		m.refused[r] = m.refusedVec.WithLabelValues(refusalNames[r])
	}
	m.histograms, m.coreErr = newHistograms()
	return m
}

// RegisterMetrics makes the metrics available to reg.
func (p *Plugin) RegisterMetrics(reg prometheus.Registerer) error { return reg.Register(p.metrics) }

func (m *metrics) vecs() []*prometheus.CounterVec {
	return []*prometheus.CounterVec{m.hits, m.unsent, m.socketErrors, m.refusedVec, m.drops}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, v := range m.vecs() {
		v.Describe(ch)
	}
	for _, d := range []*prometheus.Desc{m.adopted, m.entries, m.bytes, m.learnt, m.evicted, m.inFlight} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	p := m.plugin
	p.mu.Lock()
	adopted := map[[2]string]int{}
	stores := map[*replay.Store]bool{}
	pools := map[*pool]bool{}
	for s, w := range p.stock {
		adopted[[2]string{s.Address(), w.reason}] += 0
	}
	for k := range p.sockets {
		adopted[[2]string{k.address, ""}]++
		stores[k.store] = true
		pools[k.instance.pool] = true
		p.lookAtDrops(k)
	}
	learnt, evicted := m.goneLearnt, m.goneEvicted
	entries, bytes := 0, int64(0)
	for s := range stores {
		st := s.Stats()
		learnt += st.Stored
		evicted += st.Evicted
		entries += st.Entries
		bytes += st.Bytes
	}
	p.mu.Unlock()
	inFlight := 0
	for pl := range pools {
		inFlight += pl.inFlight()
	}
	for _, v := range m.vecs() {
		v.Collect(ch)
	}
	for k, n := range adopted {
		ch <- prometheus.MustNewConstMetric(m.adopted, prometheus.GaugeValue, float64(n), k[0], k[1])
	}
	ch <- prometheus.MustNewConstMetric(m.entries, prometheus.GaugeValue, float64(entries))
	ch <- prometheus.MustNewConstMetric(m.bytes, prometheus.GaugeValue, float64(bytes))
	ch <- prometheus.MustNewConstMetric(m.learnt, prometheus.CounterValue, float64(learnt))
	ch <- prometheus.MustNewConstMetric(m.evicted, prometheus.CounterValue, float64(evicted))
	ch <- prometheus.MustNewConstMetric(m.inFlight, prometheus.GaugeValue, float64(inFlight))
}

// join notes that k is being served.
func (p *Plugin) join(k *socket) {
	k.instance.pool.open()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sockets[k] = struct{}{}
	p.lookAtDrops(k)
}

// part notes that k is served no more.
func (p *Plugin) part(k *socket) {
	p.mu.Lock()
	if _, ok := p.sockets[k]; !ok {
		p.mu.Unlock()
		return
	}
	p.lookAtDrops(k)
	delete(p.sockets, k)
	sameStore, sameSocket := false, false
	for other := range p.sockets {
		sameStore = sameStore || other.store == k.store
		sameSocket = sameSocket || other.cookie == k.cookie
	}
	if !sameSocket { // at a reload the next instance has it
		delete(p.drops, k.cookie)
	}
	if !sameStore {
		st := k.store.Stats()
		p.metrics.goneLearnt += st.Stored
		p.metrics.goneEvicted += st.Evicted
	}
	p.mu.Unlock()
	k.instance.pool.close()
}

// lookAtDrops counts what the kernel has dropped since it was looked at last, with p.mu held. What it dropped before
// the socket was ours is not counted. An old kernel does not tell.
func (p *Plugin) lookAtDrops(k *socket) {
	now, err := udpbatch.Drops(k.udp)
	if err != nil {
		return
	}
	before, known := p.drops[k.cookie]
	p.drops[k.cookie] = now
	c := p.metrics.drops.WithLabelValues(k.address)
	if known {
		c.Add(float64(now - before)) // it overflows like the kernel's
	}
}

// isStock notes that CoreDNS serves s itself.
func (p *Plugin) isStock(s *dnsserver.Server, w why) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stock[s] = w
}

func (p *Plugin) notStock(s *dnsserver.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.stock, s)
}

// inFlight is how many exchanges are on their way.
func (p *pool) inFlight() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.busy
}

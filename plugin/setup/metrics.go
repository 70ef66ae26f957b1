package setup

import (
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet/status"
)

// errorConfigMap is node-cache's errortype of a configuration that could not be used. The others are
// nodenet's.
const errorConfigMap = "configmap"

var (
	descErrors = prometheus.NewDesc("coredns_nodecache_setup_errors_total",
		"The number of errors during periodic network setup for node-cache.", []string{"errortype"}, nil)
	descInterface = prometheus.NewDesc("coredns_setup_interface_up",
		"1 while the interface is up and carries every local address.", []string{"interface"}, nil)
	descRules = prometheus.NewDesc("coredns_setup_rules_in_place",
		"1 while the packet rules were in place at the last check.", nil, nil)
	descBackend = prometheus.NewDesc("coredns_setup_backend_info",
		"The packet filter backend in use; its value is always 1.", []string{"backend"}, nil)
	descSocketMatch = prometheus.NewDesc("coredns_setup_socket_match",
		"1 where NOTRACK depends on an open socket, 0 where the kernel lacks the match and NOTRACK is unconditional.", nil, nil)
	descFallback = prometheus.NewDesc("coredns_setup_fallback_servers",
		"The number of servers that the kernel sends queries to while no socket is open.", nil, nil)
	descFollowing = prometheus.NewDesc("coredns_setup_fallback_connected",
		"1 while the API server sends changes of the Service that the fallback follows, 0 while the last known endpoints stay.", []string{"service"}, nil)
	descFollowed = prometheus.NewDesc("coredns_setup_fallback_last_sync_timestamp_seconds",
		"When the API server last said something about the Service that the fallback follows, in seconds since 1970; 0 before its first answer.", []string{"service"}, nil)
	descFollowErrors = prometheus.NewDesc("coredns_setup_fallback_watch_errors_total",
		"The number of attempts to ask the API server for the endpoints of the fallback that failed.", []string{"service"}, nil)
	descKept = prometheus.NewDesc("coredns_setup_fallback_kept",
		"1 while the Service has no endpoint that serves, of some address family, and the last ones that did are still the fallback.", []string{"service"}, nil)
	descKeeper = prometheus.NewDesc("coredns_setup_keeper",
		"1 while this process keeps interface and rules true, 0 while a newer one on the node does.", nil, nil)
	descRepairs = prometheus.NewDesc("coredns_setup_repairs_total",
		"The number of times that state which had gone missing was put back.", []string{"kind"}, nil)
)

// collector reads the Node when it is scraped; nothing is kept twice.
type collector struct{ node *Node }

// RegisterMetrics puts the node's state on the registry that CoreDNS's prometheus directive serves.
func (n *Node) RegisterMetrics() error {
	return prometheus.DefaultRegisterer.Register(collector{n})
}

// CountConfigError counts one configuration that could not be used, as errortype configmap.
func (n *Node) CountConfigError() { n.configErrors.Add(1) }

// Describe implements prometheus.Collector.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descErrors, descInterface, descRules, descBackend, descSocketMatch, descFallback,
		descFollowing, descFollowed, descFollowErrors, descKept, descKeeper, descRepairs} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	truth := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	count := func(d *prometheus.Desc, n uint64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), label)
	}
	// Every type is exported from the start, so that a rate over them is never empty.
	s, ok := c.node.Status()
	count(descErrors, c.node.configErrors.Load(), errorConfigMap)
	for _, t := range status.ErrorTypes() {
		count(descErrors, s.Errors[t], string(t))
	}
	if !ok {
		return
	}
	gauge(descInterface, truth(s.Up && len(s.AddressesMissing) == 0), s.Interface)
	gauge(descRules, truth(s.RulesInPlace))
	if s.Backend != "" {
		gauge(descBackend, 1, s.Backend)
	}
	gauge(descSocketMatch, truth(s.SocketMatch))
	gauge(descFallback, float64(len(s.Fallback)))
	c.collectFollow(ch)
	gauge(descKeeper, truth(s.Keeper))
	for _, kind := range status.RepairKinds() {
		count(descRepairs, s.Repairs[kind], string(kind))
	}
}

// collectFollow exports the state of the Service that the fallback follows, if there is one.
func (c collector) collectFollow(ch chan<- prometheus.Metric) {
	service, watch := c.node.follow.current()
	if service == (kube.Service{}) {
		return
	}
	// Without a watch, outside of a cluster, all values are 0: the configured Service cannot be asked for.
	var connected, kept, synced, failures float64
	if watch != nil {
		s := watch.State()
		if s.Connected {
			connected = 1
		}
		if e, _ := watch.Endpoints(); e.Kept {
			kept = 1
		}
		if !s.LastSync.IsZero() {
			synced = float64(s.LastSync.UnixMilli()) / 1000
		}
		failures = float64(s.Failures)
	}
	send := func(d *prometheus.Desc, t prometheus.ValueType, v float64) {
		ch <- prometheus.MustNewConstMetric(d, t, v, service.String())
	}
	send(descFollowing, prometheus.GaugeValue, connected)
	send(descFollowed, prometheus.GaugeValue, synced)
	send(descFollowErrors, prometheus.CounterValue, failures)
	send(descKept, prometheus.GaugeValue, kept)
}

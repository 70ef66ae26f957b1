// Package diag implements the Corefile directive diag, which records who asked what and how each query ended.
//
//	diag {
//	    listen ADDRESS...
//	    access token FILE | kubernetes | open
//	    slow DURATION
//	    clients NUMBER
//	    redact none|names|clients
//	    pods auto|off
//	    metrics pods [MAX]
//	}
//
// It does two things. In each block that has it, the outermost handler of the chain records every query and its end
// (handler.go): it sees everything after it, cache and forward included, as the client does. And once for the
// process, it serves the HTTP API of internal/api on a unix socket and on the listen addresses (instance.go).
//
// A Plugin belongs to the process and not to an instance of the server. The statistics continue through a reload, and
// so do listeners that both Corefiles have. The properties of all blocks count together, because the statistics are
// those of the node: contradicting blocks are an error.
//
// The handler changes nothing: no reply, no rcode, no writer that other plugins look for. Answers of the fast path do
// not pass it; plugin/fastpath records them to the same statistics.
package diag

import (
	"os"
	"sync"
	"sync/atomic"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	clog "github.com/coredns/coredns/plugin/pkg/log"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// directive is the word in the Corefile.
const directive = "diag"

// Options are what a Plugin needs from the program.
type Options struct {
	// Off records nothing and serves nothing. The directive is read and checked all the same.
	Off bool
	// Queries takes the queries of the chains, Upstreams is shown beside them. Both are required.
	Queries   *observe.Queries
	Upstreams *observe.Upstreams
	// Pods maps addresses to pods; nil: clients are shown by address.
	Pods pods.Source
	// OnPods is called with whether Pods is used, when a Corefile comes into force or goes: false only with 'pods
	// off' or without the directive. It must not block; nil: not called.
	OnPods func(on bool)
	// Socket is the path of the unix socket; empty for api.DefaultSocket.
	Socket string
	// Node and Version are shown.
	Node, Version string
}

// Plugin is the directive diag of one process.
type Plugin struct {
	options Options
	log     clog.P
	server  *api.Server
	pods    gate
	active  atomic.Bool // some block has the directive
	// podMetrics is how many pods have series; 0 for none.
	podMetrics atomic.Int32

	cluster cluster

	mu        sync.Mutex
	reading   reading
	current   *instance // the one that started last; nil if there is none
	closed    bool
	socket    *api.Socket
	listening map[endpoint]*api.Listening
	reviews   *reviews // of all listeners with 'access kubernetes'; nil if there is none
}

// New returns a Plugin. Nothing is served before an instance of the server with the directive starts.
func New(o Options) *Plugin {
	if o.Socket == "" {
		o.Socket = api.DefaultSocket
	}
	p := &Plugin{options: o, log: clog.NewWithPlugin(directive), listening: map[endpoint]*api.Listening{}}
	p.pods.source = o.Pods
	p.cluster = func() (kube.Config, error) { return kube.InCluster(os.Getenv) }
	p.server = api.New(api.Options{Node: o.Node, Version: o.Version, Queries: o.Queries, Upstreams: o.Upstreams, Pods: &p.pods})
	return p
}

// Register registers the directive with CoreDNS, whose registry belongs to the process: call it once. The directive
// must be the last one in dnsserver.Directives: its handler stands in front of all handlers of the block, and it
// looks for cache among them.
func (p *Plugin) Register() {
	plugin.Register(directive, p.setup)
	caddy.RegisterParsingCallback("dns", directive, p.read)
}

// RecordAll counts queries that were answered without a chain: it is plugin/fastpath's Recorder. It does nothing if
// no block has the directive.
func (p *Plugin) RecordAll(list []observe.Query) {
	if p.active.Load() {
		p.options.Queries.RecordAll(list)
	}
}

// Close ends the API. Call it when the server has stopped, or has not started.
func (p *Plugin) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.end()
}

// end ends what is served. p.mu is held.
func (p *Plugin) end() {
	p.listen(nil)
	if p.socket != nil {
		p.socket.Close()
		p.socket = nil
	}
	p.server.Close()
}

// gate is a pods.Source that can be closed.
type gate struct {
	source pods.Source // may be nil
	off    atomic.Bool
}

var (
	podsOff     = pods.Unknown("'pods off' is in the Corefile")
	podsUnknown = pods.Unknown("this process does not watch the Kubernetes API")
)

// Table implements pods.Source.
func (g *gate) Table() *pods.Table {
	switch {
	case g.off.Load():
		return podsOff
	case g.source == nil:
		return podsUnknown
	}
	return g.source.Table()
}

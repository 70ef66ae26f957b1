// Package api serves the statistics of internal/observe as a read-only HTTP API, and reads it as a client.
//
//	GET /api/v1/summary                    the node's traffic as a whole
//	GET /api/v1/upstreams                  each pair of upstream and transport
//	GET /api/v1/pods                       each client
//	GET /api/v1/pods/{namespace}/{name}    one client, by pod or by /pods/{ip}
//	GET /api/v1/top                        names
//	GET /api/v1/queries                    slow and failed queries, the newest first
//	GET /api/v1/events                     failures of upstreams, the newest first
//	GET /statusz                           the program and its state
//	GET /openapi.json                      all of this, for machines
//
// Every answer is an envelope with apiVersion, kind, metadata and items. Lists have a total order. The continue token
// of a page names its last item and not a position: items ordered by a count may move between two pages. Durations
// are seconds, times RFC 3339. Histograms are raw counts with their bounds in the metadata, so that those of several
// nodes merge by addition. Errors of a request are returned as an Error with a hint.
//
// Reading must not disturb DNS: an answer is made from a snapshot that requests share for a moment, few requests run
// at a time, the number of connections is bounded for each listener, and a client that does not read is disconnected
// after some seconds. The origin of a request proves nothing, except on the unix socket, which the file's mode
// guards: other listeners have an Access, and each endpoint the Role that it needs. A token has all roles; Kubernetes
// grants them one by one, by its own rules; or a listener is explicitly open. Requests of browsers for other sites
// are refused (Host, Origin, Sec-Fetch-Site), and no CORS header is ever sent.
package api

import (
	"fmt"
	"math/bits"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// Version is the apiVersion of all envelopes.
const Version = "diag.localcache.dev/v1alpha1"

const (
	// maxRunning requests are answered at a time; others wait for at most maxWait. One answer takes some milliseconds
	// of one processor.
	maxRunning = 2
	maxWait    = time.Second
	// snapshotAge is how long a snapshot is shared, and keepSnapshot when its memory is freed: 5 MB with 1,024
	// clients.
	snapshotAge  = 200 * time.Millisecond
	keepSnapshot = 2 * time.Second
	// maxTables is how often a snapshot is taken again because the pods changed meanwhile.
	maxTables = 4
)

// Logger is the part of a CoreDNS plugin logger that this package writes to.
type Logger interface {
	Infof(format string, v ...any)
	Warningf(format string, v ...any)
}

// Options are what a Server shows. Queries and Upstreams are required.
type Options struct {
	Node      string // name of the node; empty where unknown
	Version   string // of the program
	Queries   *observe.Queries
	Upstreams *observe.Upstreams
	Pods      pods.Source // nil: clients are shown by address only
}

// Server answers requests. It is safe for concurrent use.
type Server struct {
	options Options
	secret  []byte // of redacted names and clients
	redact  atomic.Uint32
	running chan struct{}
	count   requestCounts
	streams streams      // of the page
	unsent  atomic.Int64 // bytes of large answers that are being sent
	// maxUnsent, stallTimeout and writeTimeout but for tests.
	room         int64
	stall, whole time.Duration
	sizes        sync.Map // sizeKind → int: of the last answer, in bytes

	mu     sync.Mutex
	latest *snapshot
	drop   *time.Timer

	listening sync.Map // description → struct{}
}

// New returns a Server that listens nowhere yet.
func New(o Options) *Server {
	if o.Pods == nil {
		o.Pods = new(pods.Directory)
	}
	return &Server{options: o, secret: newSecret(), running: make(chan struct{}, maxRunning), room: maxUnsent, stall: stallTimeout, whole: writeTimeout}
}

// snapshot is everything at one moment.
type snapshot struct {
	at        time.Time
	queries   *observe.QueriesSnapshot
	upstreams []observe.UpstreamSnapshot
	pods      *pods.Table
}

// snapshot is shared by requests that come together.
func (s *Server) snapshot() *snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if v := s.latest; v != nil && now.Sub(v.at) < snapshotAge {
		return v
	}
	v := &snapshot{at: now, upstreams: s.upstreamSnapshots()}
	table, settled := pods.Beside(s.options.Pods, maxTables, func() { v.queries = s.options.Queries.Snapshot(now) })
	if v.pods = table; !settled {
		v.pods = podsChanging
	}
	s.latest = v
	if s.drop == nil {
		s.drop = time.AfterFunc(keepSnapshot, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.latest, s.drop = nil, nil
		})
	}
	return v
}

// upstreamsOnly returns a snapshot for views of upstreams alone: clients are copied only if nothing else tells the
// length of the windows.
func (s *Server) upstreamsOnly() *snapshot {
	s.mu.Lock()
	now, latest := time.Now(), s.latest
	s.mu.Unlock()
	if latest != nil && now.Sub(latest.at) < snapshotAge {
		return latest
	}
	upstreams := s.upstreamSnapshots()
	if len(upstreams) == 0 {
		return s.snapshot()
	}
	return &snapshot{at: now, queries: &observe.QueriesSnapshot{At: now, Coverage: upstreams[0].Coverage}, upstreams: upstreams, pods: s.options.Pods.Table()}
}

var podsChanging = pods.Unknown("the pods of this node change too fast: ask again")

// Handler answers the requests of one listener. access decides about them; nil means a listener that only permitted
// users can reach, which is the unix socket.
func (s *Server) Handler(access Access) http.Handler {
	m := newMounts()
	for _, e := range all() {
		m.handle(e.path, e.role, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, &e) })
	}
	s.mountPage(m, access)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Content-Security-Policy", "default-src 'none'")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		pattern, role := m.of(r)
		e := s.admit(r, access, role)
		if e == nil && pattern == "" {
			e = &Error{Code: http.StatusNotFound, Reason: "NotFound", Message: fmt.Sprintf("there is nothing at %s", cut(r.URL.Path)),
				Hint: "GET /openapi.json lists what there is"}
		}
		if e == nil {
			m.mux.ServeHTTP(w, r)
			return
		}
		s.fail(w, pattern, e)
	})
}

// admit refuses requests before any endpoint sees them.
func (s *Server) admit(r *http.Request, access Access, role Role) *Error {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return &Error{Code: http.StatusMethodNotAllowed, Reason: "MethodNotAllowed", Message: cut(r.Method) + " is not possible", Hint: "the API is read-only: use GET"}
	}
	if len(r.URL.RawQuery) > maxQuery {
		return &Error{Code: http.StatusRequestURITooLong, Reason: "TooLong", Message: fmt.Sprintf("the parameters have %d bytes", len(r.URL.RawQuery)),
			Hint: fmt.Sprintf("at most %d are read", maxQuery)}
	}
	if access == nil {
		return nil
	}
	if e := checkSite(r, s.options.Node); e != nil {
		return e
	}
	return access.check(r, role)
}

// serve answers one request of an endpoint.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, e *endpoint) {
	p, bad := parse(r.URL.RawQuery, e)
	if bad != nil {
		s.fail(w, e.path, bad)
		return
	}
	timeout := time.NewTimer(maxWait)
	defer timeout.Stop()
	select {
	case s.running <- struct{}{}:
	case <-r.Context().Done():
		return
	case <-timeout.C:
		w.Header().Set("Retry-After", "1")
		s.fail(w, e.path, &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: "too many requests at a time", Hint: "ask again in a second, and less often"})
		return
	}
	body, code, bad := s.make(r, e, p)
	if bad != nil {
		s.fail(w, e.path, bad)
		return
	}
	s.send(w, e.path, code, body)
}

// make builds an answer during the request's turn. The turn ends when the answer is in memory, so that slow readers
// delay no other request.
func (s *Server) make(r *http.Request, e *endpoint, p *params) (body []byte, code int, bad *Error) {
	defer func() { <-s.running }()
	v, bad := e.answer(s, r, p)
	if bad != nil {
		return nil, 0, bad
	}
	body, code = s.encode(sizeKind{e.path, bits.Len(uint(p.limit))}, http.StatusOK, v)
	return body, code, nil
}

func (s *Server) fail(w http.ResponseWriter, path string, e *Error) {
	if e.Code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, HEAD")
	}
	if e.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="localcache"`)
	}
	body, code := s.encode(sizeKind{}, e.Code, ErrorBody{APIVersion: Version, Kind: "Error", Error: *e})
	s.send(w, path, code, body)
}

// ByAddress begins the note that pods are not known; in answers about several nodes the names of these nodes precede
// it.
const ByAddress = "clients are shown by IP address"

// metadata of an answer.
func (s *Server) metadata(v *snapshot, w observe.Window) Metadata {
	m := Metadata{Node: s.options.Node, GeneratedAt: v.at, Window: w.String(), WindowSeconds: v.queries.Coverage[w].Seconds()}
	if known, reason := v.pods.Known(); !known {
		m.Notes = append(m.Notes, ByAddress+": "+reason)
	} else if reason != "" {
		m.Notes = append(m.Notes, "pods: "+reason)
	}
	if r := s.Redaction(); r != RedactNone {
		m.Notes = append(m.Notes, "redacted: "+r.String())
	}
	return m
}

// status returns the content of /statusz.
func (s *Server) status() Status {
	now := time.Now()
	totals, o := s.options.Queries.Totals(now), s.options.Queries.Options()
	table := s.options.Pods.Table()
	known, reason := table.Known()
	v := Status{
		Version: s.options.Version, Node: s.options.Node, PID: os.Getpid(),
		StartedAt: s.options.Queries.Started(), UptimeSeconds: now.Sub(s.options.Queries.Started()).Seconds(),
		Queries: totals.Queries(), InFlight: totals.InFlight,
		Clients: totals.Clients, MaxClients: o.Clients, SlowSeconds: o.Slow.Seconds(),
		Pods: PodFeed{Known: known, Count: table.Len(), Message: reason}, Redact: s.Redaction().String(), Listeners: s.listeners(), Lost: map[string]uint64{},
	}
	for l, n := range totals.Lost {
		v.Lost[observe.Loss(l).String()] = n
	}
	return v
}

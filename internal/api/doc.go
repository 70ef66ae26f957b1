// Package api serves what internal/observe knows as a read-only HTTP API, and reads it as a client.
//
//	GET /api/v1/summary                    the node's traffic as a whole
//	GET /api/v1/upstreams                  each pair of upstream and transport
//	GET /api/v1/pods                       each client
//	GET /api/v1/pods/{namespace}/{name}    one client, by pod or by /pods/{ip}
//	GET /api/v1/top                        names
//	GET /api/v1/queries                    slow and failed queries, the newest first
//	GET /api/v1/events                     failures of upstreams, the newest first
//	GET /statusz                           the program and what it keeps
//	GET /openapi.json                      all of this, for machines
//
// Every answer is an envelope with apiVersion, kind, metadata and items. Lists have a total order. A page's
// continue names the last item of it, not a position: what is ordered by a count may move between two pages.
// Durations are seconds, times RFC 3339. Histograms are raw counts with their bounds in the metadata, so that
// those of several nodes merge by addition. What is wrong with a request is said as an Error with a hint.
//
// Reading must not disturb DNS: an answer is made from a snapshot that requests share for a moment, few requests
// run at a time, the number of connections is bounded for each listener, and a client that does not read is
// left after some seconds. Nothing is believed because of where it comes from except the unix socket, which the file's
// mode guards: other listeners ask for a token, or were opened to all in so many words. Requests of
// browsers for other sites are refused (Host, Origin, Sec-Fetch-Site), and no CORS header is ever sent.
package api

import (
	"bytes"
	"encoding/json"
	"fmt"
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
	// maxRunning requests are answered at a time, others wait for at most maxWait. One answer takes some
	// milliseconds of one processor.
	maxRunning = 2
	maxWait    = time.Second
	// snapshotAge is for how long a snapshot is shared, and keepSnapshot when its memory is given back: 5 MB with
	// 1,024 clients.
	snapshotAge  = 200 * time.Millisecond
	keepSnapshot = 2 * time.Second
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
	Pods      pods.Source // nil: clients are told apart by address alone
}

// Server answers requests. It is safe for concurrent use.
type Server struct {
	options Options
	secret  []byte // of redacted names and clients
	redact  atomic.Uint32
	running chan struct{}
	count   requestCounts

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
	return &Server{options: o, secret: newSecret(), running: make(chan struct{}, maxRunning)}
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
	v := &snapshot{at: now, queries: s.options.Queries.Snapshot(now), upstreams: s.options.Upstreams.Snapshot(), pods: s.options.Pods.Table()}
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

// Handler answers the requests of one listener. access decides who may ask; nil stands for a listener that
// nobody reaches who may not, which is the unix socket.
func (s *Server) Handler(access Access) http.Handler {
	mux := http.NewServeMux()
	for _, e := range all() {
		mux.HandleFunc(e.path, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, &e) })
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Cache-Control", "no-store")
		header.Set("X-Content-Type-Options", "nosniff")
		header.Set("Content-Security-Policy", "default-src 'none'")
		header.Set("Cross-Origin-Resource-Policy", "same-origin")
		_, pattern := mux.Handler(r)
		e := s.admit(r, access)
		if e == nil && pattern == "" {
			e = &Error{Code: http.StatusNotFound, Reason: "NotFound", Message: fmt.Sprintf("there is nothing at %s", cut(r.URL.Path)),
				Hint: "GET /openapi.json lists what there is"}
		}
		if e == nil {
			mux.ServeHTTP(w, r)
			return
		}
		s.fail(w, pattern, e)
	})
}

// admit refuses what no endpoint is to see.
func (s *Server) admit(r *http.Request, access Access) *Error {
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
	return access.check(r)
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
		defer func() { <-s.running }()
	case <-r.Context().Done():
		return
	case <-timeout.C:
		w.Header().Set("Retry-After", "1")
		s.fail(w, e.path, &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: "too many requests at a time", Hint: "ask again in a second, and less often"})
		return
	}
	v, bad := e.answer(s, r, p)
	if bad != nil {
		s.fail(w, e.path, bad)
		return
	}
	s.write(w, e.path, http.StatusOK, v)
}

func (s *Server) fail(w http.ResponseWriter, path string, e *Error) {
	if e.Code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", "GET, HEAD")
	}
	if e.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="localcache"`)
	}
	s.write(w, path, e.Code, ErrorBody{APIVersion: Version, Kind: "Error", Error: *e})
}

func (s *Server) write(w http.ResponseWriter, path string, code int, v any) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		code = http.StatusInternalServerError
		body.Reset()
		fmt.Fprintf(&body, `{"apiVersion":%q,"kind":"Error","error":{"code":500,"reason":"Internal","message":"the answer cannot be written","hint":"report this"}}`, Version)
	}
	s.count.add(path, code)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(body.Len()))
	w.WriteHeader(code)
	_, _ = w.Write(body.Bytes()) // a client that went away is none of our business
}

// metadata of an answer.
func (s *Server) metadata(v *snapshot, w observe.Window) Metadata {
	m := Metadata{Node: s.options.Node, GeneratedAt: v.at, Window: w.String(), WindowSeconds: v.queries.Coverage[w].Seconds()}
	if known, reason := v.pods.Known(); !known {
		m.Notes = append(m.Notes, "clients are shown by IP address: "+reason)
	}
	if r := s.Redaction(); r != RedactNone {
		m.Notes = append(m.Notes, "redacted: "+r.String())
	}
	return m
}

// status is what /statusz tells.
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

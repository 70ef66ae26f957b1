// Package kubetest is a fake of the Kubernetes API server for internal/kube: lists and watches over TLS, with
// versions, selectors, pages and bookmarks, and with the faults that a test sets. It stores any objects and validates
// none.
package kubetest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Object is an object as JSON has it.
type Object map[string]any

// Request is a request that arrived.
type Request struct {
	Path, Query string
	Proto       string
	Watch       bool
	At          time.Time
}

// Fault sees each request before the server does; it returns true if it has answered it.
type Fault func(w http.ResponseWriter, r *http.Request) bool

// Server is a running server.
type Server struct {
	// Address is HOST:PORT.
	Address string
	// CA is the certificate that a client must trust, in PEM.
	CA []byte
	// PageSize is the most objects of a list page; 0 means all.
	PageSize int

	http *httptest.Server

	mu       sync.Mutex
	token    string
	version  int
	objects  map[string]map[string]Object // by path of the list without namespace, then NAMESPACE/NAME
	history  []event
	oldest   int // no watch can go on from an older version
	fault    Fault
	requests []Request
	changed  chan struct{} // closed at the next change
	cut      chan struct{} // closed to end all watches
}

type event struct {
	path, key, kind string
	version         int
	object          Object
}

// New starts a server on l, or where l is nil on a port of 127.0.0.1. Its certificate is for 127.0.0.1 and ::1.
// It wants the token.
func New(l net.Listener, token string) *Server {
	s := &Server{token: token, version: 100, oldest: 100, objects: map[string]map[string]Object{},
		changed: make(chan struct{}), cut: make(chan struct{})}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	if l != nil {
		if err := s.http.Listener.Close(); err != nil {
			panic(err)
		}
		s.http.Listener = l
	}
	s.http.EnableHTTP2 = true
	s.http.Config.ErrorLog = nil
	s.http.StartTLS()
	s.Address = s.http.Listener.Addr().String()
	s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
	return s
}

// Close cuts all connections and ends the server.
func (s *Server) Close() {
	s.Cut()
	s.http.CloseClientConnections()
	s.http.Close()
}

// Mount writes token and CA as the kubelet mounts them, and returns their paths.
func (s *Server) Mount(dir string) (token, ca string, err error) {
	token, ca = filepath.Join(dir, "token"), filepath.Join(dir, "ca.crt")
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.WriteFile(token, []byte(s.token+"\n"), 0o600); err != nil {
		return "", "", err
	}
	return token, ca, os.WriteFile(ca, s.CA, 0o600)
}

// SetToken is the token that is wanted from now on.
func (s *Server) SetToken(token string) { s.locked(func() { s.token = token }) }

// SetFault makes f see each request first; nil removes it.
func (s *Server) SetFault(f Fault) { s.locked(func() { s.fault = f }) }

// Requests are those that arrived, in order.
func (s *Server) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Cut ends all watches that run, in good order.
func (s *Server) Cut() {
	s.locked(func() {
		close(s.cut)
		s.cut = make(chan struct{})
	})
}

// Reset cuts all connections.
func (s *Server) Reset() { s.http.CloseClientConnections() }

// Forget drops the history of changes: no watch can continue from before.
func (s *Server) Forget() {
	s.locked(func() {
		s.version++
		s.oldest = s.version
		s.history = nil
	})
}

// Bookmark sends a bookmark to every watch.
func (s *Server) Bookmark() { s.locked(func() { s.record(event{kind: "BOOKMARK", object: Object{}}) }) }

// Paths that a client may request.
const (
	Slices = "/apis/discovery.k8s.io/v1/endpointslices"
	Pods   = "/api/v1/pods"
)

// Set creates or changes an object.
func (s *Server) Set(path string, o Object) {
	s.locked(func() {
		key := keyOf(o)
		kind := "ADDED"
		if s.objects[path] == nil {
			s.objects[path] = map[string]Object{}
		}
		if s.objects[path][key] != nil {
			kind = "MODIFIED"
		}
		o = clone(o)
		s.objects[path][key] = o
		s.record(event{path: path, key: key, kind: kind, object: o})
	})
}

// Delete removes an object.
func (s *Server) Delete(path, namespace, name string) {
	s.locked(func() {
		key := namespace + "/" + name
		if o := s.objects[path][key]; o != nil {
			delete(s.objects[path], key)
			s.record(event{path: path, key: key, kind: "DELETED", object: clone(o)})
		}
	})
}

func (s *Server) locked(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

func (s *Server) record(e event) {
	s.version++
	e.version = s.version
	meta, _ := e.object["metadata"].(map[string]any)
	if meta == nil {
		meta = map[string]any{}
		e.object["metadata"] = meta
	}
	meta["resourceVersion"] = strconv.Itoa(s.version)
	s.history = append(s.history, e)
	close(s.changed)
	s.changed = make(chan struct{})
}

// clone copies through JSON, so that later changes by the test do not affect the server's object.
func clone(o Object) Object {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var c Object
	if err := json.Unmarshal(b, &c); err != nil {
		panic(err)
	}
	return c
}

func keyOf(o Object) string {
	m, _ := clone(o)["metadata"].(map[string]any)
	return fmt.Sprint(m["namespace"], "/", m["name"])
}

// Status writes a meta/v1 Status.
func Status(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q}`, code, reason, message)
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	q := r.URL.Query()
	s.requests = append(s.requests, Request{Path: r.URL.Path, Query: r.URL.RawQuery, Proto: r.Proto, Watch: q.Get("watch") == "1", At: time.Now()})
	fault, token := s.fault, s.token
	s.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+token {
		Status(w, http.StatusUnauthorized, "Unauthorized", "Unauthorized")
		return
	}
	sel, ok := selectionOf(r)
	if !ok {
		Status(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
		return
	}
	if q.Get("watch") == "1" {
		s.watch(w, r, sel)
		return
	}
	s.list(w, r, sel)
}

// selection is the selection of a request.
type selection struct{ path, namespace, label, field string }

func selectionOf(r *http.Request) (selection, bool) {
	sel := selection{label: r.URL.Query().Get("labelSelector"), field: r.URL.Query().Get("fieldSelector")}
	parts := strings.Split(r.URL.Path, "/")
	if i := slices.Index(parts, "namespaces"); i >= 0 && i+2 < len(parts) {
		sel.namespace = parts[i+1]
		parts = slices.Delete(parts, i, i+2)
	}
	sel.path = strings.Join(parts, "/")
	return sel, sel.path == Slices || sel.path == Pods
}

func (sel selection) matches(o Object) bool {
	meta, _ := o["metadata"].(map[string]any)
	if sel.namespace != "" && meta["namespace"] != sel.namespace {
		return false
	}
	if key, value, ok := strings.Cut(sel.label, "="); ok {
		labels, _ := meta["labels"].(map[string]any)
		if labels[key] != value {
			return false
		}
	}
	if value, ok := strings.CutPrefix(sel.field, "spec.nodeName="); ok {
		spec, _ := o["spec"].(map[string]any)
		return spec["nodeName"] == value
	}
	return true
}

func (s *Server) list(w http.ResponseWriter, r *http.Request, sel selection) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v, err := strconv.Atoi(r.URL.Query().Get("resourceVersion")); err == nil && v > s.version {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusGatewayTimeout)
		fmt.Fprint(w, `{"kind":"Status","code":504,"reason":"Timeout","message":"Too large resource version","details":{"causes":[{"reason":"ResourceVersionTooLarge","message":"Too large resource version"}],"retryAfterSeconds":1}}`)
		return
	}
	keys := make([]string, 0, len(s.objects[sel.path]))
	for k, o := range s.objects[sel.path] {
		if sel.matches(o) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	meta := map[string]any{"resourceVersion": strconv.Itoa(s.version)}
	if token := r.URL.Query().Get("continue"); token != "" {
		for len(keys) > 0 && keys[0] <= token {
			keys = keys[1:]
		}
	}
	if s.PageSize > 0 && len(keys) > s.PageSize {
		keys = keys[:s.PageSize]
		meta["continue"] = keys[len(keys)-1]
	}
	items := []Object{}
	for _, k := range keys {
		items = append(items, s.objects[sel.path][k])
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]any{"kind": "List", "apiVersion": "v1", "metadata": meta, "items": items}); err != nil {
		return // the client is gone
	}
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, sel selection) {
	from, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil {
		Status(w, http.StatusBadRequest, "BadRequest", "resourceVersion")
		return
	}
	s.mu.Lock()
	oldest, cut := s.oldest, s.cut
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(w)
	flush := func() { _ = http.NewResponseController(w).Flush() }
	flush()
	if from < oldest {
		_ = enc.Encode(map[string]any{"type": "ERROR", "object": map[string]any{"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}})
		return
	}
	for {
		s.mu.Lock()
		changed := s.changed
		var news []event
		for _, e := range s.history {
			if e.version > from {
				news = append(news, e)
			}
		}
		s.mu.Unlock()
		for _, e := range news {
			from = e.version
			if e.kind != "BOOKMARK" && (e.path != sel.path || !sel.matches(e.object)) {
				continue
			}
			if enc.Encode(map[string]any{"type": e.kind, "object": e.object}) != nil {
				return
			}
		}
		flush()
		select {
		case <-changed:
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

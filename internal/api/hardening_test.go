package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// served is a server behind a listener of its own.
func served(t *testing.T, s *Server) (dial func() net.Conn, client *http.Client) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l := s.Serve(ln, nil, "test", quiet{})
	t.Cleanup(l.Close)
	dial = func() net.Conn {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	client = &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) },
	}}
	return dial, client
}

// crowd is a server with so many clients that an answer about all has about a megabyte.
func crowd(t *testing.T) *Server {
	t.Helper()
	q := observe.NewQueries(observe.QueriesOptions{Clients: 1024})
	for i := range 1024 {
		q.Record(&observe.Query{Client: netip.AddrPortFrom(podAddr(i), 1), Name: wire("a."), Type: 1, Received: time.Now().UnixNano(), Duration: time.Millisecond})
	}
	s := New(Options{Queries: q, Upstreams: observe.NewUpstreams(0)})
	t.Cleanup(s.Close)
	return s
}

// TestSlowReaders checks that clients that request much and do not read delay no other client, and take bounded
// memory.
func TestSlowReaders(t *testing.T) {
	s := crowd(t)
	s.stall, s.whole, s.room = time.Hour, time.Hour, 4<<20
	dial, client := served(t, s)
	statuses := map[int]int{}
	ask := func() net.Conn {
		c := dial()
		if _, err := fmt.Fprintf(c, "GET /api/v1/pods?limit=%d HTTP/1.1\r\nHost: localhost\r\n\r\n", maxLimit); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		// The first line alone is read.
		line := make([]byte, len("HTTP/1.1 200"))
		if _, err := io.ReadFull(c, line); err != nil {
			t.Fatal(err)
		}
		code, err := strconv.Atoi(string(line[len(line)-3:]))
		if err != nil {
			t.Fatal(err)
		}
		statuses[code]++
		if n := s.unsent.Load(); n > s.room {
			t.Errorf("%d bytes wait for those who do not read", n)
		}
		return c
	}
	const fit = 3 // of a megabyte
	for range fit {
		ask()
	}
	if statuses[200] != fit {
		t.Errorf("got %v: slow readers keep others waiting", statuses)
	}
	for range 2 * fit {
		ask()
	}
	if statuses[503] == 0 {
		t.Errorf("got %v, and %d bytes wait", statuses, s.unsent.Load())
	}
	answer, err := client.Get("http://localhost/statusz")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != 200 {
		t.Errorf("others get %s", answer.Status)
	}
}

// TestStalledReader checks that a client that stops reading is disconnected, however long an answer may take.
func TestStalledReader(t *testing.T) {
	s := crowd(t)
	s.stall, s.whole = 50*time.Millisecond, time.Hour
	dial, _ := served(t, s)
	c := dial()
	if _, err := fmt.Fprintf(c, "GET /api/v1/pods?limit=%d HTTP/1.1\r\nHost: localhost\r\n\r\n", maxLimit); err != nil {
		t.Fatal(err)
	}
	begun := func() bool { return s.Requests()[RequestKind{"/api/v1/pods", 200}] == 1 }
	for deadline := time.Now().Add(30 * time.Second); !begun() || s.unsent.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the answer waits for ever")
		}
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if _, err := io.Copy(io.Discard, r.Body); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want an answer that was cut", err)
	}
}

// TestHuge checks that oversized requests are refused without being kept, and that the next request is served.
func TestHuge(t *testing.T) {
	dial, client := served(t, world(t, nil))
	for name, tt := range map[string]struct {
		request string
		want    int
	}{
		"parameters": {"GET /api/v1/queries?name=" + strings.Repeat("x", maxQuery) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", http.StatusRequestURITooLong},
		"parameter":  {"GET /api/v1/queries?name=" + strings.Repeat("x", maxValue+1) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", http.StatusBadRequest},
		"path":       {"GET /" + strings.Repeat("x", 64<<10) + " HTTP/1.1\r\nHost: localhost\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"header":     {"GET /statusz HTTP/1.1\r\nHost: localhost\r\nX: " + strings.Repeat("x", 64<<10) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"headers":    {"GET /statusz HTTP/1.1\r\nHost: localhost\r\n" + strings.Repeat("X: x\r\n", 16<<10) + "\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"token":      {"GET /statusz HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + strings.Repeat("x", 64<<10) + "\r\n\r\n", http.StatusRequestHeaderFieldsTooLarge},
		"preflight":  {"OPTIONS /statusz HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\nAccess-Control-Request-Method: GET\r\n\r\n", http.StatusMethodNotAllowed},
		"deed":       {"POST /api/v1/summary HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n", http.StatusMethodNotAllowed},
		"smuggled":   {"GET /statusz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / ", http.StatusBadRequest},
	} {
		c := dial()
		go func() { _, _ = io.WriteString(c, tt.request) }() // the answer may arrive before the request is complete
		if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if r.StatusCode != tt.want && name != "smuggled" || r.StatusCode == http.StatusOK && name != "smuggled" {
			t.Errorf("%s: %s, want %d", name, r.Status, tt.want)
		}
		for header := range r.Header {
			if strings.HasPrefix(header, "Access-Control-") {
				t.Errorf("%s: %s", name, header)
			}
		}
		r.Body.Close()
	}
	r, err := client.Get("http://localhost/statusz")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if r.StatusCode != 200 {
		t.Errorf("afterwards: %s", r.Status)
	}
}

// TestManyConnections: at most so many of a listener are open; the others wait and get their turn.
func TestManyConnections(t *testing.T) {
	_, client := served(t, world(t, nil))
	var all sync.WaitGroup
	for range 5 * maxConnections {
		all.Go(func() {
			for deadline := time.Now().Add(30 * time.Second); ; {
				r, err := client.Get("http://localhost/api/v1/summary")
				if err != nil {
					t.Error(err)
					return
				}
				r.Body.Close()
				if r.StatusCode == http.StatusOK {
					return
				}
				if r.StatusCode != http.StatusServiceUnavailable || time.Now().After(deadline) {
					t.Error(r.Status)
					return
				}
			}
		})
	}
	all.Wait()
}

// TestEncode: an answer that is written item by item is the one that encoding/json writes.
func TestEncode(t *testing.T) {
	s := world(t, directory())
	h := s.Handler(nil)
	for range 2 { // the second one knows the size
		for _, target := range []string{"/api/v1/summary", "/api/v1/pods", "/api/v1/queries?limit=1", "/api/v1/queries?name=none.example", "/api/v1/events", "/openapi.json", "/statusz"} {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
			if !json.Valid(w.Body.Bytes()) || w.Header().Get("Content-Length") != fmt.Sprint(w.Body.Len()) {
				t.Errorf("%s: %v, %s", target, w.Header(), w.Body)
			}
		}
	}
	list := List[Name]{APIVersion: Version, Kind: "NameList", Metadata: Metadata{Node: "n", Notes: []string{`"items":[]}`}}}
	for n := range 4 {
		list.Items = append([]Name{}, []Name{{Name: "<a>", Count: 1}, {Name: "b", Count: 2}, {Name: "c"}}[:n]...)
		var want, got bytes.Buffer
		encoder := json.NewEncoder(&want)
		encoder.SetEscapeHTML(false)
		body, code := s.encode(sizeKind{}, 200, list)
		if err := errors.Join(encoder.Encode(list), json.Compact(&got, body)); err != nil || code != 200 || got.String() != strings.TrimSpace(want.String()) {
			t.Errorf("%d items: %v, got %s, want %s", n, err, &got, &want)
		}
	}
	if _, code := s.encode(sizeKind{}, 200, List[any]{Items: []any{func() {}}}); code != http.StatusInternalServerError {
		t.Errorf("what cannot be written has status %d", code)
	}
}

// TestUpstreamsAlone checks that requests about upstreams do not copy all clients.
func TestUpstreamsAlone(t *testing.T) {
	s := world(t, directory())
	h := s.Handler(nil)
	for _, target := range []string{"/api/v1/events", "/api/v1/upstreams?window=start"} {
		var v List[Event]
		get(t, h, target, 200, &v)
		if s.latest != nil {
			t.Fatalf("%s: a snapshot of everything was taken", target)
		}
		if len(v.Items) == 0 || v.Metadata.WindowSeconds <= 0 || v.Metadata.GeneratedAt.IsZero() {
			t.Errorf("%s: got %+v", target, v)
		}
	}
	empty := New(Options{Queries: observe.NewQueries(observe.QueriesOptions{}), Upstreams: observe.NewUpstreams(0)})
	defer empty.Close()
	var v List[Event]
	if get(t, empty.Handler(nil), "/api/v1/events", 200, &v); v.Items == nil || v.Metadata.WindowSeconds <= 0 {
		t.Errorf("without upstreams: %+v", v)
	}
}

package demo

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// startPage serves h as the API at a socket, and the page to it at loopback.
func startPage(t *testing.T, h http.Handler) *demoPage {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	if h != nil {
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}}
		s.Start()
		t.Cleanup(s.Close)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	p := newDemoPage(&lab.Outside{Listener: ln, Conn: own}, socket)
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// The page's server sees its own paths; a client without the secret gets nothing.
func TestDemoPageSecret(t *testing.T) {
	asked := make(chan string, 10)
	p := startPage(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- strings.TrimPrefix(r.Header.Get("Origin"), "http://") + " " + r.Host + " " + r.URL.RequestURI()
		fmt.Fprint(w, "seen")
	}))
	base := "http://" + p.outside.Listener.Addr().String()
	for _, c := range []struct {
		method, path string
		status       int
		asked        string
	}{
		{"GET", "/" + p.secret + "/", 200, "/"},
		{"GET", "/" + p.secret, 200, "/"}, // after a redirect
		{"GET", "/" + p.secret + "/api/v1/pods/a%2Fb?window=1m", 200, "/api/v1/pods/a%2Fb?window=1m"},
		{"GET", "/" + p.secret + "x/", 404, ""},
		{"GET", "/" + p.secret[:len(p.secret)-1] + "/", 404, ""},
		{"GET", "/" + strings.ToLower(p.secret) + "/", 404, ""},
		{"GET", "/", 404, ""},
		{"GET", "//" + p.secret + "/", 404, ""},
		{"GET", "/x/../" + p.secret + "/", 404, ""},
		{"POST", "/" + p.secret + "/", 405, ""},
	} {
		r, err := http.NewRequest(c.method, base+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Origin", base)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || strings.Contains(string(body), "seen") != (c.asked != "") {
			t.Errorf("%s %s: status %d, %q, %v; want %d", c.method, c.path, resp.StatusCode, body, err, c.status)
		}
		select {
		case got := <-asked:
			host := p.outside.Listener.Addr().String() // and the origin is the same, as the cache wants it
			if want := host + " " + host + " " + c.asked; got != want {
				t.Errorf("%s %s: asked %q, want %q", c.method, c.path, got, want)
			}
		default:
			if c.asked != "" {
				t.Errorf("%s %s: nothing was asked", c.method, c.path)
			}
		}
	}
	if status, kind, err := p.look("/" + p.secret + "/"); err != nil || status != 200 || !strings.HasPrefix(kind, "text/plain") {
		t.Errorf("its own look: %d %s %v", status, kind, err)
	}
}

// Events come when they are sent, not when there are many.
func TestDemoPageStreams(t *testing.T) {
	more := make(chan struct{})
	p := startPage(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for range 2 {
			fmt.Fprint(w, "data: x\n\n")
			_ = http.NewResponseController(w).Flush()
			<-more
		}
	}))
	resp, err := http.Get(p.address())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 2 {
		if _, err := io.ReadFull(resp.Body, make([]byte, len("data: x\n\n"))); err != nil {
			t.Fatal(err)
		}
		more <- struct{}{}
	}
}

// A missing cache is reported, and closing does not wait for open streams.
func TestDemoPageWithoutCache(t *testing.T) {
	p := startPage(t, nil)
	resp, err := http.Get(p.address())
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusBadGateway || !strings.Contains(string(body), "localcache does not answer") {
		t.Errorf("status %d, %s, %v", resp.StatusCode, body, err)
	}
}

// Connections beyond the bound are closed, and leave room when they are gone.
func TestDemoPageBound(t *testing.T) {
	p := startPage(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "seen") }))
	var open []net.Conn
	for range maxPageConns - 1 { // it has one of its own
		c, err := net.Dial("tcp", p.outside.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
	}
	last, err := net.Dial("tcp", p.outside.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	if n, err := last.Read(make([]byte, 1)); err == nil {
		t.Fatalf("%d bytes over a connection too many", n)
	}
	if err := open[0].Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // until the server has seen it
		resp, err := http.Get(p.address())
		if err == nil {
			resp.Body.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

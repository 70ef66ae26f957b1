package demo

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/lab"
)

// demoPage connects a browser on the machine with the page of the demo's node, which has a network of its own. It
// listens on a free port of the machine's loopback, which every user of the machine can reach: so its path begins
// with a secret.
type demoPage struct {
	outside *lab.Outside
	secret  string
	server  *http.Server
	ended   chan struct{}
	own     *bufio.Reader // of outside.Conn
}

const (
	// maxPageConns bounds the connections of all browsers.
	maxPageConns = 64
	pageTimeout  = 5 * time.Second
)

// newDemoPage serves the API at a unix socket outside.
func newDemoPage(outside *lab.Outside, socket string) *demoPage {
	p := &demoPage{outside: outside, secret: rand.Text(), ended: make(chan struct{}), own: bufio.NewReader(outside.Conn)}
	var open atomic.Int64
	p.server = &http.Server{
		Handler: behindSecret(p.secret, toSocket(socket)),
		// There is no ReadTimeout: it would end streams of events, whose request has long been read.
		ReadHeaderTimeout: pageTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10,
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > maxPageConns {
					_ = c.Close() // the server sees it, and counts it as closed
				}
			case http.StateClosed:
				open.Add(-1)
			}
		},
		ErrorLog: log.New(io.Discard, "", 0), // errors of browsers
	}
	go func() {
		defer close(p.ended)
		_ = p.server.Serve(outside.Listener) // ends with close; the user sees a listener that fails
	}()
	return p
}

// close ends it, including open streams.
func (p *demoPage) close() error {
	err := errors.Join(p.server.Close(), p.outside.Conn.Close())
	<-p.ended
	return err
}

// address returns the URL for the browser.
func (p *demoPage) address() string {
	return fmt.Sprintf("http://%s/%s/", p.outside.Listener.Addr(), p.secret)
}

// behindSecret shows next below /SECRET/, and nothing elsewhere.
func behindSecret(secret string, next http.Handler) http.Handler {
	next = http.StripPrefix("/"+secret, next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first, _, inside := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Connection", "close") // the rest of the request is not read
			http.Error(w, "it can be looked at only", http.StatusMethodNotAllowed)
		case subtle.ConstantTimeCompare([]byte(first), []byte(secret)) != 1:
			http.NotFound(w, r)
		case !inside:
			http.Redirect(w, r, "/"+secret+"/", http.StatusFound)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// toSocket passes requests on to the API at a unix socket.
func toSocket(socket string) http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			// The host stays the one in the browser's request, which the cache compares with the origin.
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "localhost", r.In.Host
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			},
			DisableCompression: true, ResponseHeaderTimeout: pageTimeout,
		},
		FlushInterval: -1, // events must be forwarded at once
		ErrorLog:      log.New(io.Discard, "", 0),
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			http.Error(w, fmt.Sprintf("localcache does not answer: %v", err), http.StatusBadGateway)
		},
	}
}

// showPage serves the page for browsers on the machine, and checks that only users who know its address can reach it.
func (d *demonstration) showPage(context.Context) error {
	d.title("A page shows it to a browser on this machine")
	if d.outside == nil {
		d.line("(not here: %v)", d.noOutside)
		return nil
	}
	d.page = newDemoPage(d.outside, api.DefaultSocket)
	known, guessed := "/"+d.page.secret+"/", "/"+rand.Text()+"/"
	seen := true
	for _, want := range []struct {
		path   string
		status int
		kind   string
	}{
		{known, http.StatusOK, "text/html"},
		{known + "app.js", http.StatusOK, "text/javascript"},
		{known + "api/v1/summary", http.StatusOK, "application/json"},
		{"/", http.StatusNotFound, "text/plain"},
		{guessed, http.StatusNotFound, "text/plain"},
		{guessed + "api/v1/summary", http.StatusNotFound, "text/plain"},
	} {
		status, kind, err := d.page.look(want.path)
		if err != nil {
			return fmt.Errorf("look at the page: %w", err)
		}
		seen = seen && status == want.status && strings.HasPrefix(kind, want.kind)
	}
	d.promise(seen, "only users who know the secret address can open the page and its data")
	return nil
}

// look asks for a path as a browser on the machine would.
func (p *demoPage) look(path string) (status int, kind string, err error) {
	c := p.outside.Conn
	if err := c.SetDeadline(time.Now().Add(startTimeout)); err != nil {
		return 0, "", err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %[2]s\r\nOrigin: http://%[2]s\r\nSec-Fetch-Site: same-origin\r\n\r\n", path, p.outside.Listener.Addr()); err != nil {
		return 0, "", err
	}
	answer, err := http.ReadResponse(p.own, nil)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, answer.Header.Get("Content-Type"), err
}

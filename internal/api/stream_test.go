package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const patience = 30 * time.Second

// listen serves s at a port of loopback.
func listen(t *testing.T, s *Server, access Access) (l *Listening, url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l = s.Serve(ln, access, "test", quiet{})
	t.Cleanup(l.Close)
	return l, "http://" + ln.Addr().String()
}

// listener is a client of a stream.
type listener struct {
	answer *http.Response
	lines  *bufio.Reader
}

func subscribe(t *testing.T, url string, header ...string) *listener {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	transport := &http.Transport{DisableKeepAlives: true}
	answer, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return &listener{answer, bufio.NewReader(answer.Body)}
}

// next reads up to the end of an event; kind is empty for a comment.
func (l *listener) next() (kind string, data []byte, err error) {
	for {
		line, err := l.lines.ReadString('\n')
		if err != nil {
			return kind, data, err
		}
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" && (kind != "" || data != nil):
			return kind, data, nil
		case strings.HasPrefix(line, "event: "):
			kind = line[len("event: "):]
		case strings.HasPrefix(line, "data: "):
			data = append(data, line[len("data: "):]...)
		}
	}
}

func (l *listener) overview(t *testing.T) (o List[Overview], raw string) {
	t.Helper()
	kind, data, err := l.next()
	if err != nil || kind != "overview" {
		t.Fatalf("event %q, %v: %s", kind, err, data)
	}
	if err := json.Unmarshal(data, &o); err != nil || len(o.Items) != 1 {
		t.Fatalf("%v: %s", err, data)
	}
	return o, string(data)
}

func hurried(s *Server) *Server {
	s.streams.every = 20 * time.Millisecond
	return s
}

// TestStream checks that events arrive one after the other, and show what happened since.
func TestStream(t *testing.T) {
	s := hurried(world(t, directory()))
	_, url := listen(t, s, Open())
	l := subscribe(t, url+streamPath+"?window=1m")
	if h := l.answer.Header; l.answer.StatusCode != 200 || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" || h.Get("Content-Security-Policy") != "default-src 'none'" {
		t.Fatalf("status %d, %v", l.answer.StatusCode, h)
	}
	first, raw := l.overview(t)
	o := first.Items[0]
	if first.Kind != "Overview" || first.Metadata.Window != "1m" || o.Summary.Queries != 30 || o.Total.Queries != 30 || o.Total.Hits != 25 || o.Total.UpstreamFailures != 3 || len(o.Findings) == 0 {
		t.Fatalf("got %s", raw)
	}
	if len(o.Upstreams) != 2 || o.Upstreams[0].TotalFailures != 3 || len(o.Events) != 3 || len(o.Pods) != 2 || len(o.Queries) != 5 || len(o.Top["queries"]) != 5 || o.SlowSeconds != 0.1 {
		t.Errorf("got %s", raw)
	}
	for _, buckets := range []string{`"counts":[1`, `"counts":[0`, "latencyBoundsSeconds"} {
		if strings.Contains(raw, buckets) {
			t.Errorf("the event has %s, which the page does not draw", buckets)
		}
	}
	s.options.Queries.Record(&observe.Query{Client: observeClient(1), Name: wire("new.example."), Type: 1, Received: time.Now().UnixNano()})
	for deadline := time.Now().Add(patience); ; {
		if e, _ := l.overview(t); e.Items[0].Total.Queries == 31 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new query is in no event")
		}
	}
	if n := s.Requests()[RequestKind{streamPath, 200}]; n != 1 {
		t.Errorf("%d requests are counted", n)
	}
}

// TestStreamOutlivesDeadlines: the server's deadlines are for answers that end.
func TestStreamOutlivesDeadlines(t *testing.T) {
	s := hurried(world(t, nil))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const short = 100 * time.Millisecond
	server := &http.Server{Handler: s.Handler(Open()), ReadHeaderTimeout: short, ReadTimeout: short, WriteTimeout: short}
	var done sync.WaitGroup
	done.Go(func() { _ = server.Serve(ln) })
	defer done.Wait()
	defer server.Close()
	l := subscribe(t, "http://"+ln.Addr().String()+streamPath)
	for begin := time.Now(); time.Since(begin) < 5*short; {
		l.overview(t)
	}
}

// TestStreamShared checks that each event is made once for all streams of a kind, and not at all without a stream.
func TestStreamShared(t *testing.T) {
	s := world(t, directory())
	s.streams.every = 50 * time.Millisecond
	_, url := listen(t, s, Open())
	a, b := subscribe(t, url+streamPath), subscribe(t, url+streamPath)
	seen, shared := map[string]bool{}, 0
	eventually(t, func() bool {
		for _, l := range []*listener{a, b} {
			e, _ := l.overview(t)
			moment := e.Metadata.GeneratedAt.String()
			if seen[moment] {
				shared++
			}
			seen[moment] = true
		}
		return shared >= 5
	}, "each of two streams has snapshots of its own")
	a.answer.Body.Close()
	b.answer.Body.Close()
	eventually(t, func() bool {
		s.streams.mu.Lock()
		defer s.streams.mu.Unlock()
		return s.streams.open == 0 && s.streams.made == nil
	}, "the streams are still open, or what they were told is kept")
}

// eventually polls.
func eventually(t *testing.T, ok func() bool, what string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(what)
		}
	}
}

// TestStreamBound checks that a client beyond the limit is told what to do, and is accepted when another one leaves.
func TestStreamBound(t *testing.T) {
	s := hurried(world(t, nil))
	_, url := listen(t, s, Open())
	var open []*listener
	for range maxStreams {
		l := subscribe(t, url+streamPath)
		l.overview(t)
		open = append(open, l)
	}
	late := subscribe(t, url+streamPath)
	body, _ := io.ReadAll(late.answer.Body)
	if late.answer.StatusCode != 503 || late.answer.Header.Get("Retry-After") == "" || !strings.Contains(string(body), overviewPath) {
		t.Errorf("status %d: %s", late.answer.StatusCode, body)
	}
	// Others are still answered.
	if l := subscribe(t, url+overviewPath); l.answer.StatusCode != 200 {
		t.Errorf("status %d", l.answer.StatusCode)
	}
	open[3].answer.Body.Close()
	eventually(t, func() bool {
		l := subscribe(t, url+streamPath)
		defer l.answer.Body.Close()
		return l.answer.StatusCode == 200
	}, "the place of a stream that ended stays taken")
}

// TestStreamRefused: parameters and sites are looked at as everywhere, and HEAD ends.
func TestStreamRefused(t *testing.T) {
	s := hurried(world(t, nil))
	_, url := listen(t, s, Open())
	for target, want := range map[string]int{"?window=2m": 400, "?by=queries": 400, "?window=1m": 200} {
		if l := subscribe(t, url+streamPath+target); l.answer.StatusCode != want {
			t.Errorf("%s: status %d, want %d", target, l.answer.StatusCode, want)
		}
	}
	if l := subscribe(t, url+streamPath, "Origin", "http://evil.example"); l.answer.StatusCode != 403 {
		t.Errorf("another site: status %d", l.answer.StatusCode)
	}
	r, err := http.Head(url + streamPath)
	if err != nil || r.StatusCode != 200 {
		t.Fatalf("HEAD: %v, %v", r, err)
	}
	r.Body.Close()
}

// narrow accepts connections that hold little that was not read.
type narrow struct{ net.Listener }

func (n *narrow) Accept() (net.Conn, error) {
	c, err := n.Listener.Accept()
	if err == nil {
		err = c.(*net.TCPConn).SetWriteBuffer(4 << 10)
	}
	return c, err
}

// TestStreamSlowReader checks that a client that does not read loses the stream, and delays no other.
func TestStreamSlowReader(t *testing.T) {
	s := hurried(world(t, directory()))
	s.streams.timeout = time.Second
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served, url := s.Serve(&narrow{ln}, Open(), "test", quiet{}), "http://"+ln.Addr().String()
	defer served.Close()
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(c, "GET "+streamPath+" HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	open := func() int {
		s.streams.mu.Lock()
		defer s.streams.mu.Unlock()
		return s.streams.open
	}
	eventually(t, func() bool { return open() == 1 }, "the stream does not begin")
	l := subscribe(t, url+streamPath)
	eventually(t, func() bool {
		l.overview(t)
		return open() == 1
	}, "a client that does not read keeps its stream")
}

// TestStreamClose: the end of a listener ends its streams at once, those that are idle too, and leaves nothing running.
func TestStreamClose(t *testing.T) {
	before := runtime.NumGoroutine()
	s := world(t, nil)
	s.streams.every = time.Hour // between two events
	l, url := listen(t, s, Open())
	var clients []*listener
	for range 4 {
		c := subscribe(t, url+streamPath)
		c.overview(t)
		clients = append(clients, c)
	}
	closed := make(chan time.Duration)
	go func() {
		begin := time.Now()
		l.Close()
		closed <- time.Since(begin)
	}()
	for _, c := range clients {
		if kind, _, err := c.next(); err != nil || kind != "end" {
			t.Errorf("event %q, %v, want an end that was meant", kind, err)
		}
		if _, _, err := c.next(); !errors.Is(err, io.EOF) {
			t.Errorf("after the end: %v", err)
		}
		c.answer.Body.Close()
	}
	// closeTimeout is for answers under way. Where streams took it, they would be cut off without an end.
	<-closed
	l.Close() // again
	eventually(t, func() bool { return runtime.NumGoroutine() <= before }, "goroutines are left")
	if s.streams.made != nil || s.streams.open != 0 {
		t.Errorf("%+v is left", &s.streams)
	}
}

// TestStreamAccess checks that withdrawing a token ends the stream.
func TestStreamAccess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("0123456789abcdef"), 0o600); err != nil {
		t.Fatal(err)
	}
	token, err := NewToken(file)
	if err != nil {
		t.Fatal(err)
	}
	s := hurried(world(t, nil))
	_, url := listen(t, s, token)
	if l := subscribe(t, url+streamPath); l.answer.StatusCode != 401 {
		t.Errorf("status %d without a token", l.answer.StatusCode)
	}
	if l := subscribe(t, url+"/"); l.answer.StatusCode != 200 {
		t.Errorf("status %d for the page without a token, where could it be typed in?", l.answer.StatusCode)
	}
	l := subscribe(t, url+streamPath, "Authorization", "Bearer 0123456789abcdef")
	l.overview(t)
	if err := os.WriteFile(file, []byte("another-token-here"), 0o600); err != nil {
		t.Fatal(err)
	}
	for {
		kind, data, err := l.next()
		if err != nil {
			t.Fatal(err)
		}
		if kind == "end" {
			if !strings.Contains(string(data), "taken back") {
				t.Errorf("got %s", data)
			}
			break
		}
	}
}

// demoted is an Access that loses a role while it is looked at.
type demoted struct{ names atomic.Bool }

func (c *demoted) String() string { return "for a test" }
func (c *demoted) check(_ *http.Request, role Role) *Error {
	if role != RoleNames || c.names.Load() {
		return nil
	}
	return &Error{Code: 403, Reason: "Forbidden", Message: "names are not for you", Hint: "ask"}
}

// TestStreamRedaction checks that what answers hide the stream hides too, from the next event on.
func TestStreamRedaction(t *testing.T) {
	s := hurried(world(t, directory()))
	access := &demoted{}
	access.names.Store(true)
	_, url := listen(t, s, access)
	l := subscribe(t, url+streamPath)
	_, raw := l.overview(t)
	if !strings.Contains(raw, "web-1") || !strings.Contains(raw, "cluster.local") {
		t.Fatalf("got %s", raw)
	}
	without := func(secrets ...string) func() bool {
		return func() bool {
			_, raw = l.overview(t)
			for _, secret := range secrets {
				if strings.Contains(raw, secret) {
					return false
				}
			}
			return true
		}
	}
	s.SetRedaction(RedactNames)
	eventually(t, without("cluster.local"), "names are told")
	if !strings.Contains(raw, "web-1") {
		t.Error("clients are hidden too")
	}
	s.SetRedaction(RedactClients)
	eventually(t, without("cluster.local", "shop", "web-1", podAddr(1).String()+`"`, "Deployment"), "clients are told")
	access.names.Store(false)
	eventually(t, without("redacted-"), "names are told to one who may not know them any more")
	if !strings.Contains(raw, `"hidden":"names are not for you"`) {
		t.Errorf("got %s", raw)
	}
}

// TestStreamDescribed checks that an event has the fields of the described overview.
func TestStreamDescribed(t *testing.T) {
	s := hurried(world(t, directory()))
	_, url := listen(t, s, Open())
	var d struct {
		Paths map[string]struct {
			Get struct {
				Responses map[string]struct {
					Content map[string]struct{ Schema map[string]any }
				}
			}
		}
		Components struct{ Schemas map[string]any }
	}
	get(t, s.Handler(nil), "/openapi.json", 200, &d)
	if _, ok := d.Paths[streamPath].Get.Responses["200"].Content["text/event-stream"]; !ok {
		t.Fatalf("got %+v", d.Paths[streamPath])
	}
	kind, data, err := subscribe(t, url+streamPath).next()
	if err != nil || kind != "overview" {
		t.Fatalf("event %q, %v", kind, err)
	}
	var body any
	if err := json.Unmarshal(data, &body); err != nil {
		t.Fatal(err)
	}
	v := validator{schemas: d.Components.Schemas}
	for _, e := range v.check(d.Paths[overviewPath].Get.Responses["200"].Content["application/json"].Schema, body, "event") {
		t.Error(e)
	}
}

// BenchmarkOverview is an event of a full state, its snapshot included.
func BenchmarkOverview(b *testing.B) {
	s := full(b)
	b.ReportAllocs()
	for n := int64(0); b.Loop(); n++ {
		s.mu.Lock()
		s.latest = nil
		s.mu.Unlock()
		data, err := s.event(streamKind{window: observe.Last5m, names: true}, n)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(data)), "bytes")
	}
}

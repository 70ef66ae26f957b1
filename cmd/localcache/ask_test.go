package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient"
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/observe"
	podtable "localcache.dev/localcache/internal/pods"
)

// TestAskScripts runs the subcommands that ask a cache, as processes, against the API over some traffic.
func TestAskScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/ask",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			socket := filepath.Join(env.WorkDir, "diag.sock")
			token := filepath.Join(env.WorkDir, "token")
			if err := os.WriteFile(token, []byte("a token of 24 characters\n"), 0o600); err != nil {
				return err
			}
			server, queries, directory := sampleServer()
			env.Values["server"], env.Values["directory"] = server, directory
			access, err := api.NewToken(token)
			if err != nil {
				return err
			}
			k := server.ServeSocket(socket, silent{})
			tcp := httptest.NewServer(server.Handler(access))
			foreign := httptest.NewServer(http.NotFoundHandler())
			env.Defer(func() { tcp.Close(); foreign.Close(); k.Close(); server.Close() })
			env.Values["queries"] = queries
			env.Setenv(cli.SocketVariable, socket)
			env.Setenv("SOCKET", socket)
			env.Setenv("URL", tcp.URL)
			env.Setenv("FOREIGN", foreign.URL)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// slow records a slow query of the given name.
			"slow": func(ts *testscript.TestScript, neg bool, args []string) {
				recordSlow(ts.Value("queries").(*observe.Queries), args[0])
			},
			"until":  until,
			"status": wantStatus,
			// redact makes the server hide something; nopods makes it forget the pods.
			"redact": func(ts *testscript.TestScript, neg bool, args []string) {
				r, ok := api.ParseRedaction(args[0])
				if !ok {
					ts.Fatalf("no redaction %q", args[0])
				}
				ts.Value("server").(*api.Server).SetRedaction(r)
			},
			"nopods": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Value("directory").(*podtable.Directory).Store(nil)
				ts.Value("server").(*api.Server).SetRedaction(api.RedactNone) // which has it look anew
			},
		},
	})
}

// wantStatus runs a command and wants this exit status.
func wantStatus(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec(args[1], args[2:]...)
	var status *exec.ExitError
	got := 0
	if errors.As(err, &status) {
		got = status.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("status %d, want %s", got, args[0])
	}
}

// until waits for text in a file that a background command writes.
func until(ts *testscript.TestScript, _ bool, args []string) {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		if err == nil && bytes.Contains(b, []byte(args[1])) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s never says %q: %s", args[0], args[1], b)
		}
	}
}

type silent struct{}

func (silent) Infof(string, ...any)    {}
func (silent) Warningf(string, ...any) {}

func wireName(name string) []byte {
	var b []byte
	for label := range strings.SplitSeq(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0)
}

func recordSlow(q *observe.Queries, name string) {
	trace := new(observe.Trace)
	trace.Add(observe.Step{Upstream: "192.0.2.53:53", Outcome: observe.Timeout, Duration: 2 * time.Second, Err: "nothing came"})
	query := &observe.Query{
		Client: netip.MustParseAddrPort("10.244.1.5:4242"), ID: 7, Name: wireName(name), Type: 1, Rcode: 2, Source: observe.FromUpstream,
		Received: time.Now().Add(-2 * time.Second).UnixNano(), Duration: 2 * time.Second, Upstream: 2 * time.Second,
	}
	q.End(q.Begin(query), query, trace)
}

// sampleServer has traffic of 150 s ago, so that ages are "2m" for half a minute.
func sampleServer() (*api.Server, *observe.Queries, *podtable.Directory) {
	start := time.Now().Add(-150 * time.Second)
	q, u := observe.NewQueries(observe.QueriesOptions{Clients: 100}), observe.NewUpstreams(0)
	kubeDNS, silentOne := u.Sink("10.96.0.10:53", observe.TCP), u.Sink("192.0.2.53:53", observe.UDP)
	for i := range 40 {
		kubeDNS.Begin()
		kubeDNS.End(&observe.Exchange{Start: start, Duration: time.Duration(900+10*i) * time.Microsecond, Attempt: 1})
	}
	for range 3 {
		silentOne.Begin()
		silentOne.End(&observe.Exchange{Start: start, Duration: 2 * time.Second, Outcome: observe.Timeout, Attempt: 1, Err: "nothing came within 2s"})
	}
	u.WatchConnections(func() []observe.Connection {
		return []observe.Connection{
			{Upstream: "10.96.0.10:53", Proto: observe.TCP, Local: netip.MustParseAddrPort("192.0.2.10:40001"), Opened: start, RTT: 150 * time.Microsecond},
			{Upstream: "10.96.0.10:53", Proto: observe.TCP, Local: netip.MustParseAddrPort("192.0.2.10:40002"), Opened: start, RTT: 420 * time.Microsecond, InFlight: 3},
		}
	})
	ask := func(client, name string, n, rcode int, source observe.Source, took time.Duration) {
		for i := range n {
			query := &observe.Query{
				Client: netip.AddrPortFrom(netip.MustParseAddr(client), uint16(20000+i)), ID: uint16(i), Name: wireName(name), Type: 1, Rcode: rcode, Source: source,
				Received: start.UnixNano() + int64(i), Duration: took,
			}
			if source == observe.FromUpstream {
				query.Upstream = took - 100*time.Microsecond
			}
			q.Record(query)
		}
	}
	ask("10.244.1.5", "api.shop.svc.cluster.local.", 90, 0, observe.FromReplay, 40*time.Microsecond)
	ask("10.244.1.5", "example.org.", 10, 0, observe.FromUpstream, 30*time.Millisecond)
	ask("10.244.1.9", "example.org.default.svc.cluster.local.", 30, 3, observe.FromCache, 60*time.Microsecond)
	ask("10.244.1.9", "example.org.", 10, 0, observe.FromReplay, 40*time.Microsecond)
	ask("192.0.2.10", "registry.example.org.", 5, 0, observe.FromReplay, 40*time.Microsecond)
	for _, rcode := range []int{2, 0} {
		trace := new(observe.Trace)
		trace.Add(observe.Step{Upstream: "192.0.2.53:53", Outcome: observe.Timeout, Duration: 2 * time.Second, Err: "nothing came within 2s"})
		trace.Add(observe.Step{Upstream: "10.96.0.10:53", Proto: observe.TCP, Rcode: rcode, Outcome: observe.OutcomeOf(rcode), Duration: time.Millisecond})
		query := &observe.Query{
			Client: netip.MustParseAddrPort("10.244.1.5:5353"), ID: uint16(1000 + rcode), Name: wireName("slow.example.org."), Type: 28, Rcode: rcode, Source: observe.FromUpstream,
			Received: start.UnixNano() + int64(rcode), Duration: 2001 * time.Millisecond, Upstream: 2001 * time.Millisecond,
		}
		q.End(q.Begin(query), query, trace)
	}
	directory := new(podtable.Directory)
	directory.Store(podtable.NewTable([]podtable.Pod{
		{Namespace: "shop", Name: "web-1", UID: "u1", WorkloadKind: "Deployment", WorkloadName: "web", IPs: []netip.Addr{netip.MustParseAddr("10.244.1.5")}},
		{Namespace: "kube-system", Name: "kube-proxy", UID: "u2", HostNetwork: true, IPs: []netip.Addr{netip.MustParseAddr("192.0.2.10")}},
	}))
	return api.New(api.Options{Node: "node-1", Version: "v0.0.0", Queries: q, Upstreams: u, Pods: directory}), q, directory
}

// TestSummarised checks that a line always fits a screen.
func TestSummarised(t *testing.T) {
	refused := api.Exchange{Upstream: "192.0.2.1:5999", Proto: "udp", Outcome: "conn_refused", DurationSeconds: 0.0001, Message: "connect: connection refused"}
	q := &api.Query{Exchanges: []api.Exchange{
		refused, refused, {Upstream: "192.0.2.2:53", Proto: "tcp", Outcome: "timeout", DurationSeconds: 2}, refused, refused,
		{Upstream: "192.0.2.3:53", Proto: "udp", Outcome: "timeout", DurationSeconds: 0.01, Overtaken: true},
		{Upstream: "192.0.2.4:53", Proto: "udp", Outcome: "servfail"}, {Upstream: "192.0.2.5:53", Proto: "udp", Outcome: "servfail"},
	}, LostExchanges: 3}
	const want = "4× 192.0.2.1:5999/udp conn_refused; 192.0.2.2:53/tcp timeout 2.0s; 192.0.2.3:53/udp overtaken 10ms; and 5 more"
	if got := apiclient.Summarised(q); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := apiclient.Summarised(&api.Query{}); got != "" {
		t.Errorf("got %q of nothing", got)
	}
}

// TestWriteYAML checks that the output has the content and the order of the input. The oracle is a reader of the
// subset that is written: indentation, dashes, and scalars in JSON.
func TestWriteYAML(t *testing.T) {
	const document = `{"b":1,"a":{"x":[],"y":{},"z":[{"k":"v","l":[1,2]},"s",[true,null]]},"no":"no","3":"a: b","t":"2006-01-02T15:04:05Z"}`
	const want = `b: 1
a:
  x: []
  "y": {}
  z:
    - k: "v"
      l:
        - 1
        - 2
    - "s"
    - - true
      - null
"no": "no"
"3": "a: b"
t: "2006-01-02T15:04:05Z"
`
	var b bytes.Buffer
	if err := render.WriteYAML(&b, []byte(document)); err != nil {
		t.Fatal(err)
	}
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
	if err := render.WriteYAML(&b, []byte(`{"a":`)); err == nil {
		t.Error("half a document was written")
	}
}

func TestPrintable(t *testing.T) {
	if got := render.Printable("a\x1b[31mb\u009bc\xffd é"); strings.ContainsAny(got, "\x1b\u009b") || !strings.Contains(got, "é") {
		t.Errorf("got %q: a name could steer the terminal", got)
	}
}

func TestShort(t *testing.T) {
	for seconds, want := range map[float64]string{0: "-", 0.00004: "40µs", 0.0012: "1.2ms", 0.12: "120ms", 2.04: "2.0s", 150: "2m"} {
		if got := render.Short(seconds); got != want {
			t.Errorf("%v: got %s, want %s", seconds, got, want)
		}
	}
}

func TestMerged(t *testing.T) {
	var l observe.Latency
	l.Counts[3], l.Counts[20] = 99, 1
	var bounds []float64
	for i := range observe.NumLatencyBuckets - 1 {
		_, high := observe.LatencyBounds(i)
		bounds = append(bounds, high.Seconds())
	}
	q := apiclient.Merged(&api.Latency{Counts: l.Counts[:4]}, &api.Latency{Counts: append(make([]uint64, 20), 1)}, bounds)
	if q(0.5) != bounds[3] || q(1) != bounds[20] {
		t.Errorf("got %v and %v, want %v and %v", q(0.5), q(1), bounds[3], bounds[20])
	}
	if none := apiclient.Merged(&api.Latency{}, &api.Latency{}, bounds); none(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

// FuzzWriteYAML checks that every JSON document can be written, and that nothing else crashes.
func FuzzWriteYAML(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":[]}],"c":null}`))
	f.Add([]byte(`[[[]]]`))
	f.Fuzz(func(t *testing.T, document []byte) {
		var b bytes.Buffer
		err := render.WriteYAML(&b, document)
		if json.Valid(document) && err != nil {
			t.Errorf("%q: %v", document, err)
		}
		if err == nil && b.Len() == 0 {
			t.Errorf("%q: nothing was written", document)
		}
	})
}

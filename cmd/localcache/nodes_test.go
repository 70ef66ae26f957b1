package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/fleet"
	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/observe"
	podtable "localcache.dev/localcache/internal/pods"
)

// fakeKubectlName is the program under which the test binary is a kubectl; scripts have a 'kubectl' that calls it.
const fakeKubectlName = "fake-kubectl"

// fakeKubectl acts according to the files in the folder CLUSTER: it lists pods.json, and exec/POD says what 'exec
// POD' does: "run SOCKET" runs the real program against that socket. The file calls gets the command lines.
func fakeKubectl() {
	dir := os.Getenv("CLUSTER")
	args := os.Args[1:]
	log, err := os.OpenFile(filepath.Join(dir, "calls"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(log, strings.Join(args, " "))
	}
	fail := func(format string, a ...any) {
		fmt.Fprintf(os.Stderr, format+"\n", a...)
		os.Exit(1)
	}
	if err != nil {
		fail("%v", err)
	}
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		args = args[1:]
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			fail("Error from server (NotFound): %v", err)
		}
		return strings.TrimSpace(string(b))
	}
	switch args[0] {
	case "get":
		pods := read("pods.json")
		if strings.HasPrefix(pods, "Error") {
			fail("%s", pods)
		}
		fmt.Println(pods)
	case "auth":
		if answer := read("can-i"); answer != "yes" {
			fmt.Println(answer)
			os.Exit(1)
		}
		fmt.Println("yes")
	case "exec":
		pod, ok := strings.CutPrefix(args[1], "pod/")
		if !ok {
			fail("exec into %q, which can be an option or another kind", args[1])
		}
		what, socket, _ := strings.Cut(read("exec/"+pod), " ")
		switch what {
		case "run":
			at := slices.Index(args, "--")
			if args[at+1] != fleet.ProgramInImage {
				fail("exec: %q: no such file or directory", args[at+1])
			}
			cmd := exec.Command("localcache", args[at+2:]...)
			cmd.Env = append(os.Environ(), cli.SocketVariable+"="+socket)
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			var status *exec.ExitError
			if err := cmd.Run(); errors.As(err, &status) {
				fail("command terminated with exit code %d", status.ExitCode())
			} else if err != nil {
				fail("%v", err)
			}
		case "garbage":
			fmt.Println("<html>404</html>")
		case "hang":
			time.Sleep(time.Hour)
		case "wait": // for a file
			for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
				if _, err := os.Stat(socket); err == nil {
					break
				}
			}
			fmt.Println("{}")
		default:
			fail("Error from server (Forbidden): pods %q is forbidden: User \"jane\" cannot create resource \"pods/exec\"", args[1])
		}
	default:
		fail("unknown command %q", args[0])
	}
}

// nodeServer is the cache of a node with its own traffic: web-N is a pod on it, and all nodes ask 192.0.2.53, which
// is silent for the second one.
func nodeServer(n int) *api.Server {
	server, _ := sampleNode(n)
	return server
}

func sampleNode(n int) (*api.Server, *observe.Queries) {
	start := time.Now().Add(-150 * time.Second)
	q, u := observe.NewQueries(observe.QueriesOptions{Clients: 100}), observe.NewUpstreams(0)
	for i := range 10 * n {
		e := observe.Exchange{Start: start.Add(time.Duration(i)), Duration: time.Millisecond, Attempt: 1}
		if n == 2 && i < 5 {
			e.Outcome, e.Duration, e.Err = observe.Timeout, 2*time.Second, "nothing came within 2s"
		}
		sink := u.Sink("192.0.2.53:53", observe.UDP)
		sink.Begin()
		sink.End(&e)
	}
	pod, host := netip.AddrFrom4([4]byte{10, 244, byte(n), 5}), netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
	record := func(client netip.Addr, name string, times int) {
		for i := range times {
			q.Record(&observe.Query{
				Client: netip.AddrPortFrom(client, uint16(20000+i)), ID: uint16(i), Name: wireName(name), Type: 1, Source: observe.FromReplay,
				Received: start.UnixNano() + int64(i), Duration: 40 * time.Microsecond,
			})
		}
	}
	record(pod, "common.example.org.", 100*n)
	record(pod, fmt.Sprintf("of-%d.example.org.", n), 10)
	record(host, "common.example.org.", n)
	trace := new(observe.Trace)
	trace.Add(observe.Step{Upstream: "192.0.2.53:53", Outcome: observe.Timeout, Duration: 2 * time.Second, Err: "nothing came within 2s"})
	slow := &observe.Query{
		Client: netip.AddrPortFrom(pod, 4242), ID: uint16(n), Name: wireName("slow.example.org."), Type: 1, Rcode: 2, Source: observe.FromUpstream,
		Received: start.Add(time.Duration(n) * time.Millisecond).UnixNano(), Duration: 2 * time.Second, Upstream: 2 * time.Second,
	}
	q.End(q.Begin(slow), slow, trace)
	directory := new(podtable.Directory)
	directory.Store(podtable.NewTable([]podtable.Pod{
		{Namespace: "shop", Name: fmt.Sprintf("web-%d", n), UID: fmt.Sprintf("u%d", n), IPs: []netip.Addr{pod}},
		{Namespace: "kube-system", Name: "kube-proxy", UID: fmt.Sprintf("p%d", n), HostNetwork: true, IPs: []netip.Addr{host}},
	}))
	return api.New(api.Options{Node: fmt.Sprintf("node-%d", n), Version: fmt.Sprintf("v1.%d.0", n), Queries: q, Upstreams: u, Pods: directory}), q
}

// fakePod is a pod as kubectl shows it.
func fakePod(name, node, ip, state string) map[string]any {
	return map[string]any{
		"metadata": map[string]any{"name": name, "namespace": "kube-system", "labels": map[string]any{"k8s-app": "node-local-dns"}},
		"spec": map[string]any{"nodeName": node, "containers": []any{
			map[string]any{"name": "sidecar", "image": "registry.example.org/other:v1"},
			map[string]any{"name": "node-cache", "image": "registry.example.org/localcache:v1"},
		}},
		"status": map[string]any{"phase": "Running", "podIP": ip, "containerStatuses": []any{
			map[string]any{"name": "node-cache", "state": map[string]any{state: map[string]any{"reason": "CrashLoopBackOff"}}},
		}},
	}
}

// TestAllNodesScripts runs the subcommands as processes against a cluster of three nodes, each with an API behind a
// fake kubectl that runs the program itself instead of running it in a pod.
func TestAllNodesScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/nodes",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
		Setup: func(env *testscript.Env) error {
			cluster, bin := filepath.Join(env.WorkDir, "cluster"), filepath.Join(env.WorkDir, "kube")
			token := filepath.Join(env.WorkDir, "token")
			if err := errors.Join(os.MkdirAll(filepath.Join(cluster, "exec"), 0o700), os.Mkdir(bin, 0o700),
				os.WriteFile(filepath.Join(bin, "kubectl"), []byte("#!/bin/sh\nexec "+fakeKubectlName+" \"$@\"\n"), 0o700),
				os.WriteFile(token, []byte("a token of 24 characters\n"), 0o600),
				os.WriteFile(filepath.Join(cluster, "can-i"), []byte("yes"), 0o600)); err != nil {
				return err
			}
			access, err := api.NewToken(token)
			if err != nil {
				return err
			}
			port := ""
			var items []any
			for n := 1; n <= 3; n++ {
				server, queries := sampleNode(n)
				socket := filepath.Join(env.WorkDir, fmt.Sprintf("%d.sock", n))
				env.Values[fmt.Sprint("queries of ", n)] = queries
				k := server.ServeSocket(socket, silent{})
				env.Defer(func() { k.Close(); server.Close() })
				name, ip := fmt.Sprintf("cache-%d", n), fmt.Sprintf("127.0.0.%d", n)
				items = append(items, fakePod(name, fmt.Sprintf("node-%d", n), ip, "running"))
				if err := os.WriteFile(filepath.Join(cluster, "exec", name), []byte("run "+socket), 0o600); err != nil {
					return err
				}
				// All at the same port, as in a cluster.
				ln, err := net.Listen("tcp", net.JoinHostPort(ip, port))
				if err != nil {
					return err
				}
				_, port, _ = net.SplitHostPort(ln.Addr().String())
				tcp := httptest.NewUnstartedServer(server.Handler(access))
				tcp.Listener.Close()
				tcp.Listener = ln
				tcp.Start()
				env.Defer(tcp.Close)
			}
			if err := writePods(cluster, items...); err != nil {
				return err
			}
			ahead, err := net.Listen("unix", filepath.Join(env.WorkDir, "ahead.sock"))
			if err != nil {
				return err
			}
			clock := &http.Server{Handler: clockAhead(time.Hour), ReadHeaderTimeout: time.Minute}
			go func() { _ = clock.Serve(ahead) }()
			env.Defer(func() { clock.Close() })
			if err := os.WriteFile(filepath.Join(cluster, "exec", "cache-ahead"), []byte("run "+ahead.Addr().String()), 0o600); err != nil {
				return err
			}
			env.Setenv("PROGRAMS", filepath.SplitList(env.Getenv("PATH"))[0])
			env.Setenv("PATH", bin+string(os.PathListSeparator)+env.Getenv("PATH"))
			env.Setenv("CLUSTER", cluster)
			env.Setenv("PORT", port)
			return nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			// pods has the cluster list pods: NAME NODE STATE each.
			"pods": func(ts *testscript.TestScript, neg bool, args []string) {
				var items []any
				for i := 0; i+2 < len(args); i += 3 {
					items = append(items, fakePod(args[i], args[i+1], "127.0.0.1", args[i+2]))
				}
				ts.Check(writePods(ts.Getenv("CLUSTER"), items...))
			},
			"until": until,
			// slow records a slow query of the name, on the first node.
			"slow": func(ts *testscript.TestScript, neg bool, args []string) {
				recordSlow(ts.Value("queries of 1").(*observe.Queries), args[0])
			},
			"status": wantStatus,
		},
	})
}

// clockAhead is the API of a cache whose clock is ahead, with one recent slow query by that clock.
func clockAhead(by time.Duration) http.Handler {
	now := func() time.Time { return time.Now().Add(by) }
	q := api.Query{ReceivedAt: now(), Client: api.Client{Addresses: []string{"10.244.9.5"}}, Name: "ahead.example.org.", Type: "A", Rcode: "SERVFAIL"}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		list := api.List[api.Query]{APIVersion: api.Version, Kind: "QueryList", Metadata: api.Metadata{Node: "node-9", GeneratedAt: now()}, Items: []api.Query{q}}
		since := r.URL.Query().Get("since")
		at, err := time.Parse(time.RFC3339Nano, since)
		if d, e := time.ParseDuration(since); e == nil {
			at, err = now().Add(-d), nil
		}
		if since != "" && err == nil && !q.ReceivedAt.After(at) {
			list.Items = []api.Query{}
		}
		_ = json.NewEncoder(w).Encode(list)
	})
}

func writePods(cluster string, items ...any) error {
	document, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "List", "items": append([]any{}, items...)})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(cluster, "pods.json"), document, 0o600)
}

// TestReadPods checks which pods are asked, and what is reported about the others.
func TestReadPods(t *testing.T) {
	deleted := fakePod("old", "node-1", "", "running")
	deleted["metadata"].(map[string]any)["deletionTimestamp"] = "2026-01-02T15:04:05Z"
	onlyOne := fakePod("leaving", "node-5", "", "running")
	onlyOne["metadata"].(map[string]any)["deletionTimestamp"] = "2026-01-02T15:04:05Z"
	pending := fakePod("pending", "node-3", "", "waiting")
	pending["status"].(map[string]any)["phase"] = "Pending"
	other := fakePod("other", "node-6", "", "running")
	other["spec"].(map[string]any)["containers"] = []any{map[string]any{"name": "coredns"}}
	document, err := json.Marshal(map[string]any{"items": []any{
		fakePod("surge", "node-2", "", "running"), deleted, fakePod("new", "node-1", "", "running"), fakePod("base", "node-2", "", "running"), pending,
		fakePod("loop", "node-4", "", "waiting"), onlyOne, other, fakePod("nowhere", "", "", "running"), fakePod("crashed", "node-2", "", "waiting"),
	}})
	if err != nil {
		t.Fatal(err)
	}
	targets, err := fleet.ReadPods(document, "node-cache")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for i := range targets {
		got = append(got, strings.TrimSpace(targets[i].Label()+": "+targets[i].Problem))
	}
	want := []string{
		"pod nowhere: it is on no node yet", "node-1:", "node-2 (base):", "node-2 (surge):", "node-3: its pod pending is Pending",
		"node-4: its pod loop does not run: CrashLoopBackOff", "node-5:", "node-6: its pod other has no container node-cache, but coredns: --container names it",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if targets[1].Pod != "new" || targets[1].Image != "registry.example.org/localcache:v1" {
		t.Errorf("got %+v, want the pod that stays", targets[1])
	}
}

// FuzzReadPods checks that each node occurs once, or with all of its usable pods, whatever kubectl prints.
func FuzzReadPods(f *testing.F) {
	document, err := json.Marshal(map[string]any{"items": []any{fakePod("a", "n", "", "running"), fakePod("b", "n", "", "waiting"), fakePod("c", "", "", "running")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(document)
	f.Add([]byte(`{"items":null}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		targets, err := fleet.ReadPods(document, "node-cache")
		if err != nil {
			return
		}
		for i := range targets {
			if targets[i].Node != "" && !targets[i].Alone && targets[i].Problem != "" {
				t.Errorf("%q: %+v cannot be asked and is not alone", document, targets[i])
			}
		}
	})
}

// TestFleetTerminal checks that a terminal shows progress after a second and clears it at the end, and that rows with
// problems are coloured unless NO_COLOR is set.
func TestFleetTerminal(t *testing.T) {
	dir := t.TempDir()
	goOn := filepath.Join(dir, "go-on")
	for name, content := range map[string]string{"kubectl": "#!/bin/sh\nexec \"$TEST_PROGRAM\" \"$@\"\n", "can-i": "yes", "exec/cache-1": "wait " + goOn, "exec/cache-2": "run " + filepath.Join(dir, "s")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	programs := filepath.SplitList(os.Getenv("PATH"))[0]
	if err := writePods(dir, fakePod("cache-1", "node-1", "", "running"), fakePod("cache-2", "node-2", "", "running")); err != nil {
		t.Fatal(err)
	}
	server := nodeServer(2)
	defer server.Close()
	k := server.ServeSocket(filepath.Join(dir, "s"), silent{})
	defer k.Close()
	for _, noColor := range []string{"", "1"} {
		cmd := exec.Command(filepath.Join(programs, "localcache"), "queries", "--all-nodes", "--timeout", "1m")
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "CLUSTER="+dir, "TEST_PROGRAM="+filepath.Join(programs, fakeKubectlName), "NO_COLOR="+noColor, "TERM=xterm")
		const far = "1 of 2 nodes have answered"
		got := onTerminal(t, cmd, func(shown string) {
			if strings.Contains(shown, far) {
				_ = os.WriteFile(goOn, nil, 0o600)
			}
		})
		if err := os.Remove(goOn); err != nil || !strings.Contains(got, far) || !strings.Contains(got, "\r\x1b[KAGE") {
			t.Errorf("%v, got %q: it does not say how far it is", err, got)
		}
		if !strings.Contains(got, "slow.example.org.") || !strings.Contains(got, "note: 1 of 2 nodes answered") {
			t.Errorf("got %q", got)
		}
		if coloured := strings.Contains(got, "\x1b[31m"); coloured != (noColor == "") {
			t.Errorf("NO_COLOR=%q: coloured is %v", noColor, coloured)
		}
	}
}

// onTerminal runs cmd with a terminal as its output and returns the output, and passes it to look meanwhile.
func onTerminal(t *testing.T, cmd *exec.Cmd, look func(shown string)) string {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("this machine gives no terminal: %v", err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("this machine gives no terminal: %v", err)
	}
	cmd.Stdout, cmd.Stderr = slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	var shown []byte
	for b := make([]byte, 4096); ; {
		n, err := master.Read(b)
		shown = append(shown, b[:n]...)
		look(string(shown))
		if err != nil {
			break // EIO when the other end is closed
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %q", err, shown)
	}
	return string(shown)
}

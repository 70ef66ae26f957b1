package podfeed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/kube/kubetest"
	"localcache.dev/localcache/internal/observe"
	podtable "localcache.dev/localcache/internal/pods"
)

const testNode = "n1"

// feedTest is a podFeed that runs against an API server, and statistics.
type feedTest struct {
	*Feed
	t       *testing.T
	api     *kubetest.Server
	dir     string // of token and CA
	queries *observe.Queries
	log     *feedLog
}

type feedLog struct {
	mu    sync.Mutex
	lines []string
}

func (l *feedLog) Infof(format string, v ...any)    { l.Add("INFO", format, v...) }
func (l *feedLog) Warningf(format string, v ...any) { l.Add("WARN", format, v...) }
func (l *feedLog) Add(level, format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, level+" "+fmt.Sprintf(format, v...))
}
func (l *feedLog) all() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

func newFeedTest(t *testing.T) *feedTest {
	f := &feedTest{t: t, api: kubetest.New(nil, "secret"), dir: t.TempDir(), queries: observe.NewQueries(observe.QueriesOptions{}), log: &feedLog{}}
	t.Cleanup(func() { f.api.Close() })
	token, ca, err := f.api.Mount(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	f.Feed = New(func(a netip.Addr, before time.Time) { f.queries.Forget(a, before) }, f.log)
	f.node = testNode
	f.cluster = func() (kube.Config, error) {
		return kube.Config{Server: f.api.Address, TokenFile: token, CAFile: ca}, nil
	}
	f.addrs = func() ([]netip.Addr, error) { return []netip.Addr{netip.MustParseAddr("169.254.25.10")}, nil }
	ctx, cancel := context.WithCancel(context.Background())
	var owned sync.WaitGroup
	owned.Go(func() { f.Run(ctx) })
	t.Cleanup(func() {
		cancel()
		owned.Wait()
		if t.Failed() {
			t.Logf("log:\n%s", f.log.all())
		}
	})
	return f
}

// pod is a pod of this node.
func (f *feedTest) pod(name, uid, ip string, more ...func(meta, spec, status kubetest.Object)) {
	meta := kubetest.Object{"namespace": "shop", "name": name, "uid": uid}
	spec := kubetest.Object{"nodeName": testNode}
	status := kubetest.Object{"phase": "Running", "startTime": time.Now().UTC().Format(time.RFC3339)}
	if ip != "" {
		status["podIPs"] = []kubetest.Object{{"ip": ip}}
	}
	for _, m := range more {
		m(meta, spec, status)
	}
	f.api.Set(kubetest.Pods, kubetest.Object{"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": spec, "status": status})
}

// ask records a query from an address.
func (f *feedTest) ask(ip string) {
	f.queries.Record(&observe.Query{
		Client: netip.AddrPortFrom(netip.MustParseAddr(ip), 4242), Name: []byte("\x03www\x07example\x00"), Type: 1, Received: time.Now().UnixNano(),
	})
}

// asked returns how many queries are counted for an address.
func (f *feedTest) asked(ip string) uint64 {
	v := f.queries.Snapshot(time.Now())
	for i := range v.Clients {
		if v.Clients[i].Client == ip {
			return v.Clients[i].Windows[observe.SinceStart].Queries()
		}
	}
	return 0
}

// wait waits until an address belongs to the pod of a UID; "" for none.
func (f *feedTest) wait(ip, uid string) podtable.Pod {
	f.t.Helper()
	var p podtable.Pod
	f.until(fmt.Sprintf("%s belongs to %q", ip, uid), func() error {
		known, reason := f.Table().Known()
		var found bool
		p, found = f.Table().Of(netip.MustParseAddr(ip))
		if !known || p.UID != uid || found != (uid != "") {
			return fmt.Errorf("known %t (%s), %+v", known, reason, p)
		}
		return nil
	})
	return p
}

// says waits until the remark contains all texts.
func (f *feedTest) says(known bool, texts ...string) {
	f.t.Helper()
	f.until(fmt.Sprintf("known is %t, with %q", known, texts), func() error {
		is, said := f.Table().Known()
		for _, text := range texts {
			if !strings.Contains(said, text) {
				return fmt.Errorf("known %t: %q", is, said)
			}
		}
		if is != known || len(texts) == 0 && said != "" {
			return fmt.Errorf("known %t: %q", is, said)
		}
		return nil
	})
}

func (f *feedTest) until(what string, try func() error) {
	f.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("it never came to be that %s: %v", what, err)
		}
	}
}

// TestPodFeed checks that pods can come, go and come back with the same name and address, and that none inherits.
func TestPodFeed(t *testing.T) {
	const web, other = "10.244.1.5", "10.244.1.6"
	f := newFeedTest(t)
	f.ask(web) // by the pod itself, before the API server is asked
	f.pod("web-0", "u1", web, func(meta, _, status kubetest.Object) {
		meta["ownerReferences"] = []kubetest.Object{{"kind": "StatefulSet", "name": "web", "controller": true}}
		status["startTime"] = time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	})
	f.pod("proxy", "u2", "192.0.2.10", func(_, spec, _ kubetest.Object) { spec["hostNetwork"] = true })
	f.api.Set(kubetest.Pods, kubetest.Object{"metadata": kubetest.Object{"namespace": "shop", "name": "far", "uid": "u9"},
		"spec": kubetest.Object{"nodeName": "n2"}, "status": kubetest.Object{"podIPs": []kubetest.Object{{"ip": other}}}})
	f.Want(true)
	if p := f.wait(web, "u1"); p.Namespace != "shop" || p.Name != "web-0" || p.WorkloadKind != "StatefulSet" || p.WorkloadName != "web" {
		t.Errorf("%+v", p)
	}
	f.says(true)
	f.wait(other, "") // of another node
	for _, ip := range []string{"192.0.2.10", "169.254.25.10"} {
		if p, ok := f.Table().Of(netip.MustParseAddr(ip)); !ok || !p.IsHost() {
			t.Errorf("%s is %+v", ip, p)
		}
	}
	if n := f.asked(web); n != 1 {
		t.Errorf("what the pod asked before it was known is %d queries", n)
	}
	if p, ok := f.Table().Named("shop", "web-0"); !ok || p.UID != "u1" {
		t.Errorf("by name: %+v", p)
	}

	// It ends, and its address is free before the object is gone.
	f.pod("web-0", "u1", web, func(_, _, status kubetest.Object) { status["phase"] = "Succeeded" })
	f.wait(web, "")
	if n := f.asked(web); n != 0 {
		t.Errorf("%d queries are left of the pod that has ended", n)
	}
	// The next one asks before its address is known here.
	f.api.Delete(kubetest.Pods, "shop", "web-0")
	f.pod("web-0", "u3", "")
	f.ask(web)
	f.pod("web-0", "u3", web)
	f.wait(web, "u3")
	if n := f.asked(web); n != 1 {
		t.Errorf("the next pod has %d queries, want its first one", n)
	}

	// The address moves in one step, because the server was away when the pod was deleted.
	f.api.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
		kubetest.Status(w, 500, "InternalError", "etcd is away")
		return true
	})
	f.api.Cut()
	f.says(true, "as the API server said at", "500 Internal Server Error: etcd is away")
	f.wait(web, "u3")
	f.ask(web)
	f.api.Delete(kubetest.Pods, "shop", "web-0")
	f.pod("api", "u4", web)
	f.api.Forget() // what happened meanwhile is not told: 410
	f.api.SetFault(nil)
	f.wait(web, "u4")
	f.says(true)
	if n := f.asked(web); n != 0 {
		t.Errorf("the pod that has the address now has %d queries of the one before", n)
	}
	if totals := f.queries.Totals(time.Now()); totals.Queries() != 3 {
		t.Errorf("%d queries altogether, want 3", totals.Queries())
	}
}

// TestPodFeedRotation checks that the known pods stay while token and server change.
func TestPodFeedRotation(t *testing.T) {
	f := newFeedTest(t)
	f.pod("web", "u1", "10.244.1.5")
	f.Want(true)
	f.wait("10.244.1.5", "u1")
	f.api.SetToken("another")
	f.api.Reset()
	f.says(true, "401 Unauthorized", "token")
	f.wait("10.244.1.5", "u1")
	if _, _, err := f.api.Mount(f.dir); err != nil {
		t.Fatal(err)
	}
	f.pod("web2", "u2", "10.244.1.6")
	f.wait("10.244.1.6", "u2")
	f.says(true)

	// Dead, and another one in its place that has forgotten all versions.
	address := f.api.Address
	f.api.Close()
	f.says(true, "as the API server said at", "connection refused")
	f.wait("10.244.1.6", "u2")
	var ln net.Listener
	f.until("the address is free", func() (err error) {
		ln, err = net.Listen("tcp", address)
		return err
	})
	f.api = kubetest.New(ln, "another")
	if _, _, err := f.api.Mount(f.dir); err != nil {
		t.Fatal(err)
	}
	for range 10 { // past the versions of the one before
		f.api.Forget()
	}
	f.pod("web3", "u3", "10.244.1.5")
	f.wait("10.244.1.5", "u3")
	f.wait("10.244.1.6", "")
	f.says(true)
}

// TestPodFeedOff: with 'pods off' the API server is left alone.
func TestPodFeedOff(t *testing.T) {
	f := newFeedTest(t)
	f.pod("web", "u1", "10.244.1.5")
	if known, reason := f.Table().Known(); known || reason == "" {
		t.Errorf("known %t, %q", known, reason)
	}
	f.Want(false)
	f.Want(true)
	f.wait("10.244.1.5", "u1")
	f.Want(true) // a reload
	f.wait("10.244.1.5", "u1")
	lists := 0
	for _, r := range f.api.Requests() {
		if !r.Watch {
			lists++
		}
	}
	if lists != 1 {
		t.Errorf("%d lists, want 1", lists)
	}
	f.Want(false)
	f.says(false, "not asked for")
	before := len(f.api.Requests())
	f.api.Reset() // a watch that goes on would come back
	f.pod("web", "u1", "10.244.1.6")
	f.Want(true)
	f.wait("10.244.1.6", "u1")
	if got := f.api.Requests()[before:]; len(got) < 1 || got[0].Watch {
		t.Errorf("afterwards came %+v, want a list first", got)
	}
}

// TestPodFeedForbidden checks that the missing right is named, with the component that grants it.
func TestPodFeedForbidden(t *testing.T) {
	f := newFeedTest(t)
	f.api.SetFault(func(w http.ResponseWriter, _ *http.Request) bool {
		kubetest.Status(w, 403, "Forbidden", `pods is forbidden: User "x" cannot list resource "pods"`)
		return true
	})
	f.Want(true)
	f.says(false, "403 Forbidden", `User "x" cannot list`, "a ClusterRole and a ClusterRoleBinding must allow", "[list, watch] on resources [pods]", "; deploy/components/pods has them")
}

// TestPodFeedUnanswered: a server that says nothing is named.
func TestPodFeedUnanswered(t *testing.T) {
	f := newFeedTest(t)
	release := make(chan struct{})
	f.api.SetFault(func(http.ResponseWriter, *http.Request) bool { <-release; return false })
	t.Cleanup(func() { close(release) })
	f.Want(true)
	f.says(false, "the API server at "+f.api.Address+" has not answered yet")
}

// TestPodFeedWithoutAccess checks that clients are shown by address, with the reason and what to do.
func TestPodFeedWithoutAccess(t *testing.T) {
	for _, c := range []struct {
		name    string
		prepare func(*feedTest)
		texts   []string
	}{
		{"no cluster", func(f *feedTest) {
			f.cluster = func() (kube.Config, error) { return kube.InCluster(func(string) string { return "" }) }
		}, []string{"not in a pod of a cluster", "KUBERNETES_SERVICE_HOST"}},
		{"no node", func(f *feedTest) { f.node = "" }, []string{"NODE_NAME is not set", "spec.nodeName"}},
		{"no token", func(f *feedTest) {
			if err := os.Remove(filepath.Join(f.dir, "token")); err != nil {
				f.t.Fatal(err)
			}
		}, []string{"token: no such file", "automountServiceAccountToken: true", "deploy/components/pods adds it"}},
		{"something else", func(f *feedTest) {
			f.cluster = func() (kube.Config, error) { return kube.Config{}, errors.New("nothing works") }
		}, []string{"nothing works"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFeedTest(t)
			c.prepare(f)
			f.ask("10.244.1.5")
			f.Want(true)
			f.says(false, c.texts...)
			if n := f.asked("10.244.1.5"); n != 1 {
				t.Errorf("%d queries are counted", n)
			}
			if n := strings.Count(f.log.all(), "clients are shown by IP address: "); n != 1 {
				t.Errorf("it is logged %d times", n)
			}
			f.Want(false)
			f.says(false, "not asked for")
			if n := len(f.api.Requests()); n != 0 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestInterfaceAddrs: the node's own addresses are found.
func TestInterfaceAddrs(t *testing.T) {
	addrs, err := interfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if a.IsLoopback() {
			return
		}
	}
	t.Errorf("no loopback address among %v", addrs)
}

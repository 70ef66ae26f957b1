package netns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
	"localcache.dev/localcache/internal/lab"
)

// accountDir is where the kubelet mounts a pod's token. /var/run points to /run, which is the test's own.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// startAPI plays the API server on the node, with a service account for the program.
func startAPI(t *testing.T, l *lab.Lab, addr netip.AddrPort) *kubetest.Server {
	t.Helper()
	if dir, err := filepath.EvalSymlinks("/var/run"); err != nil || dir != "/run" {
		t.Fatalf("/var/run is %s (%v) and not /run: the test would write to the machine's own files", dir, err)
	}
	ln, err := l.Node.ListenTCP(addr)
	if err != nil {
		t.Fatal(err)
	}
	api := kubetest.New(ln, "secret")
	t.Cleanup(api.Close)
	if err := os.MkdirAll(accountDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := api.Mount(accountDir); err != nil {
		t.Fatal(err)
	}
	return api
}

// setEndpoints makes replicas the ready endpoints of kube-dns.
func setEndpoints(api *kubetest.Server, replicas ...netip.Addr) {
	var addrs []string
	for _, a := range replicas {
		addrs = append(addrs, a.String())
	}
	api.Set(kubetest.Slices, kubetest.Slice("kube-system", "kube-dns", "kube-dns-x2b4n", kubetest.Ready(addrs...)...))
}

// TestFallbackFollows makes the fallback follow the endpoints of a Service: the last known ones answer while
// localcache is dead, changes lose no query, and an API server that is gone removes nothing, neither from the
// process, nor at a reload, nor from the next process.
func TestFallbackFollows(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := lab.Start(t, lab.Config{})
		replicas, _ := l.Endpoints()
		first, second := l.KubeDNS[0], l.KubeDNS[1]
		at := netip.MustParseAddrPort("127.0.0.1:6443")
		api := startAPI(t, l, at)
		setEndpoints(api, replicas[0])
		o := serveOptions{Backend: backend, Env: []string{
			"KUBE_DNS_ENDPOINTS=kube-system/kube-dns",
			"KUBERNETES_SERVICE_HOST=127.0.0.1", fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", at.Port()),
		}}
		const service = `service="kube-system/kube-dns"`
		follows := func(d *daemon, replica netip.Addr) {
			t.Helper()
			d.waitLogged("fallback: "+replica.String()+":53$", startTimeout)
			d.waitMetric("coredns_setup_fallback_servers", "", 1, startTimeout)
			d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)
		}
		type window struct{ killed, dead time.Time }
		var windows []window
		// restarted starts the next process, which knows what the previous one learned, and waits for the API server.
		restarted := func() *daemon {
			t.Helper()
			d := start(t, l, o)
			d.waitLogged("the fallback stays what an earlier process made it", startTimeout)
			d.waitMetric("coredns_setup_fallback_connected", service, 1, startTimeout)
			d.waitMetric("coredns_setup_fallback_servers", "", 1, startTimeout)
			return d
		}
		// dead has queries go on while localcache is dead, and wants one replica to get them.
		dead := func(ld *load, d *daemon, phase string, by, notBy *lab.Server) {
			t.Helper()
			w := window{}
			w.killed, w.dead = d.kill()
			windows = append(windows, w)
			ld.enter(phase)
			ld.more(500 * time.Millisecond)
			// A source port that is reused within the life of its conntrack entry reaches the same server again,
			// which happens to a few in a hundred.
			asked, other := by.Record.AskedBelow(zone(phase), lab.UDP), notBy.Record.AskedBelow(zone(phase), lab.UDP)
			if asked == 0 || other > asked/10 {
				t.Errorf("%s: %d queries went to the endpoint, %d to the other replica", phase, asked, other)
			}
		}

		d := start(t, l, o)
		follows(d, replicas[0])
		d.waitMetric("coredns_setup_fallback_connected", service, 1, startTimeout)
		// Fresh sockets, because a flow that the kernel has sent to a replica stays with it for up to two minutes.
		ld := startLoad(t, l, lab.Stream{QPS: 300, Fresh: true}, lab.Stream{QPS: 300, Fresh: true})
		ld.more(200 * time.Millisecond)
		dead(ld, d, "first", first, second)

		// The endpoint changes while queries come.
		d = restarted()
		changed := time.Now()
		setEndpoints(api, replicas[1])
		follows(d, replicas[1])
		t.Logf("the rules followed %v after the endpoint changed", time.Since(changed).Round(time.Millisecond))
		dead(ld, d, "second", second, first)

		// The API server is gone.
		d = restarted()
		api.Close()
		d.waitMetric("coredns_setup_fallback_connected", service, 0, startTimeout)
		d.usr1()
		d.waitLogged("Reloading complete", startTimeout)
		d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)
		d.waitMetric("coredns_setup_fallback_servers", "", 1, startTimeout)
		dead(ld, d, "gone", second, first)

		d = start(t, l, o)
		d.waitLogged("the fallback stays what an earlier process made it", startTimeout)
		d.waitLogged("nothing is known yet, trying again", startTimeout)
		dead(ld, d, "booted", second, first)

		// Kube-dns scaled to nothing keeps the last.
		api = startAPI(t, l, at)
		setEndpoints(api)
		d = restarted()
		setEndpoints(api, replicas[0])
		follows(d, replicas[0])
		setEndpoints(api)
		d.waitMetric("coredns_setup_fallback_kept", service, 1, startTimeout)
		d.waitMetric("coredns_setup_fallback_servers", "", 1, startTimeout)
		dead(ld, d, "scaled", first, second)

		d = start(t, l, o)
		ld.enter("back")
		ld.more(200 * time.Millisecond)
		all := ld.stop()
		for i, ss := range all {
			// Queries in the sockets of a process when it dies are lost with it; nothing else is.
			from := time.Time{}
			for _, w := range windows {
				wantNoneLost(t, fmt.Sprintf("stream %d until a kill", i), ss.SentAfter(from).SentBefore(w.killed.Add(-settle)))
				from = w.dead
			}
			wantNoneLost(t, fmt.Sprintf("stream %d at last", i), ss.SentAfter(from))
		}
		if !d.alive() {
			t.Error("localcache has ended")
		}
	})
}

// TestFallbackWithoutAPI starts while the API server is missing, as when a node boots: DNS does not wait for it, and
// the plain addresses are the fallback until it answers.
func TestFallbackWithoutAPI(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	replicas, _ := l.Endpoints()
	at := netip.MustParseAddrPort("127.0.0.1:6443")
	o := serveOptions{Env: []string{
		fmt.Sprintf("KUBE_DNS_ENDPOINTS=kube-system/kube-dns %s", replicas[1]),
		"KUBERNETES_SERVICE_HOST=127.0.0.1", fmt.Sprintf("KUBERNETES_SERVICE_PORT=%d", at.Port()),
	}}
	if err := os.RemoveAll(accountDir); err != nil {
		t.Fatal(err)
	}
	d := start(t, l, o)
	d.waitLogged("until the API server at 127.0.0.1:6443 has answered, it is "+replicas[1].String()+":53", startTimeout)
	d.waitLogged("the pod's service account: open .*nothing is known yet, trying again", startTimeout)
	d.waitMetric("coredns_setup_fallback_servers", "", 1, startTimeout)
	d.waitMetric("coredns_setup_fallback_last_sync_timestamp_seconds", `service="kube-system/kube-dns"`, 0, startTimeout)

	api := startAPI(t, l, at)
	setEndpoints(api, replicas[0])
	d.waitLogged("fallback: "+replicas[0].String()+":53$", startTimeout)
	if v := d.metric("coredns_setup_fallback_watch_errors_total", `service="kube-system/kube-dns"`); v == 0 {
		t.Error("the attempts that failed are not counted")
	}
}

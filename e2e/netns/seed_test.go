package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// nodelocaldnsCorefile is what kubespray and its kin give to nodelocaldns, with the Service's address
// filled in.
const nodelocaldnsCorefile = `cluster.local:53 {
    errors
    cache {
        success 9984 30
        denial 9984 5
    }
    reload
    loop
    bind 169.254.25.10
    forward . 10.233.0.3 {
        force_tcp
    }
    prometheus :9253
    health 169.254.25.10:9254
}
in-addr.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.25.10
    forward . 10.233.0.3 {
        force_tcp
    }
    prometheus :9253
}
ip6.arpa:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.25.10
    forward . 10.233.0.3 {
        force_tcp
    }
    prometheus :9253
}
.:53 {
    errors
    cache 30
    reload
    loop
    bind 169.254.25.10
    forward . /etc/resolv.conf
    prometheus :9253
}
`

// launch runs a command line unchanged and does not wait for anything. The result can do what start's daemons can.
func launch(t *testing.T, l *lab.Lab, cmd *exec.Cmd, env ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, lab: l, output: &output{}, server: localIP, metrics: "http://127.0.0.1:9353/metrics"}
	d.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DialContext: l.Node.Dial, DisableKeepAlives: true},
	}
	cmd.Env = append(cmd.Environ(), env...)
	cmd.Stdout, cmd.Stderr = d.output, d.output
	var err error
	if d.program, err = l.Node.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.finish)
	return d
}

// get fetches a page from the node.
func (d *daemon) get(url string) (string, error) {
	resp, err := d.client.Get(url)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	return string(body), err
}

// sum adds up a metric over all of its labels; seen is false if there is none.
func sum(page, name string) (total float64, seen bool) {
	for line := range strings.Lines(page) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || rest[0] != '{' && rest[0] != ' ' {
			continue
		}
		value := rest[strings.LastIndexByte(strings.TrimSpace(rest), ' ')+1:]
		if v, err := strconv.ParseFloat(strings.TrimSpace(value), 64); err == nil {
			total, seen = total+v, true
		}
	}
	return total, seen
}

// addressesOn lists the addresses of a link of the node.
func addressesOn(t *testing.T, l *lab.Lab, link string) (addrs []string) {
	t.Helper()
	err := l.Node.Do(func() error {
		ifi, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		nets, err := ifi.Addrs()
		for _, n := range nets {
			addrs = append(addrs, n.String())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// TestNodelocaldnsUnchanged checks that the command line and the Corefile of nodelocaldns work as they did there, and
// that the end leaves the node as it was.
func TestNodelocaldnsUnchanged(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	before := nodeState(t, l)
	conf := l.Path("Corefile")
	if err := os.WriteFile(conf, []byte(nodelocaldnsCorefile), 0o644); err != nil {
		t.Fatal(err)
	}
	// The variable of a Service by this name is not there, and nothing in this Corefile needs it.
	d := launch(t, l, exec.Command(os.Getenv(envBinary), "-localip", "169.254.25.10", "-conf", conf, "-upstreamsvc", "coredns"))
	d.waitLogged(`rules are in place with `, startTimeout)
	d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)
	d.waitAnswers(startTimeout)

	if addrs := addressesOn(t, l, "nodelocaldns"); !slices.Contains(addrs, "169.254.25.10/32") {
		t.Errorf("interface nodelocaldns has %v", addrs)
	}
	for _, q := range []question{
		{"db.default.svc.cluster.local.", dns.TypeA, dns.RcodeSuccess, 3},
		{"34.12.233.10.in-addr.arpa.", dns.TypePTR, dns.RcodeSuccess, 1},
		{reverse("fd00:10:233::1234"), dns.TypePTR, dns.RcodeSuccess, 1},
		{"www.example.org.", dns.TypeA, dns.RcodeSuccess, 1},
		{"absent.example.org.", dns.TypeA, dns.RcodeNameError, 0},
	} {
		for _, transport := range []lab.Transport{lab.UDP, lab.TCP} {
			if m := exchange(t, l, transport, localIP, q, true); m.Rcode != q.rcode || len(m.Answer) != q.answers {
				t.Errorf("%s over %s: %v", q.name, transport, m)
			}
		}
	}
	if udp, tcp := l.KubeDNSTotal(lab.UDP), l.KubeDNSTotal(lab.TCP); udp != 0 || tcp == 0 {
		t.Errorf("kube-dns was asked %d times over UDP and %d times over TCP", udp, tcp)
	}

	if body, err := d.get("http://169.254.25.10:9254/health"); err != nil || body != "OK" {
		t.Errorf("health: %q, %v", body, err)
	}
	page, err := d.get("http://127.0.0.1:9253/metrics")
	if err != nil {
		t.Fatal(err)
	}
	for name, least := range map[string]float64{
		"coredns_dns_requests_total":                   11,
		"coredns_dns_responses_total":                  11,
		"coredns_cache_requests_total":                 11,
		"coredns_cache_hits_total":                     5,
		"coredns_cache_misses_total":                   5,
		"coredns_cache_entries":                        5,
		"coredns_forward_max_concurrent_rejects_total": 0,
		"coredns_build_info":                           1,
		"coredns_panics_total":                         0,
	} {
		if v, seen := sum(page, name); !seen || v < least {
			t.Errorf("metric %s is %v (there: %v), want at least %v", name, v, seen, least)
		}
	}
	for _, kind := range []string{"iptables", "iptables_lock", "interface_add", "interface_check", "configmap"} {
		if v := d.metric("coredns_nodecache_setup_errors_total", fmt.Sprintf("errortype=%q", kind)); v != 0 {
			t.Errorf("%v errors of type %s", v, kind)
		}
	}
	healthUntracked(t, d)

	d.terminate()
	if after := nodeState(t, l); after != before {
		t.Errorf("the node is not what it was before:\n%s", changed(before, after))
	}
}

// healthUntracked: the kubelet's probes from the node leave no entries in the connection tracking table,
// as connections to another port of the same address do.
func healthUntracked(t *testing.T, d *daemon) {
	t.Helper()
	count := func(port uint16) (n int) {
		flows, err := d.lab.Node.Conntrack(localIP)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range flows {
			if f.To.Port() == port {
				n++
			}
		}
		return n
	}
	const probes = 10
	for range probes {
		for _, url := range []string{"http://169.254.25.10:9254/health", "http://169.254.25.10:9253/metrics"} {
			if _, err := d.get(url); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := count(9254); n != 0 {
		t.Errorf("%d probes of health left %d entries", probes, n)
	}
	if n := count(9253); n < probes/2 {
		t.Errorf("%d connections to another port left %d entries: this test would not see those of health", probes, n)
	}
}

// TestCorefileExample checks that the shipped Corefile becomes ready and answers from memory while its upstreams are
// silent or gone.
func TestCorefileExample(t *testing.T) {
	t.Parallel() // it waits for answers to expire
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{})
	for _, url := range []string{"http://169.254.25.10:9255/ready", "http://169.254.25.10:9254/health", "http://127.0.0.1:9253/metrics"} {
		if _, err := d.get(url); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	if v := d.metric("coredns_setup_fallback_servers", ""); v != 2 {
		t.Errorf("coredns_setup_fallback_servers is %v, want the two kube-dns replicas", v)
	}

	const (
		inside  = "db.default.svc.cluster.local." // TTL 5 s
		outside = "short.example.org."            // TTL 2 s, cached for CoreDNS's least of 5 s
	)
	ask := func(name string, within time.Duration) (*dns.Msg, time.Duration) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		m, took, err := l.Pods[0].Ask(ctx, lab.UDP, localIP, name, dns.TypeA)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
			t.Fatalf("%s: %v", name, m)
		}
		return m, took
	}
	ask(inside, startTimeout)
	ask(outside, startTimeout)
	expired := time.Now().Add(5*time.Second + 200*time.Millisecond)

	for _, s := range l.KubeDNS {
		if err := s.Break(lab.Fault{Drop: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Upstream.Break(lab.Fault{Refuse: true}); err != nil {
		t.Fatal(err)
	}
	l.ResetRecords()
	time.Sleep(time.Until(expired))
	const most = 2500 * time.Millisecond
	for _, name := range []string{inside, outside} {
		m, took := ask(name, startTimeout)
		if ttl := m.Answer[0].Header().Ttl; ttl != 30 {
			t.Errorf("%s: the stale answer has TTL %d, want 30", name, ttl)
		}
		// It is due after 1 s at the latest. A client that gets none asks again after 5 s.
		if took > most {
			t.Errorf("%s: the stale answer took %v, want at most %v", name, took, most)
		}
		// The next one does not wait for the upstream that has just been silent.
		if _, took := ask(name, startTimeout); took > 500*time.Millisecond {
			t.Errorf("%s: the second stale answer took %v", name, took)
		}
	}
	if l.KubeDNSAsked(inside, "") == 0 {
		t.Error("kube-dns was not asked before the stale answer was given: it had not expired, and this test shows nothing")
	}
}

package netns

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// startTimeout bounds a start, and any other wait for something that takes well below a second on an idle machine.
const startTimeout = 30 * time.Second

// The backends of packet rules, by their names in the program.
const (
	nftables       = "nftables"
	iptablesNFT    = "iptables-nft"
	iptablesLegacy = "iptables-legacy"
)

// serveOptions say how the program is started. The zero value is the shipped Corefile with the lab's kube-dns
// replicas as its fallback.
type serveOptions struct {
	Corefile string   // its content; localcache.CorefileExample where empty
	LocalIP  string   // of -localip; lab.LocalIP where empty
	Args     []string // after the usual ones, so that they win
	Env      []string // after the usual ones, so that they win
	Metrics  string   // -metrics-listen-address, to distinguish processes; port 9353 of the node if empty
	// Backend is the front end for packet rules that the node shall look to be using; where empty it is
	// the lab's own, nftables.
	Backend string
	NoWait  bool // return as soon as the process runs
}

// daemon is the program on the node of a lab.
type daemon struct {
	t       *testing.T
	lab     *lab.Lab
	program *lab.Program
	output  *output
	server  netip.Addr // the first local address
	metrics string     // URL
	client  *http.Client
}

// start runs the program on the lab's node and waits until it answers and its rules are in place. At
// the end of the test it is killed, if it is still there, and its output is shown if the test failed.
func start(t *testing.T, l *lab.Lab, o serveOptions) *daemon {
	t.Helper()
	if o.Corefile == "" {
		o.Corefile = string(localcache.CorefileExample)
	}
	if o.LocalIP == "" {
		o.LocalIP = lab.LocalIP
	}
	if o.Backend != "" {
		o.Corefile = useBackend(t, l, o.Backend, o.Corefile)
	}
	path := l.Path("Corefile")
	// A process that runs already, and watches the file, must not read half of it.
	if there, err := os.ReadFile(path); err != nil || string(there) != o.Corefile {
		if err := os.WriteFile(path, []byte(o.Corefile), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first, _, _ := strings.Cut(o.LocalIP, ",")
	d := &daemon{t: t, lab: l, output: &output{}, server: netip.MustParseAddr(first)}
	args := []string{"-localip", o.LocalIP, "-conf", path, "-upstreamsvc", "kube-dns"}
	d.metrics = "http://127.0.0.1:9353/metrics"
	if o.Metrics != "" {
		args = append(args, "-metrics-listen-address", o.Metrics)
		d.metrics = "http://" + o.Metrics + "/metrics"
	}
	d.client = &http.Client{
		Timeout:   10 * time.Second,
		Transport: &http.Transport{DialContext: l.Node.Dial, DisableKeepAlives: true},
	}
	cmd := exec.Command(os.Getenv(envBinary), append(args, o.Args...)...)
	v4, v6 := l.Endpoints()
	endpoints := v4
	if strings.Contains(o.LocalIP, ":") {
		endpoints = slices.Concat(v4, v6)
	}
	cmd.Env = append(os.Environ(), "KUBE_DNS_SERVICE_HOST="+l.Service.String(), "KUBE_DNS_ENDPOINTS="+joinAddrs(endpoints))
	cmd.Env = append(cmd.Env, o.Env...)
	cmd.Stdout, cmd.Stderr = d.output, d.output
	var err error
	if d.program, err = l.Node.Start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.finish)
	if o.NoWait {
		return d
	}
	d.waitLogged(`rules are in place with `, startTimeout)
	if o.Backend != "" && d.logged(`rules are in place with `+regexp.QuoteMeta(o.Backend)+` `) == 0 {
		t.Fatalf("the node looks like one with %s, and another front end was chosen:\n%s", o.Backend, d.output)
	}
	d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)
	d.waitAnswers(startTimeout)
	return d
}

func joinAddrs(addrs []netip.Addr) string {
	var s []string
	for _, a := range addrs {
		s = append(s, a.String())
	}
	return strings.Join(s, " ")
}

// in returns d for a subtest, so that failures belong to the subtest.
func (d *daemon) in(t *testing.T) *daemon {
	c := *d
	c.t = t
	return &c
}

// finish kills the process if it still runs, and checks the log for text that no log may contain.
func (d *daemon) finish() {
	if err := d.program.Kill(); err != nil {
		d.t.Error(err)
	}
	<-d.program.Done()
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:", "Recovered from panic"} {
		if strings.Contains(d.output.String(), bad) {
			d.t.Errorf("localcache said %q", bad)
		}
	}
	if d.t.Failed() {
		d.t.Logf("localcache (pid %d) said:\n%s", d.program.PID(), d.output)
	}
}

// kill ends the process by SIGKILL and waits until it is gone. Before the first of the returned times
// it was alive, after the second it is dead.
func (d *daemon) kill() (killed, dead time.Time) {
	d.t.Helper()
	killed = time.Now()
	if err := d.program.Kill(); err != nil {
		d.t.Fatal(err)
	}
	<-d.program.Done()
	return killed, time.Now()
}

// terminate ends the process by SIGTERM, waits for its end, and expects status 0. It returns how long that took.
func (d *daemon) terminate() time.Duration {
	d.t.Helper()
	began := time.Now()
	if err := d.program.Signal(syscall.SIGTERM); err != nil {
		d.t.Fatal(err)
	}
	d.waitEnd()
	return time.Since(began)
}

// waitEnd waits for the end of a process that was asked to end, and expects status 0.
func (d *daemon) waitEnd() {
	d.t.Helper()
	select {
	case <-d.program.Done():
	case <-time.After(startTimeout):
		d.t.Fatalf("localcache has not ended within %v", startTimeout)
	}
	if err := d.program.Wait(); err != nil {
		d.t.Fatalf("localcache ended with %v", err)
	}
}

// alive reports whether the process runs.
func (d *daemon) alive() bool {
	select {
	case <-d.program.Done():
		return false
	default:
		return true
	}
}

// waitAnswers waits until a pod gets an answer over the first local address.
func (d *daemon) waitAnswers(within time.Duration) {
	d.t.Helper()
	d.until(within, "localcache answers", func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		m, _, err := d.lab.Pods[0].Ask(ctx, lab.UDP, d.server, "web.default.svc.cluster.local.", dns.TypeA)
		if err == nil && m.Rcode != dns.RcodeSuccess {
			err = fmt.Errorf("rcode %s", dns.RcodeToString[m.Rcode])
		}
		return err
	})
}

// until repeats f until it returns no error, and fails the test if the process ends or it takes too long.
func (d *daemon) until(within time.Duration, what string, f func() error) {
	d.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if !d.alive() {
			d.t.Fatalf("waiting until %s: localcache has ended (%v): %v", what, d.program.Wait(), err)
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("waiting until %s: not within %v: %v", what, within, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// logged counts the lines of the log that match the pattern.
func (d *daemon) logged(pattern string) int {
	return len(d.loggedLines(pattern))
}

func (d *daemon) loggedLines(pattern string) []string {
	re := regexp.MustCompile(pattern)
	return slices.DeleteFunc(strings.Split(d.output.String(), "\n"), func(line string) bool { return !re.MatchString(line) })
}

// waitLogged waits for a line of the log that matches the pattern.
func (d *daemon) waitLogged(pattern string, within time.Duration) {
	d.t.Helper()
	d.until(within, "it logs "+pattern, func() error {
		if d.logged(pattern) == 0 {
			return fmt.Errorf("no such line yet")
		}
		return nil
	})
}

// metric returns the value of a metric with the labels as they are exposed, such as `kind="rules"`; the test fails if
// there is none.
func (d *daemon) metric(name, labels string) float64 {
	d.t.Helper()
	v, err := d.readMetric(name, labels)
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

func (d *daemon) readMetric(name, labels string) (float64, error) {
	if labels != "" {
		name += "{" + labels + "}"
	}
	resp, err := d.client.Get(d.metrics)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(rest), 64)
		}
	}
	return 0, fmt.Errorf("%s has no metric %s", d.metrics, name)
}

// waitMetric waits until a metric has a value.
func (d *daemon) waitMetric(name, labels string, want float64, within time.Duration) {
	d.t.Helper()
	d.until(within, fmt.Sprintf("%s{%s} is %v", name, labels, want), func() error {
		v, err := d.readMetric(name, labels)
		if err == nil && v != want {
			err = fmt.Errorf("it is %v", v)
		}
		return err
	})
}

// output collects what a process writes. It is safe for concurrent use.
type output struct {
	mu  sync.Mutex
	buf []byte
}

// maxOutput is more than the program writes in any test.
const maxOutput = 4 << 20

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.buf)+len(p) > maxOutput {
		return 0, fmt.Errorf("localcache writes more than %d bytes: %w", maxOutput, syscall.EFBIG)
	}
	o.buf = append(o.buf, p...)
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.buf)
}

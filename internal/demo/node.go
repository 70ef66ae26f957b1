package demo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/lab"
)

// Endpoints of the example's localcache.
const (
	readyURL   = "http://" + lab.LocalIP + ":9255/ready"
	metricsURL = "http://127.0.0.1:9353/metrics"
)

// startTimeout bounds a start. It takes well below a second; a busy machine may need some.
const startTimeout = 30 * time.Second

// servedNode is the lab's node with localcache on it.
type servedNode struct {
	lab     *lab.Lab
	path    string // of the program localcache
	args    []string
	env     []string
	client  *http.Client // from the node
	log     *logTail
	program *lab.Program
}

func newServedNode(l *lab.Lab, path string) (*servedNode, error) {
	corefile := l.Path("Corefile.example")
	if err := os.WriteFile(corefile, localcache.CorefileExample, 0o644); err != nil {
		return nil, err
	}
	endpoints, _ := l.Endpoints()
	n := &servedNode{
		lab:  l,
		path: path,
		args: []string{"serve", "-localip", lab.LocalIP, "-conf", corefile, "-upstreamsvc", "kube-dns"},
		// The kubelet sets the first for every pod of the Service's namespace.
		env: []string{
			"KUBE_DNS_SERVICE_HOST=" + l.Service.String(), "KUBE_DNS_ENDPOINTS=" + joinAddrs(endpoints),
			cli.SocketVariable + "=" + api.DefaultSocket, // in the private /run
		},
		log: &logTail{},
	}
	n.client = &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DialContext: l.Node.Dial, DisableKeepAlives: true},
	}
	return n, nil
}

func joinAddrs(addrs []netip.Addr) string {
	texts := make([]string, len(addrs))
	for i, a := range addrs {
		texts[i] = a.String()
	}
	return strings.Join(texts, " ")
}

// commandLine returns the command that start runs, as a user would type it.
func (n *servedNode) commandLine() string {
	return "localcache -localip " + lab.LocalIP + " -conf Corefile.example -upstreamsvc kube-dns"
}

// start starts localcache on the node and waits until it is ready and its rules are in place.
func (n *servedNode) start(ctx context.Context) (time.Duration, error) {
	cmd := exec.Command(n.path, n.args...)
	cmd.Env = append(os.Environ(), n.env...)
	cmd.Stdout, cmd.Stderr = n.log, n.log
	began := time.Now()
	var err error
	if n.program, err = n.lab.Node.Start(cmd); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		notReady := n.ready(ctx)
		if notReady == nil {
			return time.Since(began), nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("localcache is not ready after %v: %w", startTimeout, notReady)
		case <-n.program.Done():
			return 0, fmt.Errorf("localcache ended while it started: %w", n.failure())
		case <-tick.C:
		}
	}
}

// ready asks whether localcache serves and the packet rules are in place.
func (n *servedNode) ready(ctx context.Context) error {
	// A connection attempt before the address exists gets no reply, and the kernel would repeat it only a second
	// later.
	ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if _, err := n.get(ctx, readyURL); err != nil {
		return err
	}
	m, err := n.metrics(ctx)
	if err != nil {
		return err
	}
	if m["coredns_setup_rules_in_place"] != 1 {
		return errors.New("the packet rules are not in place")
	}
	return nil
}

func (n *servedNode) get(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := n.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s %s", url, resp.Status, strings.TrimSpace(body.String()))
	}
	return body.Bytes(), nil
}

// metrics returns localcache's own metrics: name with labels, as exposed, to value.
func (n *servedNode) metrics(ctx context.Context) (map[string]float64, error) {
	body, err := n.get(ctx, metricsURL)
	if err != nil {
		return nil, err
	}
	m := map[string]float64{}
	for line := range strings.Lines(string(body)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || name == "#" {
			continue
		}
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			m[name] = v
		}
	}
	return m, nil
}

// rules says which packet filter is in use, and why, if the log tells.
func (n *servedNode) rules(m map[string]float64) string {
	const said = "rules are in place with "
	lines := bufio.NewScanner(strings.NewReader(n.log.tail()))
	for lines.Scan() {
		if _, what, ok := strings.Cut(lines.Text(), said); ok {
			return what
		}
	}
	for name, v := range m {
		if backend, ok := strings.CutPrefix(name, `coredns_setup_backend_info{backend="`); ok && v == 1 {
			return strings.TrimSuffix(backend, `"}`)
		}
	}
	return "unknown"
}

// failure returns how localcache ended, always as an error.
func (n *servedNode) failure() error {
	if err := n.program.Wait(); err != nil {
		return err
	}
	return errors.New("with status 0")
}

// dialTimeout bounds single queries of the demo.
const dialTimeout = 5 * time.Second

// logTail keeps the end of localcache's log. It is safe for concurrent use.
type logTail struct {
	mu  sync.Mutex
	buf []byte
}

// logTailSize is some hundred lines.
const logTailSize = 32 << 10

func (l *logTail) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - logTailSize; over > 0 {
		l.buf = append(l.buf[:0], l.buf[over:]...)
	}
	return len(p), nil
}

func (l *logTail) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

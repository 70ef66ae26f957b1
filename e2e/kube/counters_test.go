package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// The two caches that are counted side by side: every fault strikes both.
const (
	ours  = "localcache"
	plain = "plain CoreDNS"
)

// plainAddress is the address of the plain CoreDNS.
const plainAddress = "169.254.25.11"

// count holds probe/record.go's counts of one way of asking and one class of names.
type count struct {
	Way, Names                   string
	Queries, Unanswered, Stalled int
	Errors, Again                int
	UnansweredAt                 []int64
	Gap                          int64
}

// counter is a counting pod.
type counter struct {
	node, address string
}

// startCounters starts the plain CoreDNS, and a counter for either cache on each node.
func (l *lab) startCounters(ctx context.Context, t *testing.T) map[string][]counter {
	t.Helper()
	for _, n := range l.Nodes {
		for _, args := range [][]string{
			// The kind of link that carries the address makes no difference; machines without dummy have bridges.
			{"link", "add", "plain", "type", "bridge"},
			{"addr", "add", plainAddress + "/32", "dev", "plain"},
			{"link", "set", "plain", "up"},
		} {
			_, err := n.Run(ctx, "ip", args...)
			must(t, err)
		}
	}
	must(t, l.setCorefile(ctx, "plain", l.plainCorefile(t)))
	l.apply(ctx, t, "counters.yaml")
	must(t, l.Rolled(ctx, "daemonset/plain"))
	l.awaitReady(ctx, t, "tests=counter", 2*len(l.Nodes))
	counters := make(map[string][]counter)
	for cache, app := range map[string]string{ours: "counter", plain: "counter-plain"} {
		pods, err := l.Pods(ctx, "default", "app="+app)
		must(t, err)
		for _, p := range pods {
			counters[cache] = append(counters[cache], counter{node: p.Node, address: p.IP})
		}
	}
	return counters
}

// corefile is the one that localcache is deployed with.
func (l *lab) corefile(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(l.folder, "deploy/base/Corefile"))
	must(t, err)
	return string(content)
}

var setupBlock = regexp.MustCompile(`(?ms)^    setup \{.*?^    \}\n`)

// plainCorefile is the same for stock CoreDNS at its own address.
func (l *lab) plainCorefile(t *testing.T) string {
	t.Helper()
	deployed := l.corefile(t)
	if !setupBlock.MatchString(deployed) {
		t.Fatal("deploy/base/Corefile has no block setup to take out")
	}
	return strings.NewReplacer(
		"__PILLAR__DNS__DOMAIN__", "cluster.local", "__PILLAR__LOCAL__DNS__", plainAddress,
		"__PILLAR__CLUSTER__DNS__", cluster.KubeDNS, "__PILLAR__UPSTREAM__SERVERS__", "/etc/resolv.conf",
		cluster.LocalAddress, plainAddress, ":9253", ":9353", ":9254", ":9354", ":9255", ":9355",
	).Replace(setupBlock.ReplaceAllString(deployed, ""))
}

// setCorefile puts a Corefile into a ConfigMap of kube-system and changes nothing else of it.
func (l *lab) setCorefile(ctx context.Context, name, corefile string) error {
	data, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]string{"name": name, "namespace": "kube-system"},
		"data":     map[string]string{"Corefile": corefile},
	})
	if err != nil {
		return err
	}
	return l.Apply(ctx, string(data))
}

// read returns the counts of a counter for the queries that were sent between two times.
func (l *lab) read(ctx context.Context, c counter, since, until time.Time) ([]count, error) {
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: l.World.DialContext, DisableKeepAlives: true}}
	url := fmt.Sprintf("http://%s:8053/counts?since=%d&until=%d", c.address, since.UnixNano(), until.UnixNano())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("counter on %s: %w", c.node, err)
	}
	defer resp.Body.Close()
	var counts []count
	return counts, json.NewDecoder(resp.Body).Decode(&counts)
}

// awaitMetric waits until a metric's lines satisfy f on every node. The port tells the cache.
func (l *lab) awaitMetric(ctx context.Context, port int, metric string, f func(node, lines string) bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, fmt.Errorf("metric %s at port %d has not changed within 3 minutes", metric, port))
	defer cancel()
	return cluster.Poll(ctx, time.Second, func() error {
		for _, n := range l.Nodes {
			lines, err := l.metric(ctx, n, port, metric)
			if err != nil {
				return err
			}
			if !f(n.Name, lines) {
				return errors.New(n.Name + ": " + lines)
			}
		}
		return nil
	})
}

// metric reads the lines of one metric on a node.
func (l *lab) metric(ctx context.Context, n *cluster.Node, port int, metric string) (string, error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: n.DialContext, DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", port))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	var found strings.Builder
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, metric) {
			found.WriteString(line)
		}
	}
	return found.String(), nil
}

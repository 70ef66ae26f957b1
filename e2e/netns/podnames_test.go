package netns

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/kube/kubetest"
	"localcache.dev/localcache/internal/lab"
)

// told is the output of 'localcache top pods -o json'.
type told struct {
	Metadata struct{ Notes []string }
	Items    []toldClient
}

type toldClient struct {
	Addresses                     []string
	Namespace, Pod, UID, Workload string
	Host, Overflow                bool
	Queries                       uint64
}

// name returns the client's name, with its address.
func (c *toldClient) name() string {
	switch {
	case c.Host:
		return "host"
	case c.Overflow:
		return "~other"
	case c.Pod != "":
		return fmt.Sprintf("%s/%s %s %s", c.Namespace, c.Pod, c.UID, c.Workload)
	}
	return strings.Join(c.Addresses, " ")
}

// tool runs a subcommand of the program against the daemon.
func (d *daemon) tool(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Getenv(envBinary), append(args, "-socket", diagSocket(d.lab))...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if err := d.lab.Node.Run(cmd); err != nil {
		return "", fmt.Errorf("localcache %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// waitTold waits until the clients have these names, whatever they have asked; there may be others.
func (d *daemon) waitTold(names ...string) map[string]toldClient {
	d.t.Helper()
	found := map[string]toldClient{}
	d.until(startTimeout, fmt.Sprintf("the clients are %q", names), func() error {
		out, err := d.tool("top", "pods", "-window", "start", "-o", "json")
		if err != nil {
			return err
		}
		var v told
		if err := json.Unmarshal([]byte(out), &v); err != nil {
			return err
		}
		clear(found)
		for _, c := range v.Items {
			found[c.name()] = c
		}
		for _, name := range names {
			if _, ok := found[name]; !ok {
				return fmt.Errorf("no %q: %s", name, out)
			}
		}
		return nil
	})
	return found
}

func setPod(api *kubetest.Server, name, uid string, started time.Time, ip netip.Addr) {
	api.Set(kubetest.Pods, kubetest.Object{
		"kind": "Pod", "apiVersion": "v1",
		"metadata": kubetest.Object{"namespace": "shop", "name": name, "uid": uid,
			"ownerReferences": []kubetest.Object{{"kind": "StatefulSet", "name": "web", "controller": true}}},
		"spec": kubetest.Object{"nodeName": "n1"},
		"status": kubetest.Object{"phase": "Running", "startTime": started.UTC().Format(time.RFC3339),
			"podIPs": []kubetest.Object{{"ip": ip.String()}}},
	})
}

// TestPodNames checks that the diagnostics name pods, that an address which moves to another pod takes no statistics
// along, and that an API server which is gone removes nothing.
func TestPodNames(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	api := startAPI(t, l, netip.MustParseAddrPort("127.0.0.1:6443"))
	first, second := l.Pods[0].IPv4, l.Pods[1].IPv4
	setPod(api, "web-0", "u1", time.Now(), first)
	// The program asks no other node's pods, and by the right name.
	d := start(t, l, serveOptions{Env: []string{
		"LOCALCACHE_SOCKET=" + diagSocket(l), "NODE_NAME=n1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443",
	}})
	ask := func(h *lab.Host, times int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		for range times {
			if _, _, err := h.Ask(ctx, lab.UDP, d.server, faultyName, dns.TypeA); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask(l.Pods[0], 5)
	ask(l.Pods[1], 7)
	ask(l.Node, 1)
	const old, next = "shop/web-0 u1 StatefulSet/web", "shop/web-0 u2 StatefulSet/web"
	var before uint64
	d.until(startTimeout, "all that was asked is counted", func() error {
		all := d.waitTold(old, second.String(), "host")
		before = all[old].Queries
		if before < 5+1 || all[second.String()].Queries != 7 { // it was asked at the start whether it answers
			return fmt.Errorf("the pod has %d queries, want 5 and those of the start; the other address %d, want 7", before, all[second.String()].Queries)
		}
		return nil
	})
	if out, err := d.tool("pods", "shop/web-0"); err != nil || !strings.Contains(out, "StatefulSet/web") || !strings.Contains(out, first.String()) {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := d.tool("status"); err != nil || !strings.Contains(out, "Pods:        1 on this node\n") {
		t.Errorf("%v: %s", err, out)
	}

	// The pod is made anew: the same name, the same address.
	api.Delete(kubetest.Pods, "shop", "web-0")
	d.waitTold("~other")
	anew := time.Now()
	ask(l.Pods[0], 3) // before its address is known
	setPod(api, "web-0", "u2", anew, first)
	d.until(startTimeout, "the new pod has what it has asked", func() error {
		all := d.waitTold(next, "~other")
		if got, others := all[next].Queries, all["~other"].Queries; got != 3 || others != before {
			return fmt.Errorf("%d queries, want 3; ~other has %d, want the %d of the one before", got, others, before)
		}
		return nil
	})

	// Without the API server the names stay, with a note that they may be old.
	api.Close()
	d.until(startTimeout, "it is said that the pods are old", func() error {
		out, err := d.tool("top", "pods", "-window", "start", "-o", "json")
		if err == nil && !strings.Contains(out, "pods: as the API server said at ") {
			err = fmt.Errorf("%s", out)
		}
		return err
	})
	if out, err := d.tool("status"); err != nil || !strings.Contains(out, "1 on this node, as the API server said at ") {
		t.Errorf("%v: %s", err, out)
	}
	ask(l.Pods[0], 2)
	d.until(startTimeout, "what the pod has asked since is counted", func() error {
		if got := d.waitTold(next)[next].Queries; got != 5 {
			return fmt.Errorf("%d queries, want 5", got)
		}
		return nil
	})

	// 'pods off' removes the names and does not use the API server.
	api = startAPI(t, l, netip.MustParseAddrPort("127.0.0.1:6443"))
	setPod(api, "web-0", "u2", anew, first)
	corefile := strings.Replace(string(localcache.CorefileExample), "    errors\n", "    errors\n    diag {\n        pods off\n    }\n", 1)
	if !strings.Contains(corefile, "pods off") {
		t.Fatal("the Corefile has no place for diag")
	}
	replace(t, l.Path("Corefile"), corefile)
	d.usr1()
	d.waitTold(first.String())
	if out, err := d.tool("status"); err != nil || !strings.Contains(out, "not known: 'pods off' is in the Corefile") {
		t.Errorf("%v: %s", err, out)
	}
	api.Reset()
	asked := len(api.Requests())
	replace(t, l.Path("Corefile"), string(localcache.CorefileExample))
	d.usr1()
	d.waitTold(next)
	if got := api.Requests()[asked:]; len(got) == 0 || got[0].Watch || !strings.Contains(got[0].Query, "fieldSelector=spec.nodeName%3Dn1") {
		t.Errorf("afterwards came %+v, want a list of this node's pods first", got)
	}
}

// TestPodNamesWithoutAccess checks that without a token clients are shown by address, and that the missing token is
// named.
func TestPodNamesWithoutAccess(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	if err := os.RemoveAll(accountDir); err != nil {
		t.Fatal(err)
	}
	d := start(t, l, serveOptions{Env: []string{
		"LOCALCACHE_SOCKET=" + diagSocket(l), "NODE_NAME=n1", "KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=6443",
	}})
	d.waitTold(l.Pods[0].IPv4.String())
	out, err := d.tool("status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"not known: the pod's service account: open ", "/token: no such file", "deploy/components/pods adds it"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q: %s", want, out)
		}
	}
	d.waitLogged("clients are shown by IP address: the pod's service account: ", startTimeout)
}

package kube

import (
	"context"
	"strings"
	"testing"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// testNode checks what resolving left on the nodes, and uses localcache through kubectl.
func (l *lab) testNode(ctx context.Context, t *testing.T) {
	t.Run("conntrack", func(t *testing.T) {
		for _, n := range l.Nodes {
			if tracked := conntrack(ctx, t, n, cluster.LocalAddress); len(tracked) > 0 {
				t.Errorf("%s tracks %d DNS connections with %s, among them %s", n.Name, len(tracked), cluster.LocalAddress, tracked[0])
			}
			// localcache's own way to kube-dns is tracked, because it is translated.
			if len(conntrack(ctx, t, n, cluster.KubeDNS)) == 0 {
				t.Errorf("%s tracks no connection with %s: the table cannot be read", n.Name, cluster.KubeDNS)
			}
		}
	})
	pods, err := l.Pods(ctx, "kube-system", "k8s-app=node-local-dns")
	must(t, err)
	if len(pods) != len(l.Nodes) {
		t.Fatalf("there are %d pods of localcache", len(pods))
	}
	for _, p := range pods {
		t.Run("logs of "+p.Node, func(t *testing.T) {
			out, err := l.Kubectl(ctx, "-n", "kube-system", "logs", p.Name)
			must(t, err)
			if !strings.Contains(out, cluster.LocalAddress) {
				t.Errorf("the logs do not name the address: %s", out)
			}
		})
		t.Run("metrics of "+p.Node, func(t *testing.T) {
			out, err := l.Kubectl(ctx, "get", "--raw", "/api/v1/namespaces/kube-system/pods/"+p.Name+":9253/proxy/metrics")
			must(t, err)
			for _, want := range []string{
				"coredns_setup_rules_in_place 1\n", `coredns_setup_interface_up{interface="nodelocaldns"} 1`,
				"coredns_dns_requests_total{", "coredns_cache_hits_total{", "coredns_diag_upstream_",
			} {
				if !strings.Contains(out, want) {
					t.Errorf("the metrics lack %q", want)
				}
			}
		})
	}
}

// forgetTracked removes the nodes' conntrack entries with an address. localcache has some of its own at its start,
// when the directive loop asks before the rules are in place.
func (l *lab) forgetTracked(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	for _, n := range l.Nodes {
		// Its status says whether there was anything.
		_, _ = n.Run(ctx, "conntrack", "-D", "-d", address)
		if left := conntrack(ctx, t, n, address); len(left) > 0 {
			t.Fatalf("%s still tracks %s", n.Name, left[0])
		}
	}
}

// conntrack lists a node's tracked DNS connections that lead to an address or come from it. The kubelet's
// probes of the same address are tracked, a few a minute.
func conntrack(ctx context.Context, t *testing.T, n *cluster.Node, address string) []string {
	t.Helper()
	out, err := n.Run(ctx, "conntrack", "-L")
	must(t, err)
	var found []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "="+address+" ") && strings.Contains(line, "port=53 ") {
			found = append(found, strings.TrimSpace(line))
		}
	}
	return found
}

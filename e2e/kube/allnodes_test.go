package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// plugin runs a script as an administrator who has localcache as a plugin of kubectl, and returns its output.
func (l *lab) plugin(ctx context.Context, t *testing.T, script string) (string, error) {
	t.Helper()
	bin := filepath.Join(l.folder, "plugin")
	if _, err := os.Stat(bin); err != nil {
		must(t, os.Mkdir(bin, 0o755))
		must(t, os.Symlink(filepath.Join(root, "bin/localcache"), filepath.Join(bin, "kubectl-localcache")))
	}
	return l.Shell(ctx, l.folder, fmt.Sprintf("export PATH=%q:$PATH\n%s", bin, script))
}

// testAllNodes asks the caches of both nodes together, after testResolve had the pods of both resolve.
func (l *lab) testAllNodes(ctx context.Context, t *testing.T) {
	started := time.Now()
	out, err := l.plugin(ctx, t, "kubectl localcache top --all-nodes --window 1h --limit 2048 -o json 2>/dev/null")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	progress("both nodes told their clients within %.1f s", time.Since(started).Seconds())
	var list struct {
		Metadata struct{ Nodes []string }
		Items    []struct {
			Node      string
			Addresses []string
			Queries   int
		}
	}
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var nodes []string
	for _, n := range l.Nodes {
		nodes = append(nodes, n.Name)
	}
	if slices.Sort(nodes); !slices.Equal(list.Metadata.Nodes, nodes) {
		t.Errorf("nodes %v answered, want %v", list.Metadata.Nodes, nodes)
	}
	for _, p := range l.clients(ctx, t) {
		if strings.HasPrefix(p.Name, "client-host") {
			continue // it asks from the node's own address
		}
		found := false
		for _, c := range list.Items {
			if slices.Contains(c.Addresses, p.IP) {
				found = true
				if c.Node != p.Node || c.Queries == 0 {
					t.Errorf("%s on %s with the address %s is said to be on %s with %d queries", p.Name, p.Node, p.IP, c.Node, c.Queries)
				}
			}
		}
		if !found {
			t.Errorf("%s on %s with the address %s has asked and is not listed", p.Name, p.Node, p.IP)
		}
	}

	for command, wants := range map[string][]string{
		"top":           append([]string{"NODE"}, nodes...),
		"top names":     {"AT-LEAST", "default.svc.cluster.local."},
		"top upstreams": {"FAILED-ON", cluster.KubeDNS + ":53"},
		"status":        append([]string{"2 nodes", "answers"}, nodes...),
	} {
		out, err := l.plugin(ctx, t, "kubectl localcache "+command+" --all-nodes")
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("%s --all-nodes: %v, does not say %q: %s", command, err, want, out)
			}
		}
	}
	l.testRights(ctx, t)
}

// testRights asks as a user without rights, and then as one who may only see pods: the missing right is named.
func (l *lab) testRights(ctx context.Context, t *testing.T) {
	const asJane = `kubectl config view --raw | sed 's/^  user:$/  user:\n    as: jane/' > jane.kubeconfig
status=0
kubectl localcache top --all-nodes --kubeconfig jane.kubeconfig || status=$?
echo "status $status"
`
	for _, c := range []struct{ before, status, want string }{
		{"", "status 2\n", "The right to list pods in the namespace kube-system is missing"},
		{"kubectl -n kube-system create role see-pods --verb=get,list --resource=pods\nkubectl -n kube-system create rolebinding see-pods --role=see-pods --user=jane\n",
			"status 1\n", "The right to create pods/exec in the namespace kube-system is missing"},
	} {
		out, err := l.plugin(ctx, t, c.before+asJane)
		if err != nil || !strings.Contains(out, c.want) || !strings.HasSuffix(out, c.status) {
			t.Errorf("%v, want %q and %q: %s", err, c.want, c.status, out)
		}
	}
	if _, err := l.Kubectl(ctx, "-n", "kube-system", "delete", "role/see-pods", "rolebinding/see-pods"); err != nil {
		t.Error(err)
	}
}

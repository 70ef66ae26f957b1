package deploy

import (
	"errors"
	"strings"
	"testing"
)

// Each judge is shown to find what it is there for: one edit of deploy/ a case, and the words of the
// complaint.
func TestBroken(t *testing.T) {
	const ds, cf = "base/daemonset.yaml", "base/Corefile"
	cases := []struct {
		name, file, old, new string
		want                 string
	}{
		// The decoder and the schema.
		{"misspelled field", ds, "readOnlyRootFilesystem:", "readOnlyRootFileSystem:", "readOnlyRootFileSystem"},
		{"field of another level", ds, "      hostNetwork: true", "      hostNetwork: true\n      maxSurge: 1", "maxSurge"},
		{"number for a string", ds, `prometheus.io/port: "9253"`, `prometheus.io/port: 9253`, "metadata.annotations"},
		{"string for a number", ds, "minReadySeconds: 10", "minReadySeconds: ten", "minReadySeconds"},
		{"unknown kind", ds, "kind: DaemonSet", "kind: DemonSet", "DemonSet"},
		{"field given twice", ds, "      dnsPolicy: Default", "      dnsPolicy: Default\n      dnsPolicy: Default", "dnsPolicy"},
		// The API server's validation.
		{"surge and unavailable", ds, "maxUnavailable: 0", "maxUnavailable: 1", "maxSurge"},
		{"selector without its label", ds, "        k8s-app: node-local-dns\n        app", "        app", "selector"},
		{"unknown dnsPolicy", ds, "dnsPolicy: Default", "dnsPolicy: Node", "dnsPolicy"},
		{"mount of no volume", ds, "- name: kube-dns-config\n              mountPath", "- name: kube-dns-cfg\n              mountPath", "kube-dns-cfg"},
		{"request above limit", ds, "memory: 40Mi", "memory: 400Mi", "must be less than or equal to memory limit"},
		{"unknown operator", ds, "operator: Exists\n        - effect: NoExecute", "operator: Exist\n        - effect: NoExecute", "operator"},
		// The policy.
		{"declared port", ds, "          securityContext:\n", "          ports:\n            - containerPort: 53\n          securityContext:\n", "port 53 is declared"},
		{"a capability more", ds, "                - NET_ADMIN", "                - SYS_ADMIN\n                - NET_ADMIN", "capabilities"},
		{"nothing dropped", ds, "              drop:\n                - ALL\n", "", "are dropped"},
		{"writable root", ds, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "readOnlyRootFilesystem"},
		{"not root", ds, "runAsUser: 0", "runAsUser: 1000", "runAsUser"},
		{"unconfined", ds, "type: RuntimeDefault", "type: Unconfined", "seccompProfile"},
		{"no surge", ds, "maxSurge: 1\n      maxUnavailable: 0", "maxSurge: 0\n      maxUnavailable: 1", "update strategy"},
		{"cluster DNS for itself", ds, "dnsPolicy: Default", "dnsPolicy: ClusterFirstWithHostNet", "the cache would ask itself"},
		{"no host network", ds, "hostNetwork: true", "hostNetwork: false", "hostNetwork"},
		{"not critical", ds, "priorityClassName: system-node-critical", "priorityClassName: high", "priorityClassName"},
		{"taints", ds, "        - effect: NoExecute\n          operator: Exists\n", "", "NoExecute"},
		{"a token", ds, "      automountServiceAccountToken: false", "      automountServiceAccountToken: true", "token"},
		{"no memory limit for Go", ds, "resource: limits.memory", "resource: requests.memory", "GOMEMLIMIT"},
		{"CPU limit", ds, "            limits:\n", "            limits:\n              cpu: 100m\n", "throttles"},
		{"a folder of the node", ds, "      volumes:\n", "      volumes:\n        - name: etc\n          hostPath:\n            path: /etc\n", "/etc of the node"},
		{"subPath", ds, "mountPath: /etc/coredns\n", "mountPath: /etc/coredns\n              subPath: x\n", "subPath"},
		{"Corefile elsewhere", ds, "-conf=/etc/coredns/Corefile", "-conf=/etc/Corefile", "in no ConfigMap"},
		{"ConfigMap of another name", ds, "name: localcache\n            items", "name: local-cache\n            items", "local-cache"},
		{"health elsewhere", ds, "port: 9254", "port: 8080", "health"},
		{"ready elsewhere", ds, "port: 9255", "port: 8181", "ready"},
		{"probe of a foreign address", ds, "host: 169.254.25.10\n              path: /ready", "host: 127.0.0.1\n              path: /ready", "127.0.0.1"},
		{"short grace", ds, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 5", "lameduck"},
		{"Service that is not there", ds, "-upstreamsvc=kube-dns", "-upstreamsvc=core-dns", "__PILLAR__CLUSTER__DNS__ has no value"},
		{"brace", cf, "    ready 169.254.25.10:9255\n}", "    ready 169.254.25.10:9255\n", "no block for in-addr.arpa"},
		{"last brace", cf, "UPSTREAM__SERVERS__\n    prometheus :9253\n}", "UPSTREAM__SERVERS__\n    prometheus :9253\n", "expecting '}'"},
		{"placeholder", cf, "__PILLAR__UPSTREAM__SERVERS__", "__PILLAR__UPSTREAM__SERVER__", "__PILLAR__UPSTREAM__SERVER__ is not known"},
		{"bind to another address", cf, "bind __PILLAR__LOCAL__DNS__\n    forward . __PILLAR__UPSTREAM", "bind 169.254.25.11\n    forward . __PILLAR__UPSTREAM", "169.254.25.11"},
		{"UDP to kube-dns", cf, "in-addr.arpa:53 {\n    errors\n    cache 30\n    reload\n    loop\n    bind __PILLAR__LOCAL__DNS__\n    forward . __PILLAR__CLUSTER__DNS__ {\n        force_tcp\n    }", "in-addr.arpa:53 {\n    errors\n    cache 30\n    reload\n    loop\n    bind __PILLAR__LOCAL__DNS__\n    forward . __PILLAR__CLUSTER__DNS__", "force_tcp"},
		{"metrics elsewhere", cf, "prometheus :9253\n    health", "prometheus :9153\n    health", "9153"},
		{"zone missing", cf, "ip6.arpa:53", "ip6.arp:53", "no block for ip6.arpa"},
	}
	s := schemaOf(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			tree := load(t)
			raw, err := tree.Read(c.file)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(raw), c.old) {
				t.Fatalf("%s has no %q any more: the case tests nothing", c.file, c.old)
			}
			write(t, tree, c.file, strings.Replace(string(raw), c.old, c.new, 1))

			objects, errs := judge(tree, s, "base")
			if len(errs) == 0 {
				set, err := NewSet(objects)
				errs = append(errs, err)
				if err == nil {
					errs = append(errs, Policy(set, kubeadm))
				}
			}
			if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("want a complaint with %q, got: %v", c.want, err)
			}
		})
	}
}

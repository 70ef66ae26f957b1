package deploy

import (
	"errors"
	"strings"
	"testing"
)

// Each check must find its fault: each case has one edit of deploy/ and the expected complaint.
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
		{"a folder without a bound", ds, "            sizeLimit: 1Mi\n", "", "may fill the node's disk"},
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
		t.Run(c.name, func(t *testing.T) { wantComplaint(t, load(t), s, "base", kubeadm, c.file, c.old, c.new, c.want) })
	}
}

// TestBrokenRights is TestBroken for the rights of a fallback to a Service: too few and too many.
func TestBrokenRights(t *testing.T) {
	const role, binding, component = "components/fallback/role.yaml", "components/fallback/rolebinding.yaml", "components/fallback/kustomization.yaml"
	s := schemaOf(t)
	for _, c := range []struct {
		name, file, old, new string
		want                 string
	}{
		{"no watch", role, "      - list\n      - watch\n", "      - list\n", "want list and watch of endpointslices"},
		{"get as well", role, "      - list\n", "      - list\n      - get\n", "want list and watch of endpointslices"},
		{"anything", role, "      - endpointslices\n", "      - '*'\n", "want list and watch of endpointslices"},
		{"misspelled", role, "endpointslices", "endpointslice", "want list and watch of endpointslices"},
		{"no verbs", role, "    verbs:\n      - list\n      - watch\n", "", "verbs"},
		{"all namespaces", role, "kind: Role\n", "kind: ClusterRole\n", "metadata.namespace: Forbidden"},
		{"another namespace", role, "namespace: kube-system", "namespace: default", "is in namespace \"default\""},
		{"bound to another Role", binding, "  kind: Role\n  name: nodelocaldns", "  kind: Role\n  name: other", "want Role nodelocaldns"},
		{"for another account", binding, "  - kind: ServiceAccount\n    name: nodelocaldns", "  - kind: ServiceAccount\n    name: default", "want service account nodelocaldns alone"},
		{"for everybody", binding, "  - kind: ServiceAccount\n    name: nodelocaldns\n    namespace: kube-system", "  - kind: Group\n    apiGroup: rbac.authorization.k8s.io\n    name: system:authenticated", "want service account nodelocaldns alone"},
		{"no binding", component, "  - rolebinding.yaml\n", "", "1 Roles and 0 RoleBindings"},
		{"no token", component, "automountServiceAccountToken: true", "automountServiceAccountToken: false", "no token of the API server is mounted"},
		{"a token for every pod", "base/serviceaccount.yaml", "automountServiceAccountToken: false", "automountServiceAccountToken: true", "mounts its token in every pod"},
		{"another Service", component, "value: kube-system/kube-dns", "value: kube-system/kube-dns2", "KUBE_DNS_ENDPOINTS"},
		{"rights that nothing needs", "overlays/service-ip/kustomization.yaml", "resources:\n", "components:\n  - ../../components/fallback\nresources:\n", "a token of the API server is mounted, and nothing needs it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, node := ".", following(kubeadm, "kube-dns")
			if strings.HasPrefix(c.file, "overlays/") {
				dir, node = "overlays/service-ip", kubeadm
			}
			// The component for pods alone would mount the token too.
			tree := load(t)
			rewrite(t, tree, "kustomization.yaml", "  - components/pods\n", "")
			wantComplaint(t, tree, s, dir, node, c.file, c.old, c.new, c.want)
		})
	}
}

// TestBrokenPodRights is TestBroken for the rights to name pods: too few and too many.
func TestBrokenPodRights(t *testing.T) {
	const role, binding, component, root = "components/pods/clusterrole.yaml", "components/pods/clusterrolebinding.yaml", "components/pods/kustomization.yaml", "kustomization.yaml"
	const complaint = "want list and watch of pods"
	s := schemaOf(t)
	for _, c := range []struct {
		name, file, old, new string
		want                 string
	}{
		{"no watch", role, "      - list\n      - watch\n", "      - list\n", complaint},
		{"get as well", role, "      - list\n", "      - list\n      - get\n", complaint},
		{"anything", role, "      - pods\n", "      - '*'\n", complaint},
		{"Secrets as well", role, "      - pods\n", "      - pods\n      - secrets\n", complaint},
		{"more by and by", role, "rules:\n", "aggregationRule:\n  clusterRoleSelectors:\n    - matchLabels:\n        a: b\nrules:\n", complaint},
		{"a URL", role, "rules:\n", "rules:\n  - nonResourceURLs: ['*']\n    verbs: [get]\n", complaint},
		{"of the namespace only", role, "kind: ClusterRole\n", "kind: Role\n", "namespace"},
		{"bound to everything", binding, "  kind: ClusterRole\n  name: nodelocaldns-pods", "  kind: ClusterRole\n  name: cluster-admin", "want ClusterRole nodelocaldns-pods"},
		{"for another account", binding, "  - kind: ServiceAccount\n    name: nodelocaldns", "  - kind: ServiceAccount\n    name: default", "want service account nodelocaldns alone"},
		{"of another namespace", binding, "    namespace: kube-system", "    namespace: default", "want service account nodelocaldns alone"},
		{"for everybody", binding, "  - kind: ServiceAccount\n    name: nodelocaldns\n    namespace: kube-system", "  - kind: Group\n    apiGroup: rbac.authorization.k8s.io\n    name: system:authenticated", "want service account nodelocaldns alone"},
		{"no binding", component, "  - clusterrolebinding.yaml\n", "", "1 ClusterRoles and 0 ClusterRoleBindings"},
		{"no token", component, "automountServiceAccountToken: true", "automountServiceAccountToken: false", "no token of the API server is mounted"},
		{"another name of the node", component, "fieldPath: spec.nodeName", "fieldPath: metadata.name", "NODE_NAME"},
		{"left out", root, "  - components/pods\n", "", "0 ClusterRoles and 0 ClusterRoleBindings"},
	} {
		t.Run(c.name, func(t *testing.T) {
			wantComplaint(t, load(t), s, ".", namingPods(following(kubeadm, "kube-dns")), c.file, c.old, c.new, c.want)
		})
	}
	t.Run("rights that nothing needs", func(t *testing.T) {
		wantComplaint(t, load(t), s, ".", following(kubeadm, "kube-dns"), root, "resources:", "resources:", "1 ClusterRoles and 1 ClusterRoleBindings, and nothing needs them")
	})
	t.Run("no name of the node", func(t *testing.T) {
		wantComplaint(t, load(t), s, "base", kubeadm, "base/daemonset.yaml", "- name: NODE_NAME", "- name: NODE", "NODE_NAME is not the node's name")
	})
}

// TestBrokenPage is TestBroken for the page.
func TestBrokenPage(t *testing.T) {
	const component, block = "components/diag-page/kustomization.yaml", "components/diag-page/Corefile"
	s := schemaOf(t)
	for _, c := range []struct {
		name, file, old, new string
		want                 string
	}{
		{"for all addresses", block, "127.0.0.1:9257", "0.0.0.0:9257", "0.0.0.0:9257"},
		{"for everybody", block, "access token /etc/localcache-diag/token", "access open", "\"open\""},
		{"token elsewhere", component, "mountPath: /etc/localcache-diag", "mountPath: /etc/diag", "is at /etc/diag"},
		{"writable", component, "readOnly: true", "readOnly: false", "read-only: false"},
		{"optional", component, "defaultMode: 0400", "defaultMode: 0400\n            optional: true", "is optional"},
		{"for others", component, "defaultMode: 0400", "defaultMode: 0444", "for others"},
		{"another Secret", component, "secretName: localcache-diag", "secretName: other", "unexpected kind"},
		{"in the middle", component, "index: 100000", "index: 3", "block"},
		{"sent to the cluster", component, "config.kubernetes.io/local-config: \"true\"", "a: b", "localcache-diag-block"},
		{"bind to another address", block, "bind __PILLAR__LOCAL__DNS__", "bind 127.0.0.1", "127.0.0.1"},
		{"a zone of names", block, "diag.localcache.invalid:53", "example.org:53", "example.org"},
	} {
		t.Run(c.name, func(t *testing.T) {
			tree := load(t)
			rewrite(t, tree, "kustomization.yaml", "  - components/pods\n", "  - components/pods\n  - components/diag-page\n")
			wantComplaint(t, tree, s, ".", servingPage(namingPods(following(kubeadm, "kube-dns"))), c.file, c.old, c.new, c.want)
		})
	}
	t.Run("where none is asked for", func(t *testing.T) {
		wantComplaint(t, load(t), s, ".", namingPods(following(kubeadm, "kube-dns")), "kustomization.yaml", "  - components/pods\n", "  - components/pods\n  - components/diag-page\n", "unexpected kind")
	})
}

// wantComplaint makes one edit of a file, builds dir, and expects a check to report want.
func wantComplaint(t *testing.T, tree Tree, s *Schema, dir string, node Node, file, from, to, want string) {
	t.Helper()
	rewrite(t, tree, file, from, to)
	objects, errs := judge(tree, s, dir)
	if len(errs) == 0 {
		set, err := NewSet(objects)
		errs = append(errs, err)
		if err == nil {
			errs = append(errs, Policy(set, node))
		}
	}
	if err := errors.Join(errs...); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("want a complaint with %q, got: %v", want, err)
	}
}

// rewrite makes one edit of a file.
func rewrite(t *testing.T, tree Tree, file, from, to string) {
	t.Helper()
	raw, err := tree.Read(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(raw), from) {
		t.Fatalf("%s has no %q any more: the case tests nothing", file, from)
	}
	write(t, tree, file, strings.Replace(string(raw), from, to, 1))
}

package deploy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/kubernetes/pkg/apis/apps"
	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/rbac"
	"k8s.io/kubernetes/third_party/forked/golang/expansion"
)

// Namespace is where all objects live.
const Namespace = "kube-system"

// Set is a built kustomization, decoded and sorted by kind.
type Set struct {
	DaemonSet  *apps.DaemonSet
	ConfigMaps map[string]*core.ConfigMap
	Services   map[string]*core.Service
	Accounts   map[string]*core.ServiceAccount
	Roles      []*rbac.Role
	Bindings   []*rbac.RoleBinding
	// Those for the whole cluster, of which only the pods are.
	ClusterRoles    []*rbac.ClusterRole
	ClusterBindings []*rbac.ClusterRoleBinding
}

// NewSet sorts decoded objects. A kind that has no place in a Set is an error: the cache needs nothing else.
func NewSet(objects []runtime.Object) (Set, error) {
	s := Set{ConfigMaps: map[string]*core.ConfigMap{}, Services: map[string]*core.Service{}, Accounts: map[string]*core.ServiceAccount{}}
	var errs []error
	for _, obj := range objects {
		switch o := obj.(type) {
		case *apps.DaemonSet:
			if s.DaemonSet != nil {
				errs = append(errs, fmt.Errorf("two DaemonSets, %s and %s", s.DaemonSet.Name, o.Name))
			}
			s.DaemonSet = o
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *core.ConfigMap:
			s.ConfigMaps[o.Name] = o
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *core.Service:
			s.Services[o.Name] = o
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *core.ServiceAccount:
			s.Accounts[o.Name] = o
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *rbac.Role:
			s.Roles = append(s.Roles, o)
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *rbac.RoleBinding:
			s.Bindings = append(s.Bindings, o)
			errs = append(errs, inNamespace(o.Namespace, o.Name))
		case *rbac.ClusterRole:
			s.ClusterRoles = append(s.ClusterRoles, o)
		case *rbac.ClusterRoleBinding:
			s.ClusterBindings = append(s.ClusterBindings, o)
		default:
			errs = append(errs, fmt.Errorf("%T has no place in deploy/", obj))
		}
	}
	if s.DaemonSet == nil {
		errs = append(errs, errors.New("no DaemonSet"))
	}
	return s, errors.Join(errs...)
}

func inNamespace(namespace, name string) error {
	if namespace != Namespace {
		return fmt.Errorf("%s is in namespace %q, not in %s", name, namespace, Namespace)
	}
	return nil
}

// Node says what a policy check stands on: the addresses that kubelet's environment would give.
type Node struct {
	// ServiceHosts are cluster IPs by the name of the Service, as kubelet's service links give them.
	ServiceHosts map[string]string
	// ExtraCaps and Lock are true to the iptables component.
	ExtraCaps []core.Capability
	Lock      bool
	// Follows is the Service whose endpoints are the fallback, NAMESPACE/NAME; "" for none.
	Follows string
	// NamesPods is true to the component pods.
	NamesPods bool
	// ReviewsAccess is true to the component diag-access.
	ReviewsAccess bool
	// ServesPage is true to the component diag-page.
	ServesPage bool
}

// Policy checks what this project demands of the DaemonSet of the cache and of what it refers to.
func Policy(s Set, n Node) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	ds := s.DaemonSet
	p := &ds.Spec.Template.Spec
	if len(p.Containers) != 1 {
		return fmt.Errorf("%d containers, want one", len(p.Containers))
	}
	c := &p.Containers[0]

	// An upgrade without a gap.
	if u := ds.Spec.UpdateStrategy.RollingUpdate; u == nil || u.MaxSurge.String() != "1" || u.MaxUnavailable.String() != "0" {
		fail("the update strategy is not maxSurge 1, maxUnavailable 0")
	}
	if ds.Spec.MinReadySeconds < 5 {
		fail("minReadySeconds %d: a probe may be answered by the old process, so the new one must be seen to live", ds.Spec.MinReadySeconds)
	}
	for _, port := range c.Ports {
		fail("port %d is declared: with hostNetwork it keeps the surge pod off the node", port.ContainerPort)
	}

	// A place on every node, and in the node's network.
	if p.SecurityContext == nil || !p.SecurityContext.HostNetwork {
		fail("hostNetwork is not set")
	}
	if p.SecurityContext != nil && (p.SecurityContext.HostPID || p.SecurityContext.HostIPC) {
		fail("hostPID or hostIPC is set")
	}
	if p.DNSPolicy != core.DNSDefault {
		fail("dnsPolicy %s: the cache would ask itself", p.DNSPolicy)
	}
	if p.PriorityClassName != "system-node-critical" {
		fail("priorityClassName %q", p.PriorityClassName)
	}
	if p.NodeSelector["kubernetes.io/os"] != "linux" {
		fail("nodeSelector does not ask for linux")
	}
	for _, effect := range []core.TaintEffect{core.TaintEffectNoSchedule, core.TaintEffectNoExecute} {
		if !slices.ContainsFunc(p.Tolerations, func(t core.Toleration) bool {
			return t.Key == "" && t.Operator == core.TolerationOpExists && t.Effect == effect
		}) {
			fail("taints with effect %s are not tolerated", effect)
		}
	}

	errs = append(errs, security(p, c, n), account(s, p, n), rights(s, p, n), podRights(s, p, n), memory(c), mounts(s, p, c, n), services(s))
	for name := range s.ConfigMaps {
		if name != "localcache" {
			fail("ConfigMap %s is sent, and nothing mounts it", name)
		}
	}
	corefile, err := mountedCorefile(s, p, c)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	args := Args(c, n)
	return errors.Join(append(errs, Corefile(corefile, args, ds.Spec.Template, n))...)
}

func security(p *core.PodSpec, c *core.Container, n Node) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	sc := c.SecurityContext
	if sc == nil || sc.Capabilities == nil {
		return errors.New("no securityContext with capabilities")
	}
	want := append([]core.Capability{"NET_ADMIN", "NET_BIND_SERVICE"}, n.ExtraCaps...)
	if got := sc.Capabilities.Add; !sameSet(got, want) {
		fail("capabilities %v are added, want %v", got, want)
	}
	if !slices.Equal(sc.Capabilities.Drop, []core.Capability{"ALL"}) {
		fail("capabilities %v are dropped, want ALL", sc.Capabilities.Drop)
	}
	if sc.Privileged != nil && *sc.Privileged {
		fail("privileged is set")
	}
	if sc.ReadOnlyRootFilesystem == nil || !*sc.ReadOnlyRootFilesystem {
		fail("readOnlyRootFilesystem is not set")
	}
	if sc.AllowPrivilegeEscalation == nil || *sc.AllowPrivilegeEscalation {
		fail("allowPrivilegeEscalation is not false")
	}
	if sc.RunAsUser == nil || *sc.RunAsUser != 0 {
		fail("runAsUser is not 0: the capabilities would be lost at exec")
	}
	if p.SecurityContext == nil || p.SecurityContext.SeccompProfile == nil || p.SecurityContext.SeccompProfile.Type != core.SeccompProfileTypeRuntimeDefault {
		fail("seccompProfile is not RuntimeDefault")
	}
	return errors.Join(errs...)
}

// account wants a token of the API server where the fallback follows a Service, and in no other place.
func account(s Set, p *core.PodSpec, n Node) error {
	var errs []error
	token := p.AutomountServiceAccountToken == nil || *p.AutomountServiceAccountToken
	switch {
	case token && n.Follows == "" && !n.NamesPods && !n.ReviewsAccess:
		errs = append(errs, errors.New("a token of the API server is mounted, and nothing needs it"))
	case !token && n.Follows != "":
		errs = append(errs, fmt.Errorf("no token of the API server is mounted, and the fallback to %s needs it", n.Follows))
	case !token && (n.NamesPods || n.ReviewsAccess):
		errs = append(errs, errors.New("no token of the API server is mounted, and the diagnostics need it to name pods or to ask who may ask"))
	}
	account := s.Accounts[p.ServiceAccountName]
	if account == nil {
		return errors.Join(append(errs, fmt.Errorf("service account %q is not among the objects", p.ServiceAccountName))...)
	}
	if account.AutomountServiceAccountToken == nil || *account.AutomountServiceAccountToken {
		errs = append(errs, fmt.Errorf("service account %s mounts its token in every pod that names it", account.Name))
	}
	return errors.Join(errs...)
}

func memory(c *core.Container) error {
	limit, ok := c.Resources.Limits[core.ResourceMemory]
	if !ok || limit.IsZero() {
		return errors.New("no limit for memory")
	}
	if _, ok := c.Resources.Limits[core.ResourceCPU]; ok {
		return errors.New("a limit for the CPU throttles the DNS of the node")
	}
	for _, e := range c.Env {
		if e.Name == "GOMEMLIMIT" && e.ValueFrom != nil && e.ValueFrom.ResourceFieldRef != nil &&
			e.ValueFrom.ResourceFieldRef.Resource == "limits.memory" && e.ValueFrom.ResourceFieldRef.ContainerName == c.Name {
			return nil
		}
	}
	return errors.New("GOMEMLIMIT does not follow the limit for memory")
}

// mounts wants nothing of the node but the xtables lock, and that only where iptables is in use; and no Secret but the
// token of the page.
func mounts(s Set, p *core.PodSpec, c *core.Container, n Node) error {
	var errs []error
	lock, token := false, ""
	for _, v := range p.Volumes {
		switch {
		case v.Secret != nil && v.Secret.SecretName == "localcache-diag" && n.ServesPage:
			token = v.Name
			if v.Secret.Optional != nil && *v.Secret.Optional {
				errs = append(errs, errors.New("the token of the page is optional: without it the process would not start, where the pod could wait"))
			}
			if mode := v.Secret.DefaultMode; mode == nil || *mode != 0o400 {
				errs = append(errs, errors.New("the token of the page is for others to read too"))
			}
		case v.HostPath != nil && v.HostPath.Path == "/run/xtables.lock" && *v.HostPath.Type == core.HostPathFileOrCreate:
			lock = true
		case v.HostPath != nil:
			errs = append(errs, fmt.Errorf("volume %s mounts %s of the node", v.Name, v.HostPath.Path))
		case v.EmptyDir != nil && (v.EmptyDir.SizeLimit == nil || v.EmptyDir.Medium != core.StorageMediumMemory):
			errs = append(errs, fmt.Errorf("volume %s may fill the node's disk", v.Name))
		case v.EmptyDir != nil:
		case v.ConfigMap == nil:
			errs = append(errs, fmt.Errorf("volume %s is of an unexpected kind", v.Name))
		}
	}
	if lock != n.Lock {
		errs = append(errs, fmt.Errorf("the xtables lock is mounted: %t, want %t", lock, n.Lock))
	}
	if token == "" && n.ServesPage {
		errs = append(errs, errors.New("the token of the page is not among the volumes"))
	}
	for _, m := range c.VolumeMounts {
		if token != "" && m.Name == token && (!m.ReadOnly || m.MountPath != path.Dir(pageToken)) {
			errs = append(errs, fmt.Errorf("the token of the page is at %s, read-only: %t", m.MountPath, m.ReadOnly))
		}
		if m.SubPath != "" {
			errs = append(errs, fmt.Errorf("mount %s by subPath never sees a change", m.MountPath))
		}
		if m.MountPath == "/run/xtables.lock" && m.ReadOnly {
			errs = append(errs, errors.New("the xtables lock is mounted read-only"))
		}
	}
	return errors.Join(errs...)
}

// services wants the Services of the set to find the pods of ours and their metrics.
func services(s Set) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		svc := s.Services[name]
		if svc.Spec.Selector["k8s-app"] == "kube-dns" {
			continue // in front of kube-dns itself
		}
		if !labels.SelectorFromSet(svc.Spec.Selector).Matches(labels.Set(s.DaemonSet.Spec.Template.Labels)) {
			errs = append(errs, fmt.Errorf("service %s selects no pod of ours", name))
		}
		if svc.Spec.ClusterIP != core.ClusterIPNone {
			errs = append(errs, fmt.Errorf("service %s is not headless: each node's metrics are its own", name))
		}
		want := s.DaemonSet.Spec.Template.Annotations["prometheus.io/port"]
		if p := svc.Spec.Ports; len(p) != 1 || strconv.Itoa(int(p[0].Port)) != want || p[0].TargetPort.String() != want {
			errs = append(errs, fmt.Errorf("service %s does not lead to the metrics at port %s", name, want))
		}
	}
	return errors.Join(errs...)
}

// Args are the container's arguments as the kubelet hands them over: $(NAME) replaced from the
// environment, service links included; a name that is not there stays as it is.
func Args(c *core.Container, n Node) []string {
	env := map[string]string{}
	for name, host := range n.ServiceHosts {
		env[strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"_SERVICE_HOST"] = host
	}
	for _, e := range c.Env {
		if e.ValueFrom == nil {
			env[e.Name] = e.Value
		}
	}
	var args []string
	for _, a := range c.Args {
		args = append(args, expansion.Expand(a, expansion.MappingFuncFor(env)))
	}
	return args
}

// Flag returns the value of -name in args written as -name=value.
func Flag(args []string, name string) (string, bool) {
	for _, a := range args {
		if v, ok := strings.CutPrefix(a, "-"+name+"="); ok {
			return v, true
		}
	}
	return "", false
}

// mountedCorefile finds the text that -conf names through the mounts.
func mountedCorefile(s Set, p *core.PodSpec, c *core.Container) (string, error) {
	conf, ok := Flag(c.Args, "conf")
	if !ok {
		return "", errors.New("no -conf=FILE among the arguments")
	}
	for _, m := range c.VolumeMounts {
		rel, ok := strings.CutPrefix(conf, m.MountPath+"/")
		if !ok {
			continue
		}
		for _, v := range p.Volumes {
			if v.Name != m.Name || v.ConfigMap == nil {
				continue
			}
			cm := s.ConfigMaps[v.ConfigMap.Name]
			if cm == nil {
				return "", fmt.Errorf("ConfigMap %s, mounted at %s, is not among the objects", v.ConfigMap.Name, m.MountPath)
			}
			for _, item := range v.ConfigMap.Items {
				if text, ok := cm.Data[item.Key]; ok && item.Path == rel {
					return text, nil
				}
			}
		}
	}
	return "", fmt.Errorf("-conf=%s is in no ConfigMap that is mounted", conf)
}

func sameSet[T comparable](a, b []T) bool {
	if len(a) != len(b) {
		return false
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			return false
		}
	}
	return true
}

// probeAddress is where a probe knocks.
func probeAddress(p *core.Probe, path string) (netip.AddrPort, error) {
	if p == nil || p.HTTPGet == nil {
		return netip.AddrPort{}, fmt.Errorf("no HTTP probe for %s", path)
	}
	if p.HTTPGet.Path != path {
		return netip.AddrPort{}, fmt.Errorf("the probe asks for %s, want %s", p.HTTPGet.Path, path)
	}
	return netip.ParseAddrPort(p.HTTPGet.Host + ":" + strconv.Itoa(p.HTTPGet.Port.IntValue()))
}

package deploy

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"k8s.io/kubernetes/pkg/apis/core"
	"k8s.io/kubernetes/pkg/apis/rbac"
)

// rights wants list and watch of EndpointSlices for the account of the pods where the fallback follows a Service,
// and nothing more.
func rights(s Set, p *core.PodSpec, n Node) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	c := &p.Containers[0]
	endpoints := ""
	for _, e := range c.Env {
		if e.Name == "KUBE_DNS_ENDPOINTS" {
			endpoints = e.Value
		}
	}
	if endpoints != n.Follows {
		fail("KUBE_DNS_ENDPOINTS is %q, want %q", endpoints, n.Follows)
	}
	if n.Follows == "" {
		if len(s.Roles)+len(s.Bindings) > 0 {
			fail("%d Roles and %d RoleBindings, and nothing needs them", len(s.Roles), len(s.Bindings))
		}
		return errors.Join(errs...)
	}
	if namespace, _, _ := strings.Cut(n.Follows, "/"); namespace != Namespace {
		fail("the fallback follows %s, and the Role is for %s", n.Follows, Namespace)
	}
	if len(s.Roles) != 1 || len(s.Bindings) != 1 {
		fail("%d Roles and %d RoleBindings, want one each", len(s.Roles), len(s.Bindings))
		return errors.Join(errs...)
	}
	want := []rbac.PolicyRule{{APIGroups: []string{"discovery.k8s.io"}, Resources: []string{"endpointslices"}, Verbs: []string{"list", "watch"}}}
	if got := s.Roles[0].Rules; !reflect.DeepEqual(got, want) {
		fail("the rights are %+v, want list and watch of endpointslices", got)
	}
	b := s.Bindings[0]
	if b.RoleRef.Kind != "Role" || b.RoleRef.Name != s.Roles[0].Name {
		fail("the RoleBinding is to %s %s, want Role %s", b.RoleRef.Kind, b.RoleRef.Name, s.Roles[0].Name)
	}
	if !forAccount(b.Subjects, p.ServiceAccountName) {
		fail("the RoleBinding is for %+v, want service account %s alone", b.Subjects, p.ServiceAccountName)
	}
	return errors.Join(errs...)
}

// podRights wants what the diagnostics need to name pods, and no more: it is the only right outside the namespace.
func podRights(s Set, p *core.PodSpec, n Node) error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	node := slices.ContainsFunc(p.Containers[0].Env, func(e core.EnvVar) bool {
		return e.Name == "NODE_NAME" && e.ValueFrom != nil && e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "spec.nodeName"
	})
	if !node {
		fail("NODE_NAME is not the node's name: the pods of the node cannot be asked for, and the diagnostics do not say where they are from")
	}
	var bindings []*rbac.ClusterRoleBinding
	reviews := false
	for _, b := range s.ClusterBindings {
		if b.RoleRef.Kind == "ClusterRole" && b.RoleRef.Name == "system:auth-delegator" {
			reviews = true
			if !forAccount(b.Subjects, p.ServiceAccountName) {
				fail("the right to review tokens is for %+v, want service account %s alone", b.Subjects, p.ServiceAccountName)
			}
			continue
		}
		bindings = append(bindings, b)
	}
	if reviews != n.ReviewsAccess {
		fail("tokens can be reviewed: %t, want %t", reviews, n.ReviewsAccess)
	}
	if !n.NamesPods {
		if len(s.ClusterRoles)+len(bindings) > 0 {
			fail("%d ClusterRoles and %d ClusterRoleBindings, and nothing needs them", len(s.ClusterRoles), len(bindings))
		}
		return errors.Join(errs...)
	}
	if len(s.ClusterRoles) != 1 || len(bindings) != 1 {
		fail("%d ClusterRoles and %d ClusterRoleBindings, want one each", len(s.ClusterRoles), len(bindings))
		return errors.Join(errs...)
	}
	want := []rbac.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list", "watch"}}}
	if r := s.ClusterRoles[0]; !reflect.DeepEqual(r.Rules, want) || r.AggregationRule != nil {
		fail("the rights are %+v, want list and watch of pods", r.Rules)
	}
	b := bindings[0]
	if b.RoleRef.Kind != "ClusterRole" || b.RoleRef.Name != s.ClusterRoles[0].Name {
		fail("the ClusterRoleBinding is to %s %s, want ClusterRole %s", b.RoleRef.Kind, b.RoleRef.Name, s.ClusterRoles[0].Name)
	}
	if !forAccount(b.Subjects, p.ServiceAccountName) {
		fail("the ClusterRoleBinding is for %+v, want service account %s alone", b.Subjects, p.ServiceAccountName)
	}
	return errors.Join(errs...)
}

// forAccount tells whether a binding is for one service account and nobody else.
func forAccount(subjects []rbac.Subject, name string) bool {
	return len(subjects) == 1 && subjects[0].Kind == "ServiceAccount" && subjects[0].Name == name && subjects[0].Namespace == Namespace
}

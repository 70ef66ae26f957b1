package deploy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	openapi_v2 "github.com/google/gnostic-models/openapiv2"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kube-openapi/pkg/util/proto"
	openapivalidation "k8s.io/kube-openapi/pkg/util/proto/validation"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/apps"
	_ "k8s.io/kubernetes/pkg/apis/apps/install" // makes the kinds of apps/v1 known to legacyscheme
	appsvalidation "k8s.io/kubernetes/pkg/apis/apps/validation"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // and those of v1
	corevalidation "k8s.io/kubernetes/pkg/apis/core/validation"
	"k8s.io/kubernetes/pkg/apis/rbac"
	_ "k8s.io/kubernetes/pkg/apis/rbac/install" // and those of rbac.authorization.k8s.io/v1
	rbacvalidation "k8s.io/kubernetes/pkg/apis/rbac/validation"
	"sigs.k8s.io/yaml"
)

// Decode reads an object as the API server does with fieldValidation=Strict, and sets its defaults.
func Decode(o Object) (runtime.Object, error) {
	codecs := serializer.NewCodecFactory(legacyscheme.Scheme, serializer.EnableStrict)
	obj, _, err := codecs.UniversalDecoder().Decode(o.YAML, nil, nil)
	return obj, err
}

// Validate applies the API server's own validation for the creation of an object that Decode returned.
func Validate(obj runtime.Object) error {
	var errs field.ErrorList
	switch o := obj.(type) {
	case *apps.DaemonSet:
		errs = appsvalidation.ValidateDaemonSet(o, pod.GetValidationOptionsFromPodTemplate(&o.Spec.Template, nil))
	case *core.Service:
		// Before it validates, the server keeps the old field and the new one alike.
		if len(o.Spec.ClusterIPs) == 0 && o.Spec.ClusterIP != "" {
			o.Spec.ClusterIPs = []string{o.Spec.ClusterIP}
		}
		errs = corevalidation.ValidateServiceCreate(o)
	case *core.ConfigMap:
		errs = corevalidation.ValidateConfigMap(o)
	case *core.ServiceAccount:
		errs = corevalidation.ValidateServiceAccount(o)
	case *rbac.Role:
		errs = rbacvalidation.ValidateRole(o)
	case *rbac.ClusterRole:
		errs = rbacvalidation.ValidateClusterRole(o, rbacvalidation.ClusterRoleValidationOptions{})
	case *rbac.ClusterRoleBinding:
		errs = rbacvalidation.ValidateClusterRoleBinding(o)
	case *rbac.RoleBinding:
		errs = rbacvalidation.ValidateRoleBinding(o)
	default:
		return fmt.Errorf("%T: no validation is wired up for this kind", obj)
	}
	return errs.ToAggregate()
}

// Schema is the OpenAPI document of the Kubernetes release in go.mod.
type Schema struct {
	models proto.Models
	names  map[schema.GroupVersionKind]string
}

// LoadSchema reads the document that k8s.io/kubernetes carries, from the module cache.
func LoadSchema() (*Schema, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return nil, fmt.Errorf("go list -m k8s.io/kubernetes: %w", err)
	}
	raw, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "api/openapi-spec/swagger.json"))
	if err != nil {
		return nil, err
	}
	doc, err := openapi_v2.ParseDocument(raw)
	if err != nil {
		return nil, err
	}
	s := &Schema{names: map[schema.GroupVersionKind]string{}}
	if s.models, err = proto.NewOpenAPIData(doc); err != nil {
		return nil, err
	}
	for _, name := range s.models.ListModels() {
		for _, gvk := range kindsOf(s.models.LookupModel(name)) {
			s.names[gvk] = name
		}
	}
	return s, nil
}

// kindsOf reads the extension by which a model says of which kinds it is the schema.
func kindsOf(m proto.Schema) []schema.GroupVersionKind {
	list, _ := m.GetExtensions()["x-kubernetes-group-version-kind"].([]any)
	var kinds []schema.GroupVersionKind
	for _, e := range list {
		entry, _ := e.(map[any]any)
		group, _ := entry["group"].(string)
		version, _ := entry["version"].(string)
		kind, _ := entry["kind"].(string)
		kinds = append(kinds, schema.GroupVersionKind{Group: group, Version: version, Kind: kind})
	}
	return kinds
}

// Validate holds an object against the schema of its kind: unknown fields, missing ones, wrong types.
func (s *Schema) Validate(o Object) error {
	var content map[string]any
	if err := yaml.UnmarshalStrict(o.YAML, &content); err != nil {
		return err
	}
	apiVersion, _ := content["apiVersion"].(string)
	kind, _ := content["kind"].(string)
	gvk := schema.FromAPIVersionAndKind(apiVersion, kind)
	name, ok := s.names[gvk]
	if !ok {
		return fmt.Errorf("the published schema knows no %s", gvk)
	}
	return errors.Join(openapivalidation.ValidateModel(content, s.models.LookupModel(name), kind)...)
}

// Package deploy checks what `kubectl apply -k deploy/` would send, without a cluster.
//
// Each kustomization is built in memory with kustomize's own library. Every object that comes out has to
// pass three judges and then ours:
//
//   - the API server's strict decoder and defaults, from k8s.io/kubernetes: unknown, misspelled and
//     doubled fields, wrong types;
//   - the OpenAPI schema that this Kubernetes release publishes, through kubectl's validation of it;
//   - the API server's validation of the whole object;
//   - the policy of this project: what a node-local cache may and must do (policy.go, corefile.go).
//
// The module is one of its own because k8s.io/kubernetes has no place among the program's dependencies.
package deploy

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Root is deploy/ as seen from this package.
const Root = "../../deploy"

// Object is one object of a built kustomization.
type Object struct {
	Kind, Name, Namespace string
	YAML                  []byte
}

func (o Object) String() string { return fmt.Sprintf("%s %s/%s", o.Kind, o.Namespace, o.Name) }

// Tree is a copy of deploy/ in memory, in which a test may change files.
type Tree struct{ files filesys.FileSystem }

// LoadTree reads deploy/ from the disk.
func LoadTree(root string) (Tree, error) {
	t := Tree{filesys.MakeFsInMemory()}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return t.Write(filepath.ToSlash(rel), content)
	})
	return t, err
}

// Read returns a file of the tree, named relative to deploy/.
func (t Tree) Read(name string) ([]byte, error) { return t.files.ReadFile(path.Join("/deploy", name)) }

// Write sets the content of a file of the tree.
func (t Tree) Write(name string, content []byte) error {
	full := path.Join("/deploy", name)
	if err := t.files.MkdirAll(path.Dir(full)); err != nil {
		return err
	}
	return t.files.WriteFile(full, content)
}

// Build runs the kustomization in the folder dir, relative to deploy/, with the options of
// kubectl apply -k.
func (t Tree) Build(dir string) ([]Object, error) {
	res, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(t.files, path.Join("/deploy", dir))
	if err != nil {
		return nil, err
	}
	var objects []Object
	for _, r := range res.Resources() {
		y, err := r.AsYAML()
		if err != nil {
			return nil, err
		}
		objects = append(objects, Object{Kind: r.GetKind(), Name: r.GetName(), Namespace: r.GetNamespace(), YAML: y})
	}
	return objects, nil
}

// Package image writes container images of one layer without a container engine, as archives that
// `ctr images import`, `docker load` and `podman load` read.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
)

// Image is an image to write.
type Image struct {
	// Name with a tag, such as registry.example.org/localcache:v1.
	Name       string
	Entrypoint []string
	// Files are paths of the machine by their paths in the image, without the leading slash. Symbolic links
	// are followed.
	Files map[string]string
	// Links are symbolic links: the target by the path in the image.
	Links map[string]string
}

// Write writes the archive. The same files give the same archive.
func (i Image) Write(file string) error {
	layer, err := i.layer()
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Name, err)
	}
	type object = map[string]any
	config, err := json.Marshal(object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Entrypoint": i.Entrypoint, "Env": []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/"}, "WorkingDir": "/"},
		"rootfs": object{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	configName := fmt.Sprintf("%x.json", sha256.Sum256(config))
	manifest, err := json.Marshal([]object{{"Config": configName, "RepoTags": []string{i.Name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name    string
		content []byte
	}{{configName, config}, {"layer.tar", layer}, {"manifest.json", manifest}} {
		if err := add(w, f.name, f.content, 0o644); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(file, b.Bytes(), 0o644)
}

func (i Image) layer() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range i.folders() {
		if err := w.WriteHeader(&tar.Header{Name: d + "/", Typeflag: tar.TypeDir, Mode: 0o755}); err != nil {
			return nil, err
		}
	}
	for _, name := range sorted(i.Files) {
		info, err := os.Stat(i.Files[name])
		if err != nil {
			return nil, err
		}
		content, err := os.ReadFile(i.Files[name])
		if err != nil {
			return nil, err
		}
		if err := add(w, name, content, int64(info.Mode().Perm())); err != nil {
			return nil, err
		}
	}
	for _, name := range sorted(i.Links) {
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: i.Links[name], Mode: 0o777}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), w.Close()
}

// folders are all that hold something, parents first.
func (i Image) folders() []string {
	all := make(map[string]string)
	for _, names := range []map[string]string{i.Files, i.Links} {
		for name := range names {
			for d := path.Dir(name); d != "."; d = path.Dir(d) {
				all[d] = ""
			}
		}
	}
	return sorted(all)
}

func sorted(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, strings.TrimPrefix(name, "/"))
	}
	slices.Sort(names)
	return names
}

func add(w *tar.Writer, name string, content []byte, mode int64) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(content))}); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}

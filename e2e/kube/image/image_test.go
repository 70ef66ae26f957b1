package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// entries reads an archive: contents by name, and the attributes of folders and links.
func entries(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for a := tar.NewReader(r); ; {
		h, err := a.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(a)
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			all[h.Name] = "folder"
		case tar.TypeSymlink:
			all[h.Name] = "link to " + h.Linkname
		default:
			all[h.Name] = string(content)
		}
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("code"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "image.tar")
	i := Image{
		Name: "example.org/name:tag", Entrypoint: []string{"/bin/program"},
		Files: map[string]string{"bin/program": program}, Links: map[string]string{"usr/bin": "../bin"},
	}
	if err := i.Write(archive); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	outer := entries(t, bytes.NewReader(content))
	var manifest []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal([]byte(outer["manifest.json"]), &manifest); err != nil || len(manifest) != 1 {
		t.Fatalf("manifest %q: %v", outer["manifest.json"], err)
	}
	if m := manifest[0]; !slices.Equal(m.RepoTags, []string{"example.org/name:tag"}) || outer[m.Config] == "" {
		t.Errorf("manifest %+v", m)
	}
	layer := entries(t, bytes.NewReader([]byte(outer[manifest[0].Layers[0]])))
	for name, want := range map[string]string{"bin/": "folder", "usr/": "folder", "bin/program": "code", "usr/bin": "link to ../bin"} {
		if layer[name] != want {
			t.Errorf("%s is %q, want %q", name, layer[name], want)
		}
	}
}

// A program in an image without a distribution needs its loader and its libraries.
func TestAddProgramTakesItsLibraries(t *testing.T) {
	var i Image
	if err := i.AddProgram("ls", "/bin/ls"); err != nil {
		t.Fatal(err)
	}
	libc := slices.ContainsFunc(sorted(i.Files), func(name string) bool { return filepath.Base(name) == "libc.so.6" })
	if i.Files["ls"] != "/bin/ls" || !libc {
		t.Errorf("files: %v", i.Files)
	}
}

func TestEntrypointOf(t *testing.T) {
	if e, err := EntrypointOf("../../../Dockerfile"); err != nil || e != "/localcache" {
		t.Errorf("the project's own: %q, %v", e, err)
	}
	two := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(two, []byte("FROM scratch\nENTRYPOINT [\"/a\"]\nFROM scratch\nENTRYPOINT [\"/b\"]\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := EntrypointOf(two); err == nil {
		t.Error("two entry points are not refused")
	}
}

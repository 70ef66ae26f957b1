package doc_test

import (
	"maps"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "localcache.dev/localcache/"

// shortName returns the name under which the table of doc/architecture.md lists an import, or "" for the standard library.
// Packages of our own lose internal/, libraries their host; all of CoreDNS with its server caddy is one name.
func shortName(path string) string {
	if own, ok := strings.CutPrefix(path, module); ok {
		return strings.TrimPrefix(own, "internal/")
	}
	parts := strings.Split(path, "/")
	switch {
	case path+"/" == module:
		return "Corefile.example"
	case !strings.Contains(parts[0], "."):
		return ""
	case parts[1] == "coredns":
		return "CoreDNS"
	case parts[1] == "prometheus":
		return "prometheus"
	case parts[0] == "golang.org":
		return "x/" + parts[2]
	case parts[0] == "github.com":
		return parts[1] + "/" + parts[2]
	}
	return path
}

// TestPackageTable compares the table of packages in doc/architecture.md with the packages and their imports, and the map
// with the table.
func TestPackageTable(t *testing.T) {
	list := exec.Command("go", "list", "-f", `{{if .GoFiles}}{{.ImportPath}} {{join .Imports " "}}{{end}}`, "./cmd/...", "./plugin/...", "./internal/...")
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	imported := map[string]string{} // package, as in the table → its imports
	for line := range strings.Lines(string(out)) {
		words := strings.Fields(line)
		names := map[string]bool{}
		for _, path := range words[1:] {
			if name := shortName(path); name != "" {
				names[name] = true
			}
		}
		imported[strings.TrimPrefix(words[0], module)] = strings.Join(slices.Sorted(maps.Keys(names)), ", ")
	}
	drawing := read(t, "doc/packages.svg")
	listed := map[string]bool{}
	row := regexp.MustCompile("(?m)^\\| `((?:cmd|plugin|internal)/[^`]*)` \\|[^|]*\\| ([^|]*) \\|$")
	for _, m := range row.FindAllStringSubmatch(read(t, "doc/architecture.md"), -1) {
		name, imports := m[1], strings.ReplaceAll(m[2], "–", "")
		listed[name] = true
		want, ok := imported[name]
		switch {
		case !ok:
			t.Errorf("doc/architecture.md lists %s, which is no package", name)
		case imports != want:
			t.Errorf("doc/architecture.md, imports of %s: %s\nwant: %s", name, imports, want)
		}
		if _, shown, _ := strings.Cut(name, "/"); !strings.Contains(drawing, ">"+shown+"<") {
			t.Errorf("doc/packages.svg does not show %s", shown)
		}
	}
	for name, imports := range imported {
		if !listed[name] {
			t.Errorf("doc/architecture.md does not list %s, which imports: %s", name, imports)
		}
	}
}

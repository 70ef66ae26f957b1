// Package forward runs CoreDNS's own end-to-end tests against a chain with localcache's forward and cache in place of
// CoreDNS's, and again with CoreDNS's: every test that passes with CoreDNS's must pass with localcache's.
//
//	go test ./e2e/forward -stock -v
//
// The tests are read from the CoreDNS release of go.mod when they are run: the files whose Corefiles use forward,
// except those that need a cluster or an etcd, and proxy_test.go, which uses internals of CoreDNS's forward.
package forward

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var stock = flag.Bool("stock", false, "run CoreDNS's own tests, about ten seconds after a long compilation")

// files lists files of CoreDNS's test directory, and what they need of it.
var files = []string{
	"server.go", "example_test.go", "cache_test.go", "file_cname_proxy_test.go", "metrics_test.go",
	"proxy_health_test.go", "reload_test.go", "secondary_test.go", "server_test.go", "siit_test.go", "multisocket_test.go", "metrics_test.go", "auto_test.go",
}

func TestCoreDNS(t *testing.T) {
	if !*stock {
		t.Skip("takes a long compilation: -stock runs it")
	}
	wanted := run(t, "stock")
	got := run(t, "ours")
	passed := 0
	for name, action := range wanted {
		switch {
		case action != "pass":
			t.Logf("%s: %s with CoreDNS's own, %s with ours", name, action, got[name])
		case got[name] == "pass":
			passed++
		default:
			t.Errorf("%s passes with CoreDNS's own forward and cache; with ours: %q", name, got[name])
		}
	}
	t.Logf("%d tests pass with both", passed)
	// Fewer would mean that the tests did not run.
	if passed < 30 {
		t.Errorf("%d tests passed, want at least 30", passed)
	}
}

// run tests a package that exists only in an overlay: CoreDNS's files, the plugins they need, and one of the two
// pairs of forward and cache. It returns the result of each test.
func run(t *testing.T, which string) map[string]string {
	t.Helper()
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	source := filepath.Join(strings.TrimSpace(string(module)), "test")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	virtual := filepath.Join(here, "coredns_"+which)
	overlay := map[string]string{
		filepath.Join(virtual, "plugins.go"):   filepath.Join(here, "testdata", "plugins.go.txt"),
		filepath.Join(virtual, "forward.go"):   filepath.Join(here, "testdata", which+".go.txt"),
		filepath.Join(virtual, "main_test.go"): filepath.Join(here, "testdata", "main_test.go.txt"),
	}
	for _, f := range files {
		overlay[filepath.Join(virtual, f)] = filepath.Join(source, f)
	}
	// The server's file imports all plugins, CoreDNS's forward and cache among them.
	server, err := os.ReadFile(filepath.Join(source, "server.go"))
	if err != nil {
		t.Fatal(err)
	}
	const all = `_ "github.com/coredns/coredns/core/plugin"`
	if !strings.Contains(string(server), all) {
		t.Fatalf("%s/server.go does not import all plugins any more", source)
	}
	dir := t.TempDir()
	overlay[filepath.Join(virtual, "server.go")] = filepath.Join(dir, "server.go")
	if err := os.WriteFile(filepath.Join(dir, "server.go"), []byte(strings.Replace(string(server), all, "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}

	binary := filepath.Join(dir, which+".test")
	build := exec.Command("go", "test", "-c", "-vet=off", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, "./coredns_"+which)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	cmd := exec.Command("go", "tool", "test2json", "-t", binary, "-test.v=test2json", "-test.timeout=5m")
	cmd.Dir = t.TempDir()
	out, err := cmd.Output()
	ended := map[string]string{}
	output := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal([]byte(line), &e) != nil {
			continue
		}
		switch e.Action {
		case "pass", "fail", "skip":
			if e.Test != "" {
				ended[e.Test] = e.Action
			}
		case "output":
			output[e.Test] = append(output[e.Test], e.Output)
		}
	}
	if len(ended) == 0 {
		t.Fatalf("%s: no test ran: %v\n%s", which, err, out)
	}
	for name, action := range ended {
		if action == "fail" {
			t.Log(fmt.Sprintf("%s, %s:\n", which, name) + strings.Join(output[name], ""))
		}
	}
	return ended
}

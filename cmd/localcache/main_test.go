package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The program is tested as a process: testscript runs this test binary under the program's name.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"localcache": main, kubectlPlugin: main, fakeKubectlName: fakeKubectl})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

// TestProgramHasNoLab keeps the lab, which makes namespaces, out of the program that holds NET_ADMIN on every node.
func TestProgramHasNoLab(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if !slices.Contains(deps, "localcache.dev/localcache/internal/nodenet") {
		t.Fatalf("go list shows no dependency on nodenet: %d packages", len(deps))
	}
	for _, d := range deps {
		if strings.HasPrefix(d, "localcache.dev/localcache/internal/lab") || d == "localcache.dev/localcache/internal/demo" {
			t.Errorf("the program contains %s", d)
		}
	}
}

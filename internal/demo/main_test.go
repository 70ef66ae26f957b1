package demo

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"localcache.dev/localcache/internal/lab"
)

// TestMain runs the demo if the test binary was started as localcache-demo, else the tests.
func TestMain(m *testing.M) {
	lab.Init()
	if os.Args[0] == programName {
		os.Exit(Run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// buildProgram builds localcache, with the race detector where the tests have it, and returns its path.
func buildProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "localcache")
	args := []string{"build", "-o", path}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "localcache.dev/localcache/cmd/localcache")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(fmt.Errorf("%v: %w\n%s", cmd.Args, err, out))
	}
	return path
}

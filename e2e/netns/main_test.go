// Package netns tests localcache from outside: the program as shipped, on the node of a lab of network namespaces,
// with real sockets, packet rules and connection tracking. The tests link nothing of the program; they see what pods,
// kube-dns, the kernel, the metrics and the log show.
//
// A test starts the program with start, asks or streams from a pod, and breaks something. Tests that depend on the
// kind of rules run once for each backend of this machine (see eachBackend). LOCALCACHE_BIN names a program to test
// instead of one that is built first.
package netns

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"localcache.dev/localcache/internal/lab"
)

// envBinary is the program under test. It is set for the run inside of the lab's world, where modules
// could not be downloaded.
const envBinary = "LOCALCACHE_BIN"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	lab.Init()
	runStage()
	flag.Parse()
	if testing.Short() { // every test here needs a lab; without one the program need not be built
		return lab.Main(m)
	}
	if os.Getenv(envBinary) != "" {
		return lab.Main(m)
	}
	dir, err := os.MkdirTemp("", "localcache-e2e-")
	if err == nil {
		defer os.RemoveAll(dir) // an own directory in the temporary one: nothing depends on its removal
		err = build(filepath.Join(dir, "localcache"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "build the program under test: %v\n", err)
		return 1
	}
	return lab.Main(m)
}

// build builds the program from the module that the tests stand in, and names it in the environment.
func build(binary string) error {
	args := []string{"build", "-o", binary}
	if raceEnabled {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, "localcache.dev/localcache/cmd/localcache")...)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%v: %w", cmd.Args, err)
	}
	return os.Setenv(envBinary, binary)
}

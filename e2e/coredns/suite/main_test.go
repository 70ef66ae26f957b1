package test

import (
	"fmt"
	"os"
	"testing"

	"localcache.dev/localcache/internal/lab"
)

// envAlone tells the programs that the tests start that they are inside: a test runs this program again and ends it
// by a signal, which would otherwise end the outer of two processes.
const envAlone = "LOCALCACHE_ALONE"

// TestMain runs CoreDNS's tests in a network of their own, because some of them listen on fixed ports, which may be
// in use on the machine.
func TestMain(m *testing.M) {
	if os.Getenv(envAlone) != "" {
		os.Exit(m.Run())
	}
	os.Exit(lab.Main(alone{m}))
}

type alone struct{ *testing.M }

func (a alone) Run() int {
	if err := os.Setenv(envAlone, "1"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return a.M.Run()
}

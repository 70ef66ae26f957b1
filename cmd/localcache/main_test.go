package main

import (
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"localcache.dev/localcache/internal/lab"
)

// The program is tested as a process: testscript runs this test binary under the program's name.
func TestMain(m *testing.M) {
	lab.Init()
	testscript.Main(m, map[string]func(){"localcache": main, kubectlPlugin: main, fakeKubectlName: fakeKubectl})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata/script",
		UpdateScripts: os.Getenv("UPDATE_SCRIPTS") != "",
	})
}

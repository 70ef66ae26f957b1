// Package uml holds the tests that need a kernel of their own: what they show, the build machine's kernel
// may be unable to show (it may have no dummy device) or must not (the size of the connection tracking
// table is one for the whole machine).
//
// run.sh boots a User-Mode Linux kernel in which this test binary is the first process (init_test.go) and
// then, as a child of that, runs the tests as root of the guest. There the guest's own network namespace
// is the node: only there can nf_conntrack_max be written. A pod and kube-dns are namespaces beside it
// (cluster_test.go), and the localcache under test is the very binary that `make build` makes, driven as a
// process (localcache_test.go). Translation of the Service address is iptables-legacy's, because the guest's
// nf_tables has no IPv4.
//
// In a plain `go test` these tests are skipped and say why; what needs no guest runs.
package uml

import (
	"flag"
	"fmt"
	"os"
	"testing"
)

// Set by run.sh.
var (
	asInit     = flag.Bool("init", false, "be the first process of a User-Mode Linux guest, and run the tests in it")
	modules    = flag.String("modules", "", "`directory` of the guest kernel's modules, with modules.dep")
	report     = flag.String("report", "", "`directory` of the host into which the tests' exit status is written")
	localcache = flag.String("localcache", "", "the localcache `binary` under test")
)

// guestMark is in the environment of the tests that init runs. The flags alone prove no guest.
const guestMark = "LOCALCACHE_UML_GUEST"

func TestMain(m *testing.M) {
	flag.Parse()
	if *asInit {
		if os.Getpid() != 1 {
			fmt.Fprintln(os.Stderr, "-init is for the first process of a guest kernel: run e2e/uml/run.sh")
			os.Exit(2)
		}
		bootGuest() // does not return
	}
	os.Exit(m.Run())
}

// needGuest skips the test outside of the guest.
func needGuest(t *testing.T) {
	t.Helper()
	if os.Getenv(guestMark) == "" {
		t.Skip("needs a kernel of its own: 'make e2e-uml' runs it in User-Mode Linux")
	}
}

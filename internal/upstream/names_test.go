package upstream

import (
	"fmt"
	"sync"
	"testing"
	"unsafe"
)

// Names are returned unchanged, with concurrent readers, and a repeated one is the same string.
func TestNames(t *testing.T) {
	var table nameTable
	a, b := table.of([]byte("ns.dns.cluster.local.")), table.of([]byte("ns.dns.cluster.local."))
	if a != "ns.dns.cluster.local." || unsafe.StringData(a) != unsafe.StringData(b) {
		t.Errorf("%q and %q are two strings", a, b)
	}
	if n := testing.AllocsPerRun(100, func() { table.of([]byte("ns.dns.cluster.local.")) }); n > 0 {
		t.Errorf("%v allocations for a name that is known", n)
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 5000 {
				want := fmt.Sprintf("n%d.example.", (i*(g+1))%2000) // more than there is room for
				if got := table.of([]byte(want)); got != want {
					t.Errorf("%q came out as %q", want, got)
					return
				}
			}
		})
	}
	wg.Wait()
}

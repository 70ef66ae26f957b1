package conntrack

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

var entries = flag.Int("conntrack.entries", 0, "TestMemory fills a table with so many entries, 200 of them of the service, and compares with netlink's functions")

// TestMemory prints what finding and deleting the entries of one service costs in a large table, with the functions of this
// package and with those of vishvananda/netlink, as the peak of resident memory and time. It is a measurement: run it by
// -conntrack.entries=200000.
func TestMemory(t *testing.T) {
	if *entries == 0 {
		t.Skip("run it by -conntrack.entries=200000")
	}
	nettest.NewNamespace(t)
	to := Service{Proto: rule.UDP, At: netip.MustParseAddrPort("169.254.25.10:53")}
	fill := func(n int, dst string) {
		for i := range n {
			createFlow(t, unix.IPPROTO_UDP, fmt.Sprintf("10.%d.%d.2:%d", i>>24, i>>16&255, i&0xffff), dst)
		}
	}
	fill(*entries, "10.96.0.10:53")
	for name, forget := range map[string]func() (int, error){
		"own": func() (int, error) {
			found, err := Kernel().Find(context.Background(), []Service{to})
			if err != nil {
				return 0, err
			}
			return Kernel().Forget(context.Background(), found)
		},
		"netlink": func() (int, error) {
			filter := &netlink.ConntrackFilter{}
			if err := filter.AddProtocol(unix.IPPROTO_UDP); err != nil {
				return 0, err
			}
			if err := filter.AddIPNet(netlink.ConntrackOrigDstIP, netlink.NewIPNet(to.At.Addr().AsSlice())); err != nil {
				return 0, err
			}
			if err := filter.AddPort(netlink.ConntrackOrigDstPort, to.At.Port()); err != nil {
				return 0, err
			}
			n, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter)
			return int(n), err
		},
	} {
		// No t.Run and no testing.Benchmark: their goroutines are not in the namespace.
		const rounds = 5
		var took time.Duration
		var allocated uint64
		peak := 0
		for range rounds {
			fill(200, to.At.String())
			runtime.GC()
			debug.FreeOSMemory()
			resetPeak(t)
			before := peakKiB(t)
			var start, end runtime.MemStats
			runtime.ReadMemStats(&start)
			began := time.Now()
			n, err := forget()
			took += time.Since(began)
			runtime.ReadMemStats(&end)
			if err != nil || n != 200 {
				t.Fatalf("%s: %d, %v", name, n, err)
			}
			allocated += end.TotalAlloc - start.TotalAlloc
			peak = max(peak, peakKiB(t)-before)
		}
		t.Logf("%s: %d entries, 200 deleted: %v, %d KiB allocated, peak of resident memory +%d KiB",
			name, *entries, took/rounds, allocated/rounds/1024, peak)
	}
}

// resetPeak sets the process's peak of resident memory to the present value (proc_pid_clear_refs(5)).
func resetPeak(t *testing.T) {
	t.Helper()
	nettest.Must(t, os.WriteFile("/proc/self/clear_refs", []byte("5"), 0))
}

// peakKiB returns the process's peak of resident memory.
func peakKiB(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	nettest.Must(t, err)
	_, line, _ := strings.Cut(string(status), "VmHWM:")
	_, err = fmt.Sscan(line, &kib)
	nettest.Must(t, err)
	return kib
}

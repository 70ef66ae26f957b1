package memory

import (
	"math"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

func TestGCPercent(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		growth, heap, stacks uint64
		want                 int
	}{
		{128 * mib, 0, 0, 100}, {128 * mib, 1 * mib, 0, 400}, {128 * mib, 32 * mib, 0, 400}, {128 * mib, 128 * mib, 0, 100},
		{128 * mib, 32 * mib, 32 * mib, 200}, {128 * mib, 1000 * mib, 0, 100}, {50 * mib, 25 * mib, 0, 200}, {0, 8 * mib, 0, 100},
	} {
		if got := gcPercent(c.growth, c.heap, c.stacks); got != c.want {
			t.Errorf("%d MiB of heap, %d of stacks and %d of growth: %d %%, want %d", c.heap/mib, c.stacks/mib, c.growth/mib, got, c.want)
		}
	}
}

func TestBusyGrowth(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		limit         int64
		machine, want uint64
	}{
		{200 * mib, 64 << 30, 50 * mib}, {1 << 40, 1 << 30, 128 * mib}, {0, 1 << 30, 0}, {-1, 1 << 30, 0},
		{math.MaxInt64, 2 << 30, 32 * mib}, {math.MaxInt64, 64 << 30, 128 * mib}, {math.MaxInt64, 0, 0},
	} {
		if got := busyGrowth(c.limit, c.machine); got != c.want {
			t.Errorf("limit %d, machine %d MiB: %d, want %d", c.limit, c.machine/mib, got, c.want)
		}
	}
	if m := machineMemory(); m < 64*mib || m > 1<<50 {
		t.Errorf("the machine has %d bytes", m)
	}
}

func TestMaxWaiting(t *testing.T) {
	const mib = 1 << 20
	for limit, want := range map[int64]int{
		math.MaxInt64: 0, 1 << 40: 8192, 200 * mib: 8192, 96 * mib: 4096, 8 * mib: 512, 0: 512, -1: 512,
	} {
		if got := MaxWaiting(limit); got != want {
			t.Errorf("limit %d: %d, want %d", limit, got, want)
		}
	}
}

func TestLimitMemory(t *testing.T) {
	const most = 300 << 20
	group := int64(math.MaxInt64)
	if n, err := memlimit.FromCgroup(); err == nil && n < math.MaxInt64 {
		group = int64(n)
	}
	// GOMEMLIMIT is read by the runtime at the start; here its being there is what counts.
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(most))
	t.Setenv("GOMEMLIMIT", "300MiB")
	if got := limitMemory(); got != min(most, group) || debug.SetMemoryLimit(-1) != most {
		t.Errorf("with GOMEMLIMIT the limit is %d, the collector's %d", got, debug.SetMemoryLimit(-1))
	}
	// GOMEMLIMIT=off.
	debug.SetMemoryLimit(math.MaxInt64)
	if got := limitMemory(); got != group {
		t.Errorf("without a limit of the collector it is %d, want %d", got, group)
	}
	t.Setenv("GOMEMLIMIT", "")
	want := group
	if group < math.MaxInt64 {
		want = group / 10 * 9
	}
	if got := limitMemory(); got != want || debug.SetMemoryLimit(-1) != want {
		t.Errorf("without GOMEMLIMIT the limit is %d, the collector's %d, want %d", got, debug.SetMemoryLimit(-1), want)
	}
}

// TestHeapKeeper follows a process through its day.
func TestHeapKeeper(t *testing.T) {
	const mib = 1 << 20
	var allocated uint64
	told, given := defaultGCPercent, 0
	k := &heapKeeper{
		allocated: func() uint64 { return allocated }, live: func() (heap, stacks uint64) { return 8 * mib, 0 },
		setPercent: func(p int) { told = p }, giveBack: func() { given++; allocated += 100 * mib }, percent: defaultGCPercent, grown: true, growth: 24 * mib,
	}
	second := func(bytes uint64) {
		allocated += bytes
		k.collected()
		k.tick()
		k.collected()
	}
	second(50 * mib)
	if told != 300 || given != 0 {
		t.Errorf("while it starts: %d %%, memory given back %d times", told, given)
	}
	for range 20 {
		second(mib)
	}
	if told != 100 || given != 1 {
		t.Errorf("after the start: %d %%, memory given back %d times", told, given)
	}
	for i := range 40 {
		second(uint64(i%2) * 50 * mib) // it comes in gusts
	}
	if told != 300 || given != 1 {
		t.Errorf("busy: %d %%, memory given back %d times", told, given)
	}
	for range quietFor {
		second(0)
	}
	if told != 100 || given != 2 {
		t.Errorf("quiet again: %d %%, memory given back %d times", told, given)
	}
}

// TestKeepHeap looks at what the real collector is told while much is allocated, and that it is told so no more in
// the end.
func TestKeepHeap(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(defaultGCPercent))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	t.Setenv("GOGC", "")
	stop := KeepHeap()
	percent := func() int {
		p := debug.SetGCPercent(defaultGCPercent)
		debug.SetGCPercent(p)
		return p
	}
	deadline := time.Now().Add(30 * time.Second)
	var kept []byte
	for percent() <= defaultGCPercent {
		if time.Now().After(deadline) {
			heap, stacks := liveBytes()
			t.Fatalf("with %d octets alive, %d on stacks, the collector is still told %d %%", heap, stacks, percent())
		}
		kept = make([]byte, 1<<20)
	}
	runtime.KeepAlive(kept)
	for percent() > defaultGCPercent {
		if time.Now().After(deadline) {
			t.Fatalf("with nothing to do, the collector is still told %d %%", percent())
		}
		time.Sleep(10 * time.Millisecond)
	}
	stop()

	// It goes on after the first time.
	var calls atomic.Int32
	afterEachCollection(func() { calls.Add(1) })
	for calls.Load() < 3 {
		if time.Now().After(deadline) {
			t.Fatalf("%d calls after as many collections", calls.Load())
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
}

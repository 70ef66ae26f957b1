package memory

import (
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"localcache.dev/localcache/internal/upstream"
)

const (
	// mostGrowth is by how much the heap of a busy process may grow before it is collected, where it may grow by
	// more than Go's own pace has it: that collects a small cache, which keeps some 7 MiB alive, each time that 7 MiB
	// more were allocated. At 30,000 misses a second collecting was a fifth of the processor's time with a goal of
	// 32 MiB; beside that a growth of 64 MiB saved 6 % of all time in the Kubernetes mix of bench/, and one of 128 MiB 10 %.
	mostGrowth = 128 << 20
	// shareOfLimit is which part of the memory limit the growth may be: of the 200 MiB of deploy/ 50. Without a limit it
	// is shareOfMachine of the machine's memory.
	shareOfLimit   = 4
	shareOfMachine = 64
	// busyRate is how many bytes are allocated in a second by a process that is busy: some 1,500 misses. Below that,
	// collecting at Go's own pace costs less than half a percent of a processor.
	busyRate = 4 << 20
	// quietFor is how many seconds in a row a process is not busy before it gives back what it does not need.
	quietFor = 3
	// maxGCPercent bounds what the growth means for a very small heap: what is alive may have become much more by the
	// time that the next collection is due.
	maxGCPercent = 400
	// defaultGCPercent is Go's.
	defaultGCPercent = 100
)

// heapKeeper trades memory for time while there is much to do, and gives the memory back when there is not, as
// after the start.
type heapKeeper struct {
	allocated  func() uint64                // since the start, in bytes
	live       func() (heap, stacks uint64) // that the last collection found alive, in bytes
	setPercent func(int)                    // of growth before the next collection
	giveBack   func()
	growth     uint64 // while it is busy, in bytes

	mu      sync.Mutex
	last    uint64 // allocated, a second ago
	percent int
	busy    bool
	quiet   int  // seconds
	grown   bool // there is something to give back
}

func newHeapKeeper(growth uint64) *heapKeeper {
	return &heapKeeper{
		allocated: allocatedBytes, live: liveBytes, percent: defaultGCPercent, grown: true,
		setPercent: func(p int) { debug.SetGCPercent(p) }, giveBack: giveBackMemory,
		growth: growth,
	}
}

// busyGrowth is by how much the heap may grow in a process with this memory limit (math.MaxInt64 for none), on a machine
// of so many bytes.
func busyGrowth(limit int64, machine uint64) uint64 {
	if limit < math.MaxInt64 {
		return min(mostGrowth, uint64(max(limit, 0))/shareOfLimit)
	}
	return min(mostGrowth, machine/shareOfMachine)
}

// MaxWaiting is how many questions may wait for upstreams in a process with this memory limit: a sixth of it, at some
// 4 KiB each, within what is sensible; 0, which stands for the engine's own bound, without a limit.
func MaxWaiting(limit int64) int {
	const each, share, least = 4 << 10, 6, 512
	if limit == math.MaxInt64 {
		return 0
	}
	return int(min(max(limit/share/each, least), upstream.DefaultQueries))
}

// limitMemory has the collector try to stay under nine tenths of what the control group allows, where GOMEMLIMIT says
// nothing. It returns the limit in bytes, the lower one of the two: math.MaxInt64 where there is none, or none that
// can be read.
func limitMemory() int64 {
	limit := debug.SetMemoryLimit(-1)
	group, err := memlimit.FromCgroup()
	if err != nil || group >= math.MaxInt64 {
		return limit
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		limit = int64(group / 10 * 9)
		debug.SetMemoryLimit(limit)
	}
	return min(limit, int64(group))
}

// machineMemory is the machine's memory in bytes; 0 where it cannot be had, and then the heap grows at Go's own pace.
func machineMemory() uint64 {
	bytes, _ := memlimit.FromSystem()
	return bytes
}

// giveBackMemory gives back what is free, and lets go of the program's own pages. Where that is not possible they stay.
func giveBackMemory() {
	debug.FreeOSMemory()
	_ = forgetText()
}

// KeepHeap keeps the heap until stop is called. Where GOGC says what is wanted, it does no more than to keep it below the
// memory limit.
func KeepHeap() (stop func()) {
	limit := limitMemory()
	if os.Getenv("GOGC") != "" {
		return func() {}
	}
	k := newHeapKeeper(busyGrowth(limit, machineMemory()))
	afterEachCollection(k.collected)
	ended := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			select {
			case <-ended:
				return
			case <-ticker.C:
				k.tick()
			}
		}
	})
	return func() {
		close(ended)
		done.Wait()
	}
}

// tick looks each second whether the process is busy.
func (k *heapKeeper) tick() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.allocated()
	k.busy = now-k.last >= busyRate
	k.last = now
	if k.busy {
		k.quiet, k.grown = 0, true
		return
	}
	if k.quiet++; k.quiet >= quietFor && k.grown {
		k.grown = false
		k.set(defaultGCPercent)
		k.giveBack()
		k.last = k.allocated()
	}
}

// collected is called after each collection.
func (k *heapKeeper) collected() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy {
		heap, stacks := k.live()
		k.set(gcPercent(k.growth, heap, stacks))
	}
}

// set tells the collector. A change stops the world for a moment, so a small one is not worth it.
func (k *heapKeeper) set(percent int) {
	if percent > k.percent+k.percent/8 || percent < k.percent-k.percent/8 {
		k.setPercent(percent)
		k.percent = percent
	}
}

// gcPercent is the growth, in per cent, of so many live bytes by growth, and at least Go's own. Go counts stacks among
// what the growth is a percentage of (the formula is in the documentation of runtime/debug.SetGCPercent).
func gcPercent(growth, heap, stacks uint64) int {
	if heap == 0 {
		return defaultGCPercent
	}
	return int(max(defaultGCPercent, min(maxGCPercent, growth*100/(heap+stacks))))
}

// liveBytes is what the last collection found alive: on the heap, and on stacks with all else that is scanned.
func liveBytes() (heap, stacks uint64) {
	return runtimeMetric("/gc/heap/live:bytes"), runtimeMetric("/gc/scan/stack:bytes")
}

func allocatedBytes() uint64 { return runtimeMetric("/gc/heap/allocs:bytes") }

// runtimeMetric is 0 for one that this version of Go does not have.
func runtimeMetric(name string) uint64 {
	s := []metrics.Sample{{Name: name}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindUint64 {
		return 0
	}
	return s[0].Value.Uint64()
}

// afterEachCollection calls f after each garbage collection, one call at a time: in the clean-up of an object that
// nobody refers to, which makes the next such object.
func afterEachCollection(f func()) {
	type sentinel struct{ _ [16]byte } // not a tiny object, which would share its life with others
	runtime.AddCleanup(new(sentinel), func(f func()) {
		f()
		afterEachCollection(f)
	}, f)
}

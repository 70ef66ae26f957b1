// Package memory tunes the garbage collector to the load and the memory limit, and returns memory that the start needed.
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
	// mostGrowth is how much the heap of a busy process may grow before a collection, if that is more than Go's own
	// pace allows: Go collects a small cache, which keeps some 7 MiB alive, after every further 7 MiB. At 30,000
	// misses a second collecting took a fifth of the processor's time with a goal of 32 MiB; compared with that, a
	// growth of 64 MiB saved 6 % of all time in the Kubernetes mix of bench/, and one of 128 MiB 10 %.
	mostGrowth = 128 << 20
	// shareOfLimit is the part of the memory limit that the growth may be: 50 of the 200 MiB of deploy/. Without a
	// limit it is shareOfMachine of the machine's memory.
	shareOfLimit   = 4
	shareOfMachine = 64
	// busyRate is how many bytes a busy process allocates in a second: some 1,500 misses. Below that, collecting at
	// Go's own pace costs less than half a percent of a processor.
	busyRate = 4 << 20
	// quietFor is how many consecutive seconds a process is not busy before it returns memory.
	quietFor = 3
	// maxGCPercent bounds the growth of a very small heap: the live heap may be much larger when the next collection
	// is due.
	maxGCPercent = 400
	// defaultGCPercent is Go's.
	defaultGCPercent = 100
)

// heapKeeper trades memory for time while the process is busy, and returns the memory when it is not, for example
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

// busyGrowth returns how much the heap may grow in a process with this memory limit (math.MaxInt64 for none), on a
// machine with that many bytes.
func busyGrowth(limit int64, machine uint64) uint64 {
	if limit < math.MaxInt64 {
		return min(mostGrowth, uint64(max(limit, 0))/shareOfLimit)
	}
	return min(mostGrowth, machine/shareOfMachine)
}

// MaxWaiting returns how many queries may wait for upstreams in a process with this memory limit: a sixth of it, at
// some 4 KiB each, within bounds; 0, which means the engine's own bound, without a limit.
func MaxWaiting(limit int64) int {
	const each, share, least = 4 << 10, 6, 512
	if limit == math.MaxInt64 {
		return 0
	}
	return int(min(max(limit/share/each, least), upstream.DefaultQueries))
}

// limitMemory makes the collector try to stay below nine tenths of the control group's limit, unless GOMEMLIMIT is
// set. It returns the limit in bytes, the lower one of the two: math.MaxInt64 if there is none that can be read.
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

// machineMemory returns the machine's memory in bytes; 0 if unknown, and then the heap grows at Go's own pace.
func machineMemory() uint64 {
	bytes, _ := memlimit.FromSystem()
	return bytes
}

// giveBackMemory returns free memory and the program's own pages to the kernel, as far as possible.
func giveBackMemory() {
	debug.FreeOSMemory()
	_ = forgetText()
}

// KeepHeap tunes the collector until stop is called. If GOGC is set, it only keeps the heap below the memory limit.
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

// set changes the collector's setting. A change stops the world for a moment, so a small one is skipped.
func (k *heapKeeper) set(percent int) {
	if percent > k.percent+k.percent/8 || percent < k.percent-k.percent/8 {
		k.setPercent(percent)
		k.percent = percent
	}
}

// gcPercent returns the percentage that lets the live bytes grow by growth, at least Go's default. Go includes stacks
// in the base of the percentage (see the documentation of runtime/debug.SetGCPercent).
func gcPercent(growth, heap, stacks uint64) int {
	if heap == 0 {
		return defaultGCPercent
	}
	return int(max(defaultGCPercent, min(maxGCPercent, growth*100/(heap+stacks))))
}

// liveBytes returns what the last collection found alive: on the heap, and on stacks with everything else that is
// scanned.
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

// afterEachCollection calls f after each garbage collection, one call at a time: in the clean-up of an unreferenced
// object, which creates the next such object.
func afterEachCollection(f func()) {
	type sentinel struct{ _ [16]byte } // not a tiny object, which would share its memory with others
	runtime.AddCleanup(new(sentinel), func(f func()) {
		f()
		afterEachCollection(f)
	}, f)
}

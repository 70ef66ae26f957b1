package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapGoal is how large the heap may grow before it is collected. A small cache keeps some 7 MiB alive, and
	// Go would collect each time that 7 MiB more were allocated: at 30,000 misses a second that is an eighth of the
	// processor's time. With this goal it is a quarter of that. Larger caches are not affected, and a
	// process that has nothing to do stays as small as it was.
	heapGoal = 32 << 20
	// maxGCPercent bounds what that means for a very small heap.
	maxGCPercent = 400
	// defaultGCPercent is Go's.
	defaultGCPercent = 100
)

// growFirst has the garbage collector let a small heap grow to heapGoal. It does nothing where GOGC says what
// is wanted. GOMEMLIMIT stays in force.
func growFirst() {
	if os.Getenv("GOGC") != "" {
		return
	}
	set := defaultGCPercent
	afterEachCollection(func() {
		// A change stops the world for a moment, so a small one is not worth it.
		if p := gcPercent(live()); p > set+set/8 || p < set-set/8 {
			debug.SetGCPercent(p)
			set = p
		}
	})
}

// gcPercent is the growth, in per cent, that leads from so many live bytes to heapGoal. Go counts stacks among what
// the growth is a percentage of (the formula is in the documentation of runtime/debug.SetGCPercent).
func gcPercent(heap, stacks uint64) int {
	if heap == 0 || heap >= heapGoal {
		return defaultGCPercent
	}
	return max(defaultGCPercent, min(maxGCPercent, int((heapGoal-heap)*100/(heap+stacks))))
}

// live is what the last collection found alive, in bytes: on the heap, and on stacks with all else that is scanned.
func live() (heap, stacks uint64) {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}}
	metrics.Read(s)
	for i, v := range []*uint64{&heap, &stacks} {
		if s[i].Value.Kind() == metrics.KindUint64 {
			*v = s[i].Value.Uint64()
		}
	}
	return heap, stacks
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

package main

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct {
		heap, stacks uint64
		want         int
	}{
		{0, 0, 100}, {1 * mib, 0, 400}, {8 * mib, 0, 300}, {12 * mib, 0, 166}, {16 * mib, 0, 100},
		{8 * mib, 4 * mib, 200}, {11 * mib, 39 * mib, 100}, {heapGoal, 0, 100}, {100 * mib, 0, 100},
	} {
		if got := gcPercent(c.heap, c.stacks); got != c.want {
			t.Errorf("%d MiB of heap, %d of stacks: %d %%, want %d", c.heap/mib, c.stacks/mib, got, c.want)
		}
	}
}

// TestGrowFirst looks at what the collector is told once something has been collected.
func TestGrowFirst(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(defaultGCPercent))
	t.Setenv("GOGC", "")
	growFirst()
	percent := func() int {
		p := debug.SetGCPercent(defaultGCPercent)
		debug.SetGCPercent(p)
		return p
	}
	deadline := time.Now().Add(20 * time.Second)
	for percent() <= defaultGCPercent {
		if time.Now().After(deadline) {
			heap, stacks := live()
			t.Fatalf("with %d octets alive, %d on stacks, the collector is still told %d %%", heap, stacks, percent())
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}

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

package main

import (
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"testing"
	"time"
)

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{
		0:             100,
		1 << 20:       400,
		8 << 20:       300,
		12 << 20:      166,
		16 << 20:      100,
		heapGoal:      100,
		100 * 1 << 20: 100,
	} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB alive: %d %%, want %d", live>>20, got, want)
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
			t.Fatalf("with %d MiB alive the collector is still told %d %%", liveHeap()>>20, percent())
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

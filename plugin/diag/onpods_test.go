package diag

import (
	"slices"
	"sync"
	"testing"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// TestOnPods: whoever knows the pods is told when they are wanted, also across a reload that fails, and when nothing is
// served any more.
func TestOnPods(t *testing.T) {
	var mu sync.Mutex
	var told []bool
	directory := new(pods.Directory)
	directory.Store(pods.NewTable(nil))
	p := New(Options{
		Queries: observe.NewQueries(observe.QueriesOptions{}), Upstreams: observe.NewUpstreams(0), Socket: t.TempDir() + "/diag.sock",
		Pods: directory, OnPods: func(on bool) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, on)
		},
	})
	defer p.Close()
	in := func(word string) *instance { return &instance{config: Config{Pods: word}} }
	auto, off := in(podsAutoWord), in(podsOffWord)
	known := func(want bool) {
		t.Helper()
		if got, reason := p.pods.Table().Known(); got != want {
			t.Errorf("known %t (%s), want %t", got, reason, want)
		}
	}
	for _, step := range []struct {
		do    func() error
		known bool
	}{
		{func() error { return p.start(in("")) }, true},
		{func() error { return p.start(off) }, false},
		{func() error { return p.start(auto) }, true},
		{func() error { p.stop(off); return nil }, true}, // which was replaced
		{func() error { p.stop(auto); return nil }, false},
	} {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		known(step.known)
	}
	if want := []bool{true, false, true, false}; !slices.Equal(told, want) {
		t.Errorf("told %v, want %v", told, want)
	}

	// Switched off altogether, nobody is told anything.
	told = nil
	o := p.options
	o.Off = true
	if err := New(o).start(auto); err != nil || len(told) != 0 {
		t.Errorf("%v, told %v", err, told)
	}
}

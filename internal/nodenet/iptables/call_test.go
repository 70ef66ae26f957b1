package iptables

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

// ownChildren returns the processes that any thread of the test has started and not reaped.
func ownChildren(t *testing.T) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("list the threads: %v, %v", tasks, err)
	}
	var all []int
	for _, task := range tasks {
		all = append(all, children(task)...)
	}
	return all
}

// TestHungCallsEndAtLimit runs programs that hang in each of the library's ways to start one: the call
// ends at its limit or with its context, and leaves no process behind.
func TestHungCallsEndAtLimit(t *testing.T) {
	nettest.Need(t, "sleep")
	path := nettest.WriteProgram(t, t.TempDir(), "iptables", `case "$*" in *--version*) echo "iptables v1.8.9 (legacy)"; exit;; esac; exec sleep 60`)
	library, err := goiptables.New(goiptables.Path(path), goiptables.Timeout(5))
	if err != nil {
		t.Fatal(err)
	}
	mute := nettest.WriteProgram(t, t.TempDir(), "iptables", "exec sleep 60")
	child := filepath.Join(t.TempDir(), "child")
	for name, run := range map[string]struct {
		path string
		f    func() (any, error)
	}{
		"List":        {path, func() (any, error) { return library.List("raw", "PREROUTING") }},
		"ClearChain":  {path, func() (any, error) { return nil, library.ClearChain("raw", "LC") }},
		"ChainExists": {path, func() (any, error) { return library.ChainExists("raw", "LC") }},
		"New":         {mute, func() (any, error) { return goiptables.New(goiptables.Path(mute)) }},
		"a child of the program": {mute, func() (any, error) {
			return goiptables.New(goiptables.Path(nettest.WriteProgram(t, t.TempDir(), "iptables", "sleep 60 & echo $! > "+child+"; wait; exit 1")))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, limit := range []time.Duration{300 * time.Millisecond, time.Hour} {
				ctx, cancel := context.WithTimeout(t.Context(), 600*time.Millisecond)
				defer cancel()
				want := errHung
				if limit == time.Hour {
					want = context.DeadlineExceeded
				}
				start := time.Now()
				_, err := call(ctx, run.path, limit, run.f)
				took := time.Since(start)
				if !errors.Is(err, want) || !strings.Contains(err.Error(), run.path) {
					t.Errorf("got %v, want %v of %s", err, want, run.path)
				}
				if least := min(limit, 600*time.Millisecond); took < least || took > least+killWait {
					t.Errorf("it took %s, want %s", took, least)
				}
				if left := ownChildren(t); len(left) > 0 {
					t.Errorf("processes %v are left", left)
				}
			}
		})
	}
	pid, err := os.ReadFile(child)
	if err != nil {
		t.Fatal(err)
	}
	// The orphan's new parent reaps it in its own time.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/status")
		if err != nil || strings.Contains(string(status), "State:\tZ") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the child of the hung program still runs:\n%s", status)
		}
	}
}

// TestCallReturnsWhatEndsInTime has calls end before their limit, with a result and with an error.
func TestCallReturnsWhatEndsInTime(t *testing.T) {
	failure := errors.New("failure")
	if v, err := call(t.Context(), "program", time.Minute, func() (int, error) { return 7, nil }); v != 7 || err != nil {
		t.Errorf("got %d, %v", v, err)
	}
	if _, err := call(t.Context(), "program", time.Minute, func() (int, error) { return 0, failure }); !errors.Is(err, failure) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := call(ctx, "program", time.Minute, func() (int, error) { t.Error("f was called"); return 0, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestAbandonedCallBlocksLaterCalls has a call that cannot be ended: calls with its path fail until it
// has ended, others go on.
func TestAbandonedCallBlocksLaterCalls(t *testing.T) {
	end, ended := make(chan struct{}), make(chan struct{})
	nettest.Within(t, "the call", killWait+10*time.Second, func() {
		_, err := call(t.Context(), "abandoned", 10*time.Millisecond, func() (int, error) { defer close(ended); <-end; return 0, nil })
		if !errors.Is(err, errHung) || !strings.Contains(err.Error(), "even after SIGKILL") {
			t.Errorf("got %v", err)
		}
	})
	calls := 0
	count := func() (int, error) { calls++; return calls, nil }
	for range 2 {
		if _, err := call(t.Context(), "abandoned", time.Minute, count); !errors.Is(err, errHung) || !strings.Contains(err.Error(), "abandoned") {
			t.Errorf("got %v", err)
		}
	}
	if calls != 0 {
		t.Errorf("%d calls were made beside the one that is left", calls)
	}
	if _, err := call(t.Context(), "another", time.Minute, count); err != nil || calls != 1 {
		t.Errorf("a call with another path: %v, %d calls", err, calls)
	}
	close(end)
	<-ended
	var err error
	for range 100 { // the goroutine ends a moment later
		if _, err = call(t.Context(), "abandoned", time.Minute, count); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil || calls != 2 {
		t.Errorf("after its end: %v, %d calls", err, calls)
	}
}

// TestCallKeepsCallersNamespace has calls from several network namespaces at the same time, one of them
// with programs that hang: each list shows the chain of its own namespace, and killing the programs of
// one does not end those of another.
func TestCallKeepsCallersNamespace(t *testing.T) {
	nettest.Need(t, "iptables-nft", "sleep")
	library, err := goiptables.New(goiptables.Path("iptables-nft"), goiptables.Timeout(5))
	if err != nil {
		t.Fatal(err)
	}
	hung := nettest.WriteProgram(t, t.TempDir(), "iptables", "exec sleep 60")
	slow := nettest.WriteProgram(t, t.TempDir(), "iptables", "sleep 1; echo iptables v1.8.9")
	var calls sync.WaitGroup
	inNamespace := func(f func()) {
		calls.Add(1)
		nettest.NewPod(t).Go(func() {
			defer calls.Done()
			f()
		})
	}
	for _, chain := range []string{"LC-A", "LC-B", "LC-C"} {
		inNamespace(func() {
			if _, err := call(t.Context(), "iptables-nft", time.Minute, func() (any, error) { return nil, library.NewChain("raw", chain) }); err != nil {
				t.Error(err)
			}
			for range 10 {
				chains, err := call(t.Context(), "iptables-nft", time.Minute, func() ([]string, error) { return library.ListChains("raw") })
				if all := strings.Join(chains, " "); err != nil || strings.Count(all, "LC-") != 1 || !strings.Contains(all, chain) {
					t.Errorf("in the namespace of %s: %s, %v", chain, all, err)
				}
			}
		})
	}
	inNamespace(func() {
		for range 10 {
			_, err := call(t.Context(), hung, 50*time.Millisecond, func() (any, error) { return goiptables.New(goiptables.Path(hung)) })
			if !errors.Is(err, errHung) {
				t.Errorf("the hung program: %v", err)
			}
		}
	})
	inNamespace(func() {
		if _, err := call(t.Context(), slow, time.Minute, func() (any, error) { return goiptables.New(goiptables.Path(slow)) }); err != nil {
			t.Errorf("a program beside hung ones: %v", err)
		}
	})
	calls.Wait()
	if left := ownChildren(t); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

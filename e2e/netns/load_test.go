package netns

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// settle is how long a query may take and still count for the phase in which it was sent.
const settle = 200 * time.Millisecond

// load is a set of parallel streams, for names that change with the phase of a test, so that kube-dns's record shows
// when a name was asked.
type load struct {
	t       *testing.T
	l       *lab.Lab
	phase   atomic.Pointer[string]
	streams []*lab.Streaming
	done    []lab.Samples // once stopped
}

// startLoad starts streams. A stream without names gets names below AnyClusterName that repeat after 100 queries; one
// without a host comes from the next pod.
func startLoad(t *testing.T, l *lab.Lab, streams ...lab.Stream) *load {
	t.Helper()
	ld := &load{t: t, l: l}
	ld.enter("before")
	for i, s := range streams {
		if s.From == nil {
			s.From = l.Pods[i%len(l.Pods)]
		}
		if s.Name == nil {
			s.Name = func(n int) string { return fmt.Sprintf("q%d-%d.%s", i, n%100, zone(*ld.phase.Load())) }
		}
		st, err := s.Start()
		if err != nil {
			t.Fatal(err)
		}
		ld.streams = append(ld.streams, st)
		t.Cleanup(func() {
			if ld.done == nil {
				_, _ = st.Stop() // the test failed before it asked
			}
		})
	}
	return ld
}

// zone holds the names of a phase.
func zone(phase string) string { return phase + "." + lab.AnyClusterName }

// enter lets a phase begin: the names of later queries are of its zone.
func (ld *load) enter(phase string) { ld.phase.Store(&phase) }

// more waits until so many milliseconds' worth of further queries are sent by every stream.
func (ld *load) more(d time.Duration) {
	ld.t.Helper()
	ctx, cancel := context.WithTimeout(ld.t.Context(), startTimeout)
	defer cancel()
	var goals []int
	for _, s := range ld.streams {
		goals = append(goals, s.Sent()+int(float64(s.QPS)*d.Seconds()))
	}
	for i, s := range ld.streams {
		if err := s.Wait(ctx, goals[i]); err != nil {
			ld.t.Fatal(err)
		}
	}
}

// stop ends the streams and returns the results of their queries, in the order of the streams. An answer with an
// error fails the test: every name of the streams exists.
func (ld *load) stop() []lab.Samples {
	ld.t.Helper()
	for i, s := range ld.streams {
		ss, err := s.Stop()
		if err != nil {
			ld.t.Errorf("stream %d: %v", i, err)
		}
		for rcode, n := range ss.Rcodes() {
			if rcode != 0 {
				ld.t.Errorf("stream %d: %d answers with rcode %d", i, n, rcode)
			}
		}
		ld.done = append(ld.done, ss)
	}
	return ld.done
}

// outage is the longest time for which no query got an answer: from the first of lost queries in a row to
// the next that was answered, or to the end.
func outage(ss lab.Samples) time.Duration {
	var longest time.Duration
	var since time.Time
	for _, s := range ss {
		switch {
		case s.Lost() && since.IsZero():
			since = s.Sent
		case !s.Lost():
			since = time.Time{}
		}
		if !since.IsZero() {
			longest = max(longest, s.Sent.Sub(since)+time.Millisecond)
		}
	}
	return longest
}

// slowest is the longest that an answer took.
func slowest(ss lab.Samples) time.Duration { return ss.Quantile(1).Round(100 * time.Microsecond) }

// wantNoneLost fails the test for each stream that has lost queries, and logs the results of all.
func wantNoneLost(t *testing.T, what string, all ...lab.Samples) {
	t.Helper()
	for _, ss := range all {
		t.Logf("%s: %s, slowest %v", what, ss, slowest(ss))
		for i, s := range ss.Lost() {
			if i == 3 {
				break
			}
			t.Errorf("%s: query %s sent at %s lost: %v", what, s.Name, s.Sent.Format("15:04:05.000"), s.Err)
		}
	}
}

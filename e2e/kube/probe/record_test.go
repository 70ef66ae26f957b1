package main

import (
	"testing"
	"time"
)

// at is a time in milliseconds from an arbitrary beginning.
func at(ms int64) int64 { return ms * int64(time.Millisecond) }

func wayOf(records ...record) *way {
	w := &way{name: "test", records: make([]record, maxRecords), n: uint64(len(records))}
	copy(w.records, records)
	return w
}

func TestCounts(t *testing.T) {
	w := wayOf(
		record{sent: at(0), answered: at(1), class: hot},
		record{sent: at(5), class: fresh},
		record{sent: at(10), answered: at(20), class: hot, again: true},
		record{sent: at(15), answered: at(16), class: external, rcode: 2},
		record{sent: at(20), class: hot},
		record{sent: at(9000), answered: at(9001), class: hot}, // beyond the time
	)
	counts := w.counts(0, at(1000), nil)
	if c := counts[hot]; c.Queries != 3 || c.Unanswered != 1 || c.Errors != 0 || c.Again != 1 || c.Gap != at(19) || c.UnansweredAt[0] != at(20) {
		t.Errorf("hot: %+v", c)
	}
	if c := counts[fresh]; c.Queries != 1 || c.Unanswered != 1 {
		t.Errorf("fresh: %+v", c)
	}
	if c := counts[external]; c.Queries != 1 || c.Unanswered != 0 || c.Errors != 1 {
		t.Errorf("external: %+v", c)
	}
}

// A failure counts against the cache unless the control failed at the same time.
func TestStalls(t *testing.T) {
	control := wayOf(
		record{sent: at(20000), answered: at(20500)},
		record{sent: at(20100)},
		record{sent: at(20200), answered: at(20300)},
		record{sent: at(20400), answered: at(20500)},
		record{sent: at(30000), answered: at(30001)}, // long after the one before
		record{sent: at(30100), answered: at(30101)},
	)
	stalls := control.stalls(0, at(60000))
	if len(stalls) != 1 || stalls[0] != (span{at(20000), at(30000)}) {
		t.Fatalf("stalls: %v", stalls)
	}
	stalls[0].until = at(21100)
	w := wayOf(
		record{sent: at(10000)},                                // the control was answered
		record{sent: at(18900)},                                // its patience ended before
		record{sent: at(19500)},                                // it waited when the control did
		record{sent: at(21000)},                                // so did this one
		record{sent: at(22200)},                                // sent when all was well again
		record{sent: at(20200), rcode: 2, answered: at(20300)}, // an error is a failure too
	)
	if c := w.counts(0, at(60000), stalls)[hot]; c.Unanswered != 3 || c.Stalled != 3 || c.Errors != 0 {
		t.Errorf("%+v", c)
	}
}

// Every class gets its share, and no new name comes twice but by chance.
func TestNextName(t *testing.T) {
	seen, per := make(map[string]bool), make(map[class]int)
	for n := range uint64(400) {
		name, c := nextName(n, "outside.example.")
		per[c]++
		if c == fresh && seen[name] {
			t.Errorf("%s is not new", name)
		}
		seen[name] = true
	}
	if per[hot] != 200 || per[fresh] != 100 || per[external] != 100 {
		t.Errorf("shares: %v", per)
	}
}

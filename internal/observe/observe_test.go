package observe

import (
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestOutcomeAnswers(t *testing.T) {
	answers := []Outcome{NoError, NXDomain, ServFail, Refused, OtherRcode}
	for o := range Outcome(NumOutcomes) {
		if got := o.Answer(); got != slices.Contains(answers, o) {
			t.Errorf("%s: Answer() = %t", o, got)
		}
	}
	for rcode, want := range map[int]Outcome{0: NoError, 1: OtherRcode, 2: ServFail, 3: NXDomain, 5: Refused, 16: OtherRcode} {
		if got := OutcomeOf(rcode); got != want {
			t.Errorf("OutcomeOf(%d) = %s, want %s", rcode, got, want)
		}
	}
	text, err := json.Marshal(map[string]any{"outcome": ConnRefused, "proto": TLS, "drop": DropWrongID})
	if err != nil || string(text) != `{"drop":"wrong_id","outcome":"conn_refused","proto":"tls"}` {
		t.Errorf("JSON %s, %v", text, err)
	}
}

// TestBuckets checks the index against the bounds for every bucket edge, and the promised precision.
func TestBuckets(t *testing.T) {
	for i := range NumBuckets {
		low, high := BucketBounds(i)
		if Bucket(low) != i {
			t.Fatalf("Bucket(%s) = %d, want %d", low, Bucket(low), i)
		}
		if i < NumBuckets-1 && Bucket(high) != i+1 {
			t.Fatalf("Bucket(%s) = %d, want %d", high, Bucket(high), i+1)
		}
		if Bucket(high-1) != i {
			t.Fatalf("Bucket(%s) = %d, want %d", high-1, Bucket(high-1), i)
		}
		if i >= 8 && (high-low)*8 > low {
			t.Fatalf("bucket %d: %s to %s is wider than an eighth", i, low, high)
		}
	}
	if Bucket(-time.Second) != 0 || Bucket(24*365*time.Hour) != NumBuckets-1 {
		t.Error("durations beyond the ends are not in the outer buckets")
	}
}

func TestQuantileMergeAndWindow(t *testing.T) {
	var fast, slow Histogram
	for range 990 {
		fast.Observe(time.Millisecond)
	}
	for range 10 {
		slow.Observe(time.Second)
	}
	all := fast.Snapshot()
	before := all
	other := slow.Snapshot()
	all.Add(&other)
	near := func(got, want time.Duration) bool { return got > want*7/8 && got < want*9/8 }
	if got := all.Quantile(0.99); !near(got, time.Millisecond) {
		t.Errorf("p99 = %s, want about 1 ms", got)
	}
	if got := all.Quantile(0.999); !near(got, time.Second) {
		t.Errorf("p99.9 = %s, want about 1 s", got)
	}
	all.Sub(&before)
	if all.Count() != 10 || all.Sum != 10*time.Second {
		t.Errorf("the window has %d durations of %s together, want 10 of 10 s", all.Count(), all.Sum)
	}
	if (&Buckets{}).Quantile(0.5) != 0 {
		t.Error("the median of nothing is not 0")
	}
}

func TestUpstreamsKeepTimeoutsOutOfLatency(t *testing.T) {
	u := NewUpstreams(0)
	sink := u.Sink("192.0.2.1:53", UDP)
	start := time.Now()
	end := func(e Exchange) {
		sink.Begin()
		e.Start = start
		sink.End(&e)
	}
	end(Exchange{Duration: time.Millisecond, Outcome: NoError, BytesOut: 40, BytesIn: 90})
	end(Exchange{Duration: 2 * time.Second, Outcome: Timeout, Err: "silent", Attempt: 1})
	end(Exchange{Duration: time.Millisecond, Outcome: NXDomain, Attempt: 2, Hedge: true, Reused: true})
	end(Exchange{Duration: time.Millisecond, Outcome: NoError, Probe: true})
	sink.Begin()
	sink.Drop(DropWrongID)

	list := u.Snapshot()
	if len(list) != 1 {
		t.Fatalf("%d upstreams, want 1", len(list))
	}
	s := list[0]
	if s.Outcomes[NoError] != 1 || s.Outcomes[Timeout] != 1 || s.Outcomes[NXDomain] != 1 || s.Probes[NoError] != 1 {
		t.Errorf("outcomes %v, probes %v", s.Outcomes, s.Probes)
	}
	if n := s.Latency.Count(); n != 2 {
		t.Errorf("%d latencies, want the 2 of answers to clients", n)
	}
	if s.InFlight != 1 || s.Hedges != 1 || s.Retries != 1 || s.Reused != 1 || s.Drops[DropWrongID] != 1 || s.BytesOut != 40 || s.BytesIn != 90 {
		t.Errorf("snapshot %+v", s)
	}
	if len(s.Failures) != 1 || s.Failures[0].Err != "silent" || !s.LastFailure.Equal(start.Add(2*time.Second)) {
		t.Errorf("failures %+v, last %s", s.Failures, s.LastFailure)
	}
}

func TestUpstreamsAreBounded(t *testing.T) {
	u := NewUpstreams(2)
	a := u.Sink("a", TCP)
	a.Begin()
	u.Sink("b", TCP)
	u.Sink("c", TCP).Begin()
	u.Sink("d", TCP).Begin()
	if got := names(u); !slices.Equal(got, []string{"a", "b", Overflow}) {
		t.Fatalf("upstreams %v, want the third and fourth together", got)
	}
	for _, s := range u.Snapshot() {
		if s.Upstream == Overflow && s.InFlight != 2 {
			t.Errorf("%d in flight in %s, want 2", s.InFlight, Overflow)
		}
	}

	// A released one keeps its numbers until its place is needed.
	u = NewUpstreams(2)
	a = u.Sink("a", TCP)
	u.Sink("b", TCP)
	a.Begin()
	a.End(&Exchange{Start: time.Now()})
	a.Release()
	if again := u.Sink("a", TCP); again != a {
		t.Error("the statistics of an upstream that came back are new")
	}
	a.Release()
	u.Sink("c", TCP)
	if got := names(u); !slices.Equal(got, []string{"b", "c"}) {
		t.Errorf("upstreams %v, want b and c", got)
	}
}

func names(u *Upstreams) []string {
	var list []string
	for _, s := range u.Snapshot() {
		list = append(list, s.Upstream)
	}
	return list
}

func TestFailureRingKeepsTheNewest(t *testing.T) {
	sink := NewUpstreams(0)
	s := sink.Sink("a", UDP)
	for i := range RecentFailures + 5 {
		s.Begin()
		s.End(&Exchange{Start: epoch.Add(time.Duration(i)), Outcome: Reset, Err: fmt.Sprint(i)})
	}
	failures := sink.Snapshot()[0].Failures
	if len(failures) != RecentFailures || failures[0].Err != fmt.Sprint(RecentFailures+4) || failures[RecentFailures-1].Err != "5" {
		t.Errorf("%d failures, from %s to %s", len(failures), failures[0].Err, failures[len(failures)-1].Err)
	}
}

func TestConcurrentReports(t *testing.T) {
	u, v := NewUpstreams(0), NewUpstreams(0)
	r := Tee(nil, u, v)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s := r.Sink("a", TCP)
			defer s.Release()
			for i := range 1000 {
				s.Begin()
				s.End(&Exchange{Outcome: Outcome(i % NumOutcomes), Duration: time.Duration(i) * time.Microsecond})
				if i%100 == 0 {
					u.Snapshot()
				}
			}
		})
	}
	wg.Wait()
	for _, s := range []UpstreamSnapshot{u.Snapshot()[0], v.Snapshot()[0]} {
		var n uint64
		for _, c := range s.Outcomes {
			n += c
		}
		if n != 8000 || s.InFlight != 0 || s.Latency.Count() != 4000 {
			t.Errorf("%d exchanges, %d in flight, %d latencies", n, s.InFlight, s.Latency.Count())
		}
	}
}

// TestEndAllocates nothing: it runs once for every miss.
func TestEndAllocations(t *testing.T) {
	s := NewUpstreams(0).Sink("a", TCP)
	e := &Exchange{Outcome: NoError, Duration: time.Millisecond}
	if n := testing.AllocsPerRun(100, func() { s.Begin(); s.End(e) }); n != 0 {
		t.Errorf("%.0f allocations a report, want 0", n)
	}
}

func BenchmarkEnd(b *testing.B) {
	s := NewUpstreams(0).Sink("a", TCP)
	e := &Exchange{Outcome: NoError, Start: time.Now(), Duration: time.Millisecond}
	for b.Loop() {
		s.Begin()
		s.End(e)
	}
}

package observe

import (
	"context"
	"testing"
	"time"
)

// TestTotals: the cheap sums are those of a snapshot, with clients that lost their place.
func TestTotals(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newQueries(QueriesOptions{Clients: 16}, start)
	list := traffic(5_000, 40, 50, start)
	for i := range list {
		list[i].Source = Source(i % NumSources)
		s.Record(&list[i])
	}
	now := start.Add(time.Minute)
	totals, snapshot := s.Totals(now), s.Snapshot(now)
	if totals.Counts != snapshot.Total[SinceStart] {
		t.Errorf("got %+v, want %+v", totals.Counts, snapshot.Total[SinceStart])
	}
	if totals.Queries() != 5_000 || totals.Clients != 16 || totals.Lost != snapshot.Lost {
		t.Errorf("got %d queries of %d clients, lost %v; want 5000 of 16, lost %v", totals.Queries(), totals.Clients, totals.Lost, snapshot.Lost)
	}
}

// TestConfigure: bounds can change while history stays.
func TestConfigure(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	s := newQueries(QueriesOptions{Clients: 2, Slow: time.Second}, start)
	if got := s.Options(); got != (QueriesOptions{Clients: 2, Slow: time.Second}) || !s.Started().Equal(start) {
		t.Fatalf("got %+v since %v", got, s.Started())
	}
	list := traffic(20, 10, 1, start)
	for i := range list {
		list[i].Rcode = 0
	}
	for i := range list[:10] {
		s.Record(&list[i])
	}
	if got := s.Totals(start); got.Clients != 2 || got.Queries() != 10 {
		t.Fatalf("got %d clients with %d queries, want 2 with 10", got.Clients, got.Queries())
	}
	s.Configure(QueriesOptions{Clients: 10, Slow: time.Microsecond})
	for i := range list[10:] {
		s.Record(&list[10+i])
	}
	if got := s.Totals(start); got.Clients != 10 || got.Queries() != 20 {
		t.Errorf("got %d clients with %d queries, want 10 with 20", got.Clients, got.Queries())
	}
	if n := len(s.Snapshot(start).Stories); n != 10 {
		t.Errorf("got %d slow queries, want the 10 since they count as slow", n)
	}
	s.Configure(QueriesOptions{})
	if got := s.Options(); got != (QueriesOptions{Clients: DefaultMaxClients, Slow: DefaultSlow}) {
		t.Errorf("got %+v, want the defaults", got)
	}
}

// TestNoReply: a query that was dropped is no answer.
func TestNoReply(t *testing.T) {
	if got := OutcomeOf(NoReply); got != OtherRcode {
		t.Errorf("got %v", got)
	}
}

func TestArrival(t *testing.T) {
	if got := ArrivalFrom(context.Background()); got != nil {
		t.Errorf("got %v", got)
	}
	want := &Arrival{Received: 1}
	if got := ArrivalFrom(context.WithValue(context.Background(), ArrivalKey{}, want)); got != want {
		t.Errorf("got %v", got)
	}
}

func BenchmarkTotals(b *testing.B) {
	s := NewQueries(QueriesOptions{Clients: 1024})
	list := traffic(100_000, 1024, 500, time.Now())
	for i := range list {
		s.Record(&list[i])
	}
	b.ReportAllocs()
	for b.Loop() {
		s.Totals(time.Now())
	}
}

package observe

import (
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

var epoch = time.Unix(1_700_000_000, 0)

// one returns a query of client i that was answered at the given time after epoch.
func one(i int, at time.Duration) Query {
	return Query{
		Client: netip.AddrPortFrom(podAddr(i), 4242), ID: 1, Name: wireName("name.example."), Type: 1,
		Received: epoch.Add(at).UnixNano(),
	}
}

func TestCounts(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	record := func(n int, source Source, rcode int, d, upstream, queued time.Duration) {
		for i := range n {
			q := one(1, time.Duration(i)*time.Second/10)
			q.ID, q.Source, q.Rcode, q.Duration, q.Upstream, q.Queued = uint16(i), source, rcode, d, upstream, queued
			s.Record(&q)
		}
	}
	record(6, FromReplay, 0, 40*time.Microsecond, 0, 5*time.Microsecond)
	record(5, FromCache, 3, 80*time.Microsecond, 0, 0)
	record(4, FromStale, 0, time.Millisecond, 0, 0)
	record(3, FromUpstream, 2, 30*time.Millisecond, 25*time.Millisecond, 0)
	record(2, FromLocal, 5, 0, 0, 0)
	record(1, 77, 16, -time.Second, 0, 0) // what nobody should say

	v := s.Snapshot(epoch.Add(time.Second))
	if len(v.Clients) != 1 || v.Clients[0].Client != "10.244.0.3" {
		t.Fatalf("clients %+v", v.Clients)
	}
	c := v.Clients[0].Windows[SinceStart]
	if c.Sources != [NumSources]uint64{6, 5, 4, 3, 3} || c.Rcodes != [numRcodes]uint64{10, 5, 3, 2, 1} {
		t.Errorf("sources %v, rcodes %v", c.Sources, c.Rcodes)
	}
	if c.Queries() != 21 || c.Hits() != 18 || c.Misses() != 3 || c.SearchWaste() != 0.5 {
		t.Errorf("%d queries, %d hits, %d misses, waste %v", c.Queries(), c.Hits(), c.Misses(), c.SearchWaste())
	}
	if c.Hit.Count() != 18 || c.Miss.Count() != 3 || c.Miss.Sum != 90*time.Millisecond || c.Upstream != 75*time.Millisecond || c.Queued != 30*time.Microsecond {
		t.Errorf("hit %d, miss %d in %s, upstream %s, queued %s", c.Hit.Count(), c.Miss.Count(), c.Miss.Sum, c.Upstream, c.Queued)
	}
	if c.Hit.Sum != 6*40*time.Microsecond+5*80*time.Microsecond+4*time.Millisecond {
		t.Errorf("the hits took %s", c.Hit.Sum)
	}
	if v.Upstream[Last1m].Count() != 3 || v.Upstream[Last1m].Sum != 75*time.Millisecond || v.Queued[SinceStart].Count() != 6 {
		t.Errorf("upstream %+v, queued %+v", v.Upstream[Last1m], v.Queued[SinceStart])
	}
	if got := c.Miss.Quantile(0.5); got < 22*time.Millisecond || got > 38*time.Millisecond {
		t.Errorf("the median of misses of 30 ms is %s", got)
	}
	for w := range NumWindows {
		if v.Total[w] != c {
			t.Errorf("the total of window %s is not that of the only client", Window(w))
		}
	}
	for by, want := range map[TopBy]uint64{ByQueries: 21, ByMisses: 3, ByNXDomain: 5, ByServFail: 3, BySlowest: 30_000} {
		for _, top := range []Top{v.Tops[by], v.RecentTops[by]} {
			if len(top.Names) != 1 || top.Names[0] != (TopName{Name: "name.example.", Count: want}) {
				t.Errorf("top by %s: %+v, want %d", by, top, want)
			}
		}
	}
	if _, err := json.Marshal(v); err != nil {
		t.Errorf("JSON: %v", err)
	}
}

func TestLatencyBuckets(t *testing.T) {
	for i := range NumLatencyBuckets {
		low, high := LatencyBounds(i)
		if LatencyBucket(low) != i || LatencyBucket(high-1) != i {
			t.Errorf("bucket %d: %s is in %d, %s in %d", i, low, LatencyBucket(low), high-1, LatencyBucket(high-1))
		}
		if i > 0 && i < NumLatencyBuckets-1 && (high-low)*2 > low {
			t.Errorf("bucket %d from %s to %s is wider than half an octave", i, low, high)
		}
	}
	if low, _ := LatencyBounds(NumLatencyBuckets - 1); low != 4194304*time.Microsecond {
		t.Errorf("the last bucket begins at %s", low)
	}
	if LatencyBucket(-time.Second) != 0 || LatencyBucket(24*time.Hour) != NumLatencyBuckets-1 {
		t.Error("durations beyond the ends are not in the outer buckets")
	}
}

// TestWindows compares each window with the queries themselves, over two hours with pauses.
func TestWindows(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	var times []time.Duration
	at := time.Duration(0)
	for i := range 3000 {
		switch {
		case i%500 == 499:
			at += 11 * time.Minute
		case i%97 == 96:
			at += 70 * time.Second
		default:
			at += 1300 * time.Millisecond
		}
		q := one(i%3, at)
		q.ID = uint16(i)
		s.Record(&q)
		times = append(times, at)
		if i%41 != 0 {
			continue
		}
		now := at + time.Duration(i%3)*time.Second/2
		v := s.Snapshot(epoch.Add(now))
		for w, name := range []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, time.Hour, 1 << 60} {
			covered := v.Coverage[w]
			if covered > now || covered < min(name, now) || covered > max(name*3/2, 0) && w < rolling {
				t.Fatalf("window %s covers %s at %s", Window(w), covered, now)
			}
			want := uint64(0)
			for _, x := range times {
				if x >= now-covered {
					want++
				}
			}
			if got := v.Total[w].Queries(); got != want {
				t.Fatalf("at %s the last %s have %d queries, want %d", now, covered, got, want)
			}
			if got := v.Total[w].Hit.Count(); got != want {
				t.Fatalf("at %s the last %s have %d latencies, want %d", now, covered, got, want)
			}
		}
	}
}

// TestClockIsSet: windows go on, and nothing is lost, when the wall clock is set back or forward.
func TestClockIsSet(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	n := uint64(0)
	second := func(at time.Duration) {
		q := one(1, at)
		q.ID = uint16(n)
		s.Record(&q)
		n++
	}
	for i := range 600 {
		second(time.Duration(i) * time.Second)
	}
	for i := range 600 { // a day back
		second(time.Duration(i)*time.Second - 24*time.Hour)
	}
	v := s.Snapshot(epoch.Add(600*time.Second - 24*time.Hour))
	if got := v.Total[SinceStart].Queries(); got != n {
		t.Errorf("%d queries, want %d", got, n)
	}
	if got := v.Total[Last1m].Queries(); got < 60 || got > 92 {
		t.Errorf("%d queries in the last minute of one a second, want 60 to 91", got)
	}
	if c := v.Coverage[Last10s]; c < 10*time.Second || c > 15*time.Second {
		t.Errorf("10 s are %s", c)
	}
	if last := v.Clients[0].LastSeen; last.After(v.At) || last.Before(v.At.Add(-5*time.Second)) {
		t.Errorf("last seen at %s, it is %s", last, v.At)
	}
	for i := range 600 { // two days on
		second(time.Duration(i)*time.Second + 48*time.Hour)
	}
	v = s.Snapshot(epoch.Add(600*time.Second + 48*time.Hour))
	if got := v.Total[Last5m].Queries(); got < 300 || got > 452 {
		t.Errorf("%d queries in the last 5 minutes of one a second, want 300 to 451", got)
	}
	if got := v.Total[SinceStart].Queries(); got != n {
		t.Errorf("%d queries, want %d", got, n)
	}
	// A query that is a little late is no reason to believe that.
	before := s.clock.offset.Load()
	second(598*time.Second + 48*time.Hour)
	if s.clock.offset.Load() != before {
		t.Error("a query that was overtaken set the time")
	}
}

func TestClientsAreBounded(t *testing.T) {
	s := newQueries(QueriesOptions{Clients: 10}, epoch)
	for i := range 30 {
		for j := range 3 {
			q := one(i, time.Duration(j)*time.Millisecond)
			q.ID = uint16(j)
			s.Record(&q)
		}
	}
	v := s.Snapshot(epoch.Add(time.Second))
	if len(v.Clients) != 11 || v.Clients[10].Client != Overflow || v.Clients[10].Windows[Last1m].Queries() != 60 || v.Total[Last10s].Queries() != 90 {
		t.Fatalf("%d clients, the last is %s with %d queries of %d", len(v.Clients), v.Clients[len(v.Clients)-1].Client,
			v.Clients[len(v.Clients)-1].Windows[Last1m].Queries(), v.Total[Last10s].Queries())
	}
	// All clients are silent for 20 minutes but those from 5 on. The next new clients get the others' places, one a
	// second, and the previous counts go to Overflow, in the windows too.
	for i := 5; i < 10; i++ {
		q := one(i, 19*time.Minute)
		s.Record(&q)
	}
	for i := range 7 {
		q := one(100+i, 20*time.Minute+time.Duration(i)*2*time.Second)
		s.Record(&q)
	}
	v = s.Snapshot(epoch.Add(20*time.Minute + 15*time.Second))
	var list []string
	for _, c := range v.Clients {
		list = append(list, c.Client)
	}
	want := "10.244.0.7 10.244.0.8 10.244.0.9 10.244.0.10 10.244.0.11 10.244.0.102 10.244.0.103 10.244.0.104 10.244.0.105 10.244.0.106 ~other"
	if got := strings.Join(list, " "); got != want {
		t.Errorf("clients %s\nwant    %s", got, want)
	}
	other := v.Clients[len(v.Clients)-1]
	if other.Windows[SinceStart].Queries() != 60+15+2 || other.Windows[Last1h].Queries() != 60+15+2 || other.Windows[Last5m].Queries() != 2 {
		t.Errorf("%s has %d queries, %d in an hour, %d in 5 minutes; want 77, 77 and 2", Overflow,
			other.Windows[SinceStart].Queries(), other.Windows[Last1h].Queries(), other.Windows[Last5m].Queries())
	}
	if v.Total[SinceStart].Queries() != 90+5+7 || v.Total[Last5m].Queries() != 5+7 {
		t.Errorf("total %d, in 5 minutes %d", v.Total[SinceStart].Queries(), v.Total[Last5m].Queries())
	}
	if top := other.Names; len(top.Names) != 1 || top.Names[0].Count != 77 {
		t.Errorf("the names of %s are %+v", Overflow, top)
	}
	// A client that comes back starts again.
	if c := v.Clients[5]; c.Windows[SinceStart].Queries() != 1 {
		t.Errorf("a newcomer begins with %d queries", c.Windows[SinceStart].Queries())
	}
}

func TestQueryWithoutClient(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	q := Query{Name: []byte{0}, Received: epoch.UnixNano()}
	s.Record(&q)
	s.End(s.Begin(&q), &q, new(Trace))
	v := s.Snapshot(epoch)
	if v.Lost[LossNoClient] != 2 || len(v.Clients) != 0 || v.InFlight != 0 {
		t.Errorf("lost %v, %d clients, %d in flight", v.Lost, len(v.Clients), v.InFlight)
	}
}

func TestStories(t *testing.T) {
	s := newQueries(QueriesOptions{Slow: 50 * time.Millisecond}, epoch)
	end := func(at time.Duration, rcode int, d time.Duration, steps ...Step) {
		q := one(1, at)
		token := s.Begin(&q)
		trace := new(Trace)
		ctx := WithTrace(context.Background(), trace)
		for _, step := range steps {
			TraceFrom(ctx).Add(step)
			TraceFrom(ctx).Wait(step.Duration)
		}
		q.Rcode, q.Duration = rcode, d
		var asked bool
		if q.Upstream, asked = trace.Waited(); asked {
			q.Source = FromUpstream
		}
		s.End(token, &q, trace)
		var before, after [MaxSteps]Step
		n, _ := trace.copyTo(&before)
		trace.Add(Step{Upstream: "too late"})
		trace.Wait(time.Hour)
		if m, _ := trace.copyTo(&after); m != n || after != before || trace.wait >= time.Hour {
			t.Errorf("a trace that has ended grew from %v to %v", before[:n], after[:m])
		}
	}
	answered := Step{Upstream: "192.0.2.1:53", Proto: TCP, Outcome: NoError, Duration: time.Millisecond}
	silent := Step{Upstream: "192.0.2.2:53", Outcome: Timeout, Duration: 30 * time.Millisecond, Err: "silent"}
	end(0, 0, time.Millisecond, answered)
	end(1*time.Second, 3, time.Millisecond, answered)
	end(2*time.Second, 2, 2*time.Millisecond)
	end(3*time.Second, 0, 60*time.Millisecond, answered)
	end(4*time.Second, 0, 31*time.Millisecond, silent, answered)
	end(5*time.Second, 2, 300*time.Millisecond, slices.Repeat([]Step{silent}, MaxSteps+3)...)
	overtaken := silent
	overtaken.Overtaken = true
	end(5500*time.Millisecond, 0, 31*time.Millisecond, overtaken, answered) // nothing has failed

	v := s.Snapshot(epoch.Add(6 * time.Second))
	if len(v.Stories) != 4 {
		t.Fatalf("%d stories, want those of the SERVFAIL, the slow one, the failover and the failure", len(v.Stories))
	}
	first, second, last := v.Stories[0], v.Stories[1], v.Stories[3]
	if first.Rcode != 2 || len(first.Steps) != MaxSteps || first.LostStep != 3 || v.Lost[LossStep] != 3 || first.Upstream != 270*time.Millisecond {
		t.Errorf("the newest is %+v, lost %v", first, v.Lost)
	}
	if len(second.Steps) != 2 || second.Steps[0] != silent || second.Steps[1] != answered || second.Source != FromUpstream || second.Name != "name.example." {
		t.Errorf("the failover is %+v", second)
	}
	if !last.Received.Equal(epoch.Add(2*time.Second)) || last.Steps != nil || last.Client.String() != "10.244.0.3:4242" {
		t.Errorf("the oldest is %+v", last)
	}

	for i := range storiesPerShard + 5 {
		end(time.Minute+time.Duration(i)*time.Second, 2, 0)
	}
	v = s.Snapshot(epoch.Add(2 * time.Minute))
	if len(v.Stories) != storiesPerShard || v.Lost[LossStory] != 9 || !v.Stories[0].Received.Equal(epoch.Add(time.Minute+(storiesPerShard+4)*time.Second)) {
		t.Errorf("%d stories from %s on, %d overwritten", len(v.Stories), v.Stories[0].Received, v.Lost[LossStory])
	}

	var none *Trace
	none.Add(answered)
	none.Wait(time.Second)
	if _, asked := TraceFrom(context.Background()).Waited(); asked {
		t.Error("no trace waited")
	}
}

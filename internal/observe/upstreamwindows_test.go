package observe

import (
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestUpstreamWindows(t *testing.T) {
	u := newUpstreams(0, epoch)
	sink := u.Sink("192.0.2.1:53", UDP)
	var ends []time.Duration
	at := time.Duration(0)
	for i := range 2000 {
		at += 1100 * time.Millisecond
		if i%300 == 299 {
			at += 20 * time.Minute
		}
		e := Exchange{Start: epoch.Add(at), Duration: 5 * time.Millisecond, Outcome: Outcome(i % 2 * int(Timeout)), BytesOut: 40, Attempt: 2}
		sink.Begin()
		sink.End(&e)
		ends = append(ends, at+e.Duration)
		if i%29 != 0 {
			continue
		}
		now := at + time.Second
		s := u.snapshot(epoch.Add(now))[0]
		for w := range NumWindows {
			want := uint64(0)
			for _, x := range ends {
				if x >= now-s.Coverage[w] {
					want++
				}
			}
			c := &s.Windows[w]
			if c.Exchanges() != want || c.Retries != want || c.BytesOut != 40*want || c.Answers() != c.Latency.Count() || c.Latency.Sum != time.Duration(c.Answers())*5*time.Millisecond {
				t.Fatalf("at %s the last %s have %d exchanges, want %d: %+v", now, s.Coverage[w], c.Exchanges(), want, c)
			}
		}
		if s.Windows[SinceStart].Outcomes != s.Outcomes {
			t.Fatal("the window since the start is not the total")
		}
	}
}

func TestConnections(t *testing.T) {
	u := NewUpstreams(0)
	u.Sink("192.0.2.1:53", TCP)
	u.Sink("192.0.2.2:53", TCP)
	pool := func(first, n int) func() []Connection {
		return func() (list []Connection) {
			for i := range n {
				list = append(list, Connection{Upstream: "192.0.2.1:53", Proto: TCP, Opened: epoch.Add(time.Duration(first - i)), Local: netip.AddrPortFrom(podAddr(1), uint16(i)), RTT: time.Millisecond})
			}
			return list
		}
	}
	stop := u.WatchConnections(pool(1000, MaxConnections))
	stopOther := u.WatchConnections(pool(500, 3))
	s := u.Snapshot()
	if s[0].OpenConnections != MaxConnections+3 || len(s[0].Connections) != MaxConnections || len(s[1].Connections) != 0 {
		t.Fatalf("%d connections, %d listed", s[0].OpenConnections, len(s[0].Connections))
	}
	if first := s[0].Connections[0]; !first.Opened.Equal(epoch.Add(498)) || first.RTT != time.Millisecond {
		t.Errorf("the oldest is %+v", first)
	}
	stop()
	if s = u.Snapshot(); s[0].OpenConnections != 3 {
		t.Errorf("%d connections after one pool ended, want 3", s[0].OpenConnections)
	}
	stopOther()
	if s = u.Snapshot(); s[0].OpenConnections != 0 || len(s[0].Connections) != 0 {
		t.Errorf("%d connections after both pools ended", s[0].OpenConnections)
	}
}

func TestMergeUpstreams(t *testing.T) {
	var nodes [][]UpstreamSnapshot
	for n := range 3 {
		u := newUpstreams(0, epoch)
		for i := range 40 {
			sink := u.Sink(fmt.Sprintf("192.0.2.%d:53", i%(n+1)), Proto(i%2))
			sink.Begin()
			sink.End(&Exchange{Start: epoch.Add(time.Duration(100*n+i) * time.Millisecond), Duration: time.Millisecond, Outcome: Outcome(i % NumOutcomes), Err: fmt.Sprint(n, i)})
		}
		nodes = append(nodes, u.snapshot(epoch.Add(time.Second)))
	}
	all := MergeUpstreams(nodes...)
	var total UpstreamCounts
	for i := range all {
		total.Add(&all[i].Windows[Last1m])
		if i > 0 && (all[i].Upstream < all[i-1].Upstream || all[i].Upstream == all[i-1].Upstream && all[i].Proto <= all[i-1].Proto) {
			t.Errorf("%s/%s comes after %s/%s", all[i].Upstream, all[i].Proto, all[i-1].Upstream, all[i-1].Proto)
		}
		if len(all[i].Failures) > RecentFailures+RecentProbes {
			t.Errorf("%d failures", len(all[i].Failures))
		}
	}
	if total.Exchanges() != 120 || total.Answers() != 60 || total.Failures() != 60 || total.Latency.Count() != 60 {
		t.Errorf("together %+v", total)
	}
	if len(all) != 6 {
		t.Errorf("%d pairs, want 6", len(all))
	}
	if first := all[0]; first.Failures[0].Err != "2 36" {
		t.Errorf("the newest failure is %+v", first.Failures[0])
	}
}

// TestConcurrentWindows checks that the windows miss none of the exchanges that end at the same time.
func TestConcurrentWindows(t *testing.T) {
	u := newUpstreams(0, epoch)
	var wg sync.WaitGroup
	// They share a clock: stamps that run back by seconds mean that it was set.
	var ticks atomic.Int64
	for range 4 {
		wg.Go(func() {
			sink := u.Sink("a", TCP)
			for i := range 3000 {
				now := epoch.Add(time.Duration(ticks.Add(1)) * 2500 * time.Microsecond)
				sink.Begin()
				sink.End(&Exchange{Start: now.Add(-time.Microsecond), Duration: time.Microsecond})
				if i%500 == 0 {
					u.snapshot(now)
				}
			}
		})
	}
	wg.Wait()
	s := u.snapshot(epoch.Add(30 * time.Second))[0]
	if n := s.Windows[Last1h].Exchanges(); n != 12_000 {
		t.Errorf("%d exchanges in an hour, want 12,000", n)
	}
	u.snapshot(epoch.Add(10 * time.Minute))
	if s = u.snapshot(epoch.Add(10 * time.Minute))[0]; s.Windows[Last1m].Exchanges() != 0 || s.Windows[Last1h].Exchanges() != 12_000 {
		t.Errorf("10 minutes later: %d in the last minute, %d in the hour", s.Windows[Last1m].Exchanges(), s.Windows[Last1h].Exchanges())
	}
}

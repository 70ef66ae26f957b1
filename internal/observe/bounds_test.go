package observe

import (
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestConcurrentTotals checks that each query is counted exactly once, whatever happens to its client meanwhile.
func TestConcurrentTotals(t *testing.T) {
	const workers, each = 4, 20_000
	s := newQueries(QueriesOptions{Clients: 30}, epoch)
	var working, watching sync.WaitGroup
	var done atomic.Bool
	var sent atomic.Uint64
	watching.Go(func() {
		var last uint64
		for i := 0; !done.Load(); i++ {
			least := sent.Load()
			v := s.Snapshot(epoch.Add(time.Duration(i) * time.Second))
			got := v.Total[SinceStart].Queries()
			if most := sent.Load() + workers; got < last || got < least || got > most {
				t.Errorf("a snapshot has %d queries after one with %d, of %d to %d", got, last, least, most)
				return
			}
			last = got
		}
	})
	for w := range workers {
		working.Go(func() {
			for i := range each {
				// Clients come and go: each worker's are silent for 10 minutes in turn.
				q := one(w*100+i/1000*7+i%5, time.Duration(i)*time.Second)
				q.ID, q.Source, q.Rcode = uint16(i), Source(i%NumSources), i%6
				q.Name = wireName(fmt.Sprintf("name-%d.example.", i%200))
				if i%3 == 0 {
					s.End(s.Begin(&q), &q, new(Trace))
				} else {
					s.Record(&q)
				}
				sent.Add(1)
			}
		})
	}
	working.Wait()
	done.Store(true)
	watching.Wait()

	v := s.Snapshot(epoch.Add(each * time.Second))
	var sum Counts
	for _, c := range v.Clients {
		sum.Add(&c.Windows[SinceStart])
	}
	if sum != v.Total[SinceStart] || sum.Queries() != workers*each || sum.Hit.Count()+sum.Miss.Count() != workers*each || len(v.Clients) > 31 {
		t.Errorf("%d queries, %d latencies, %d clients", sum.Queries(), sum.Hit.Count()+sum.Miss.Count(), len(v.Clients))
	}
	for i, n := range sum.Sources {
		if n != workers*each/uint64(NumSources) {
			t.Errorf("%d queries from %s, want %d", n, Source(i), workers*each/NumSources)
		}
	}
	if s.clients.Load() > 30 {
		t.Errorf("%d places are taken of 30", s.clients.Load())
	}
}

// TestRecordAllocations checks that recording a query allocates nothing, unless its client is new.
func TestRecordAllocations(t *testing.T) {
	s := NewQueries(QueriesOptions{})
	list := traffic(2000, 100, 300, time.Now())
	for i := range list {
		list[i].Rcode = i % 6
		list[i].Source = Source(i % NumSources)
	}
	i, trace := 0, new(Trace)
	do := func() {
		q := &list[i%len(list)]
		q.Received += int64(time.Second)
		s.Record(q)
		s.End(s.Begin(q), q, trace)
		i++
	}
	for range 3 * len(list) {
		do()
	}
	if n := testing.AllocsPerRun(5000, do); n != 0 {
		t.Errorf("%v allocations a query, want 0", n)
	}
}

// TestMemory holds the budget: 8 MB for 1,024 clients, rings and all.
func TestMemory(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	for _, test := range []struct {
		limit, clients int
		most           int64
	}{{256, 1, 800 << 10}, {256, 300, 4 << 20}, {1024, 1500, 8 << 20}} {
		list := traffic(40_000, test.clients, 3000, epoch)
		for i := range list {
			list[i].Rcode = i % 6
			list[i].Source = Source(i % NumSources)
		}
		before := heap()
		s := newQueries(QueriesOptions{Clients: test.limit}, epoch)
		for i := range list {
			s.End(s.Begin(&list[i]), &list[i], nil)
		}
		used := heap() - before
		t.Logf("%d clients of at most %d: %d KB", test.clients, test.limit, used>>10)
		if used > test.most {
			t.Errorf("%d clients of at most %d take %d bytes, want at most %d", test.clients, test.limit, used, test.most)
		}
		runtime.KeepAlive(s)
		runtime.KeepAlive(list)
	}
}

// TestTopPeriods: recent names go, those since the start stay.
func TestTopPeriods(t *testing.T) {
	start := epoch.Truncate(time.Duration(topPeriod))
	s := newQueries(QueriesOptions{}, start)
	for i := range 5 {
		for j := range 10 {
			q := one(j, 0)
			q.Received = start.Add(time.Duration(i)*20*time.Minute + time.Second).UnixNano()
			q.Name = wireName(fmt.Sprintf("at-%d.example.", 20*i))
			q.Duration = time.Duration(i+1) * time.Millisecond
			s.Record(&q)
		}
	}
	check := func(at time.Duration, covered time.Duration, recent ...string) {
		t.Helper()
		v := s.Snapshot(start.Add(at))
		var names []string
		for _, n := range v.RecentTops[ByQueries].Names {
			names = append(names, n.Name)
		}
		if !slices.Equal(names, recent) || v.RecentCoverage != covered {
			t.Errorf("at %s: the names of the last %s are %v, want %v of %s", at, v.RecentCoverage, names, recent, covered)
		}
		for by, count := range map[TopBy]uint64{ByQueries: 10, BySlowest: 5000} {
			if top := v.Tops[by]; len(top.Names) != 5 || top.Names[0].Count != count || top.Floor != 0 {
				t.Errorf("at %s: since the start by %s %+v", at, by, top)
			}
		}
	}
	check(81*time.Minute, 51*time.Minute, "at-40.example.", "at-60.example.", "at-80.example.")
	check(95*time.Minute, 35*time.Minute, "at-60.example.", "at-80.example.")
	check(10*time.Hour, 30*time.Minute)

	s = newQueries(QueriesOptions{}, start)
	q := one(1, 0)
	q.Received = start.Add(time.Second).UnixNano()
	s.Record(&q)
	if v := s.Snapshot(start.Add(10 * time.Hour)); len(v.RecentTops[ByQueries].Names) != 0 || len(v.Tops[ByQueries].Names) != 1 {
		t.Errorf("10 hours later: recent %+v, since the start %+v", v.RecentTops[ByQueries], v.Tops[ByQueries])
	}
}

// TestDecisionOutlivesClient: a retransmit that is found when its client has lost its place counts.
func TestDecisionOutlivesClient(t *testing.T) {
	for i := range 20 { // in the same shard, and in others
		s := newQueries(QueriesOptions{Clients: 1}, epoch)
		for j, at := range []time.Duration{0, 5001 * time.Millisecond, 10 * time.Minute} {
			q := one(0, at)
			q.ID, q.Client = uint16(j), netip.AddrPortFrom(podAddr(j/2*(i+1)), uint16(j))
			s.Record(&q)
		}
		v := s.Snapshot(epoch.Add(11 * time.Minute))
		if len(v.Clients) != 2 || v.Clients[1].Windows[SinceStart].Suspected[ReplyLost] != 1 {
			t.Fatalf("client %d: %d clients, suspected %v", i, len(v.Clients), v.Total[SinceStart].Suspected)
		}
	}
}

// TestLostRetransmits checks that questions beyond the memory are counted as lost.
func TestLostRetransmits(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	ask := func(name int, at time.Duration, id uint16) {
		q := one(1, at)
		q.Name, q.ID, q.Client = wireName(fmt.Sprintf("n%d.example.", name)), id, netip.AddrPortFrom(podAddr(1), id)
		s.Record(&q)
	}
	const open = len(decisions{}.open)
	for i := range open + 3 {
		ask(i, 0, 1)
	}
	for i := range open + 3 {
		ask(i, 5001*time.Millisecond, 2)
	}
	v := s.Snapshot(epoch.Add(time.Minute))
	if v.Lost[LossUndecided] != 3 || v.Total[SinceStart].Suspected[ReplyLost] != uint64(open) {
		t.Errorf("lost %v, suspected %v; want 3 undecided and %d", v.Lost, v.Total[SinceStart].Suspected, open)
	}
	for i := range questionSets*questionWays + 100 {
		ask(1000+i, 2*time.Minute, 1)
	}
	if v = s.Snapshot(epoch.Add(2 * time.Minute)); v.Lost[LossQuestion] < 100 {
		t.Errorf("lost %v, want 100 forgotten questions at least", v.Lost)
	}
}

// TestSnapshotDuringEvictions checks that a client that loses its place during a snapshot is counted once.
func TestSnapshotDuringEvictions(t *testing.T) {
	const clients, each = 400, 1000
	s := newQueries(QueriesOptions{Clients: clients}, epoch)
	for i := range clients {
		q := one(i, 0)
		s.Record(&q)
	}
	var done atomic.Bool
	var sent atomic.Uint64
	var wg sync.WaitGroup
	wg.Go(func() {
		defer done.Store(true)
		for i := range each {
			q := one(clients+i, 10*time.Minute+time.Duration(i)*2*time.Second)
			s.Record(&q)
			sent.Add(1)
			runtime.Gosched()
		}
	})
	for last := uint64(clients); !done.Load(); {
		v := s.Snapshot(epoch)
		got := v.Total[SinceStart].Queries()
		if most := clients + sent.Load() + 1; got < last || got > most {
			t.Errorf("%d queries after %d, of %d at most", got, last, most)
			break
		}
		last = got
	}
	wg.Wait()
	if got := s.Snapshot(epoch).Total[SinceStart].Queries(); got != clients+each {
		t.Errorf("%d queries, want %d", got, clients+each)
	}
}

package observe

import (
	"net/netip"
	"sync"
	"testing"
	"time"
)

// shown returns the queries of a client since the start; 0 if it has no place.
func shown(v *QueriesSnapshot, client string) uint64 {
	for i := range v.Clients {
		if v.Clients[i].Client == client {
			return v.Clients[i].Windows[SinceStart].Queries()
		}
	}
	return 0
}

// TestForget checks that the next owner of an address inherits nothing, that no query is lost, and that a place
// becomes free.
func TestForget(t *testing.T) {
	s := newQueries(QueriesOptions{Clients: 2}, epoch)
	for i := range 5 {
		q := one(1, time.Duration(i)*time.Second)
		s.Record(&q)
	}
	q := one(2, 5*time.Second)
	s.Record(&q)
	addr := podAddr(1)
	if s.Forget(podAddr(3), epoch.Add(time.Hour)) {
		t.Error("forgot a client that was never here")
	}
	if s.Forget(addr, epoch) {
		t.Error("forgot a client that was first seen when the address was the new pod's already")
	}
	if !s.Forget(addr, epoch.Add(time.Millisecond)) || s.Forget(addr, epoch.Add(time.Hour)) {
		t.Error("the client is not forgotten, or twice")
	}
	for i := range 3 {
		q := one(1, time.Duration(10+i)*time.Second)
		s.Record(&q)
	}
	for _, at := range []time.Duration{13 * time.Second, 14 * time.Second} {
		v := s.Snapshot(epoch.Add(at))
		if a, other, b := shown(v, addr.String()), shown(v, Overflow), shown(v, podAddr(2).String()); a != 3 || other != 5 || b != 1 {
			t.Errorf("the new client has %d queries, %s %d, the other %d; want 3, 5 and 1", a, Overflow, other, b)
		}
		if got := v.Total[SinceStart].Queries(); got != 9 {
			t.Errorf("%d queries altogether, want 9", got)
		}
	}
	if v := s.Snapshot(epoch.Add(14 * time.Second)); !v.Clients[0].FirstSeen.Equal(epoch.Add(10 * time.Second)) {
		t.Errorf("first seen at %s", v.Clients[0].FirstSeen.Sub(epoch))
	}
	totals := s.Totals(epoch.Add(13 * time.Second))
	if totals.Clients != 2 || totals.Evictions != 0 || totals.Queries() != 9 {
		t.Errorf("%d clients, %d evictions, %d queries", totals.Clients, totals.Evictions, totals.Queries())
	}
}

// TestForgetMapped: an address is the same in both forms.
func TestForgetMapped(t *testing.T) {
	s := newQueries(QueriesOptions{}, epoch)
	q := one(1, 0)
	s.Record(&q)
	if !s.Forget(netip.AddrFrom16(podAddr(1).As16()), epoch.Add(time.Hour)) {
		t.Error("not found")
	}
}

// TestForgetInFlight checks that a pending query of the former client is not counted for the new one when it ends,
// whether there is a new one yet or not.
func TestForgetInFlight(t *testing.T) {
	for _, newcomer := range []bool{false, true} {
		s := newQueries(QueriesOptions{Slow: time.Second}, epoch)
		old := one(1, time.Second)
		old.Source = FromUpstream
		token := s.Begin(&old)
		s.Forget(podAddr(1), epoch.Add(2*time.Second))
		want := uint64(0)
		if newcomer {
			q := one(1, 3*time.Second)
			q.ID = 2
			s.Record(&q)
			want = 1
		}
		old.Duration = 5 * time.Second
		s.End(token, &old, nil)
		v := s.Snapshot(epoch.Add(10 * time.Second))
		if a, other := shown(v, podAddr(1).String()), shown(v, Overflow); a != want || other != 1 || v.InFlight != 0 {
			t.Errorf("newcomer %t: it has %d queries, %s %d, %d in flight", newcomer, a, Overflow, other, v.InFlight)
		}
		if len(v.Stories) != 1 || !v.Stories[0].Received.Equal(epoch.Add(time.Second)) {
			t.Errorf("the story of the query is %+v", v.Stories)
		}
	}
}

// TestForgetQuestions checks that two pods with the same address that ask the same within a resolver's retry time
// cause no retransmit; without Forget they do.
func TestForgetQuestions(t *testing.T) {
	for _, resolver := range []struct {
		name  string
		after time.Duration
		port  uint16
		id    uint16
	}{
		{"glibc", 5 * time.Second, 4242, 1},
		{"musl", 2500 * time.Millisecond, 4242, 1},
		{"go", 5 * time.Second, 4243, 2},
	} {
		for _, forgotten := range []bool{false, true} {
			s := newQueries(QueriesOptions{}, epoch)
			first := one(1, time.Second)
			first.Duration = 5500 * time.Millisecond // nobody waits so long
			s.End(s.Begin(&first), &first, nil)
			if forgotten {
				s.Forget(podAddr(1), epoch.Add(2*time.Second))
			}
			again := one(1, time.Second+resolver.after)
			again.Client, again.ID = netip.AddrPortFrom(podAddr(1), resolver.port), resolver.id
			again.Duration = 2500 * time.Microsecond // the client is seen first when it has its answer
			s.Record(&again)
			v := s.Snapshot(epoch.Add(time.Minute))
			got := v.Total[SinceStart].Retransmitted()
			for _, n := range v.Total[SinceStart].Suspected {
				got += n
			}
			if want := uint64(1); !forgotten && got != want || forgotten && got != 0 {
				t.Errorf("%s, forgotten %t: %d retransmits", resolver.name, forgotten, got)
			}
		}
	}
}

// TestForgetOldClient checks that questions of a long-known client count as its own, even if its first one was so
// long ago that the milliseconds have wrapped around.
func TestForgetOldClient(t *testing.T) {
	for _, days := range []int{0, 1, 25, 30, 49, 50, 75, 100} {
		s := newQueries(QueriesOptions{}, epoch)
		later := time.Duration(days)*24*time.Hour + time.Minute
		for _, at := range []time.Duration{0, later, later + 5*time.Second} {
			q := one(1, at)
			s.Record(&q)
		}
		if got := s.Snapshot(epoch.Add(later + time.Minute)).Total[SinceStart].Retransmits[Glibc][ReplyLost]; got != 1 {
			t.Errorf("after %d days: %d retransmits, want 1", days, got)
		}
	}
}

// TestForgetConcurrently checks that each query is counted once, whichever client is forgotten meanwhile.
func TestForgetConcurrently(t *testing.T) {
	const workers, each = 4, 5_000
	s := newQueries(QueriesOptions{Clients: 10}, epoch)
	var working, forgetting sync.WaitGroup
	done := make(chan struct{})
	forgetting.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			s.Forget(podAddr(i%12), epoch.Add(24*time.Hour))
			if i%10 == 0 {
				s.Snapshot(epoch.Add(time.Hour))
				if n := s.clients.Load(); n < 0 {
					t.Errorf("%d places are taken", n)
					return
				}
			}
		}
	})
	for w := range workers {
		working.Go(func() {
			for i := range each {
				q := one((w+i)%12, time.Duration(i)*time.Millisecond)
				if i%2 == 0 {
					s.End(s.Begin(&q), &q, nil)
				} else {
					s.Record(&q)
				}
			}
		})
	}
	working.Wait()
	close(done)
	forgetting.Wait()
	for i := range 12 {
		s.Forget(podAddr(i), epoch.Add(24*time.Hour))
	}
	v := s.Snapshot(epoch.Add(time.Hour))
	if got := shown(v, Overflow); got != workers*each || s.clients.Load() != 0 {
		t.Errorf("%d of %d queries are left, %d places are taken", got, workers*each, s.clients.Load())
	}
}

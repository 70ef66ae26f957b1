package observe

import "time"

// Totals are sums over all clients since the start. They cost far less than a Snapshot.
type Totals struct {
	Counts                      // of SinceStart
	Lost      [NumLosses]uint64 // by Loss
	Clients   int               // that have statistics of their own
	Evictions uint64            // clients that lost their place to another one
	InFlight  int64             // between Begin and End
}

// Totals returns the sums at now. No counter is lower than at the previous call. It holds a shard's lock for as long
// as it takes to add up its clients.
func (s *Queries) Totals(now time.Time) Totals {
	latest := milliseconds(max(s.clock.at(now.UnixNano()), s.clock.latest.Load()))
	t := Totals{Clients: int(s.clients.Load()), InFlight: s.inFlight.Load()}
	t.Lost[LossNoClient] = s.noClient.Load()
	var sum tally
	for i := range s.shards {
		s.shards[i].addTotals(&sum, &t, latest)
	}
	t.Counts = sum.since(nil)
	return t
}

func (sh *shard) addTotals(sum *tally, t *Totals, now uint32) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.recent.decisions.settle(now)
	for _, c := range sh.clients.slots {
		if c != nil {
			sum.add(&c.tally)
		}
	}
	if sh.other != nil {
		sum.add(&sh.other.tally)
	}
	for l, n := range sh.lost {
		t.Lost[l] += n
	}
	t.Evictions += sh.evictions - sh.forgotten
}

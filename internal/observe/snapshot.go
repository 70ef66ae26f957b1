package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// QueriesSnapshot is a copy of the statistics of Queries. Those of several nodes merge by Add.
type QueriesSnapshot struct {
	At time.Time `json:"at"`
	// Coverage is how long each window really is, for rates: it begins at a multiple of its step, so
	// it is up to half longer than its name says, and shorter after the start.
	Coverage [NumWindows]time.Duration `json:"coverageNanoseconds"`
	// Total is the sum over Clients.
	Total [NumWindows]Counts `json:"total"`
	// Upstream are the times that misses spent waiting for upstreams, Queued those that queries spent
	// in the queue of the socket, where it is known and not 0.
	Upstream [NumWindows]Latency `json:"upstream"`
	Queued   [NumWindows]Latency `json:"queued"`
	// Clients are sorted by address; Overflow, if there is one, is the last.
	Clients []ClientSnapshot `json:"clients"`
	// Tops are since the start, RecentTops since RecentCoverage ago, 30 minutes to an hour: both are
	// indexed by TopBy. Those of BySlowest are in microseconds. Names of more than 127 bytes are cut.
	Tops           [NumTops]Top  `json:"tops"`
	RecentTops     [NumTops]Top  `json:"recentTops"`
	RecentCoverage time.Duration `json:"recentCoverageNanoseconds"`
	// Stories of slow and failed queries, the newest first.
	Stories  []Story `json:"stories"`
	InFlight int64   `json:"inFlight"` // between Begin and End
	// Lost counts by Loss.
	Lost [NumLosses]uint64 `json:"lost"`
}

// ClientSnapshot is a copy of one client's statistics.
type ClientSnapshot struct {
	Client    string             `json:"client"` // IP address, or Overflow
	FirstSeen time.Time          `json:"firstSeen"`
	LastSeen  time.Time          `json:"lastSeen"`
	Windows   [NumWindows]Counts `json:"windows"`
	// Names are the client's most frequent ones since FirstSeen. Long ones are cut.
	Names Top `json:"names"`
}

// Snapshot copies the statistics as they are at now. Each query that ended before is in it, each that
// ends meanwhile is in it or not. It takes the locks for one client at a time.
func (s *Queries) Snapshot(now time.Time) *QueriesSnapshot {
	t := max(s.clock.at(now.UnixNano()), s.clock.latest.Load())
	v := &QueriesSnapshot{At: now, InFlight: s.inFlight.Load(), Clients: make([]ClientSnapshot, 0, s.clients.Load()+1)}
	v.Lost[LossNoClient] = s.noClient.Load()
	v.Coverage = coverage(s.started, t)
	v.RecentCoverage = recentTops(s.started, t)
	var other *ClientSnapshot
	for i := range s.shards {
		clients, others := s.shards[i].snapshotClients(&s.clock, t)
		v.Clients = append(v.Clients, clients...)
		switch {
		case others == nil:
		case other == nil:
			other = others
		default:
			other.Add(others)
		}
		s.shards[i].snapshotCommon(v, t)
	}
	if other != nil {
		v.Clients = append(v.Clients, *other)
	}
	v.Clients = sortClients(v.Clients)
	sortStories(v.Stories)
	for i := range v.Clients {
		for w := range v.Total {
			v.Total[w].Add(&v.Clients[i].Windows[w])
		}
	}
	return v
}

// snapshotClients copies the shard's clients. A client that loses its place meanwhile would be counted
// twice, in Overflow too: then it begins anew, at the third time without letting go of the lock.
func (sh *shard) snapshotClients(clock *timeline, t int64) (list []ClientSnapshot, other *ClientSnapshot) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.recent.decisions.settle(milliseconds(t))
	for try := 1; ; try++ {
		evictions := sh.evictions
		clients := sh.clients.list()
		if sh.other != nil {
			clients = append(clients, sh.other)
		}
		list, other = make([]ClientSnapshot, 0, len(clients)), nil
		for _, c := range clients {
			list = append(list, c.snapshot(clock, t))
			if try < 3 {
				sh.mu.Unlock()
				sh.mu.Lock()
			}
		}
		if evictions != sh.evictions {
			continue
		}
		if n := len(list) - 1; n >= 0 && clients[n] == sh.other {
			list, other = list[:n], &list[n]
		}
		return list, other
	}
}

func (c *client) snapshot(clock *timeline, t int64) ClientSnapshot {
	if c.marks.due(t) {
		c.marks.advance(t, c.tally.mark())
	}
	v := ClientSnapshot{Client: Overflow, FirstSeen: clock.wall(c.first), LastSeen: clock.wall(c.last), Names: c.names.snapshot(c.names.floor())}
	if c.addr.IsValid() {
		v.Client = c.addr.String()
	}
	for w := range rolling {
		v.Windows[w] = c.tally.since(c.marks.since(Window(w)))
	}
	v.Windows[SinceStart] = c.tally.since(nil)
	return v
}

// snapshotCommon adds what the shard's clients have in common.
func (sh *shard) snapshotCommon(v *QueriesSnapshot, t int64) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if sh.waitMarks.due(t) {
		sh.waitMarks.advance(t, sh.waits.mark())
		sh.tops.advance(t)
	}
	for w := range NumWindows {
		var mark *waitsMark
		if w < rolling {
			mark = sh.waitMarks.since(Window(w))
		}
		now := sh.waits.since(mark)
		v.Upstream[w].Add(&now[waitUpstream])
		v.Queued[w].Add(&now[waitQueued])
	}
	sh.tops.addTo(&v.Tops, &v.RecentTops)
	v.Stories = sh.stories.appendTo(v.Stories)
	for l, n := range sh.lost {
		v.Lost[l] += n
	}
}

// Add merges the statistics of another node into s.
func (s *QueriesSnapshot) Add(other *QueriesSnapshot) {
	if other.At.After(s.At) {
		s.At = other.At
	}
	for w := range NumWindows {
		s.Coverage[w] = max(s.Coverage[w], other.Coverage[w])
		s.Total[w].Add(&other.Total[w])
		s.Upstream[w].Add(&other.Upstream[w])
		s.Queued[w].Add(&other.Queued[w])
	}
	s.Clients = mergeClients(s.Clients, other.Clients)
	for by := range s.Tops {
		addTop(&s.Tops[by], &other.Tops[by], TopBy(by))
		addTop(&s.RecentTops[by], &other.RecentTops[by], TopBy(by))
	}
	s.RecentCoverage = max(s.RecentCoverage, other.RecentCoverage)
	s.InFlight += other.InFlight
	for l, n := range other.Lost {
		s.Lost[l] += n
	}
	s.Stories = slices.Concat(s.Stories, other.Stories)
	sortStories(s.Stories)
	if n := len(s.Stories) - MaxStories; n > 0 {
		s.Stories = s.Stories[:MaxStories:MaxStories]
		s.Lost[LossStory] += uint64(n)
	}
}

// MaxStories is how many stories a merged snapshot keeps: those of four nodes at least.
const MaxStories = 4 * numShards * storiesPerShard

// Add merges the statistics of the same client on another node into c.
func (c *ClientSnapshot) Add(other *ClientSnapshot) {
	if other.FirstSeen.Before(c.FirstSeen) {
		c.FirstSeen = other.FirstSeen
	}
	if other.LastSeen.After(c.LastSeen) {
		c.LastSeen = other.LastSeen
	}
	for w := range c.Windows {
		c.Windows[w].Add(&other.Windows[w])
	}
	c.Names.Add(&other.Names)
}

// mergeClients makes one of those that are the same.
func mergeClients(lists ...[]ClientSnapshot) []ClientSnapshot {
	n := 0
	for _, list := range lists {
		n += len(list)
	}
	at, all := make(map[string]int, n), make([]ClientSnapshot, 0, n)
	for _, list := range lists {
		for i := range list {
			if j, ok := at[list[i].Client]; ok {
				all[j].Add(&list[i])
			} else {
				at[list[i].Client] = len(all)
				all = append(all, list[i])
			}
		}
	}
	return sortClients(all)
}

// sortClients sorts by address. What is no address comes last.
func sortClients(list []ClientSnapshot) []ClientSnapshot {
	type key struct {
		addr  netip.Addr // invalid for what is none
		index int
	}
	keys := make([]key, len(list))
	for i := range list {
		addr, err := netip.ParseAddr(list[i].Client)
		if err != nil {
			addr = netip.Addr{}
		}
		keys[i] = key{addr, i}
	}
	slices.SortFunc(keys, func(a, b key) int {
		if a.addr.IsValid() != b.addr.IsValid() {
			if a.addr.IsValid() {
				return -1
			}
			return 1
		}
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(list[a.index].Client, list[b.index].Client))
	})
	sorted := make([]ClientSnapshot, len(list))
	for i, k := range keys {
		sorted[i] = list[k.index]
	}
	return sorted
}

package observe

import (
	"cmp"
	"net/netip"
	"runtime"
	"slices"
	"time"
)

// QueriesSnapshot is a copy of the statistics of Queries. Those of several nodes merge by Add.
type QueriesSnapshot struct {
	At time.Time `json:"at"`
	// Coverage is the real length of each window, for rates: a window begins at a multiple of its step, so it is up
	// to half longer than its name says, and shorter after the start.
	Coverage [NumWindows]time.Duration `json:"coverageNanoseconds"`
	// Total is the sum over Clients.
	Total [NumWindows]Counts `json:"total"`
	// Upstream is the time that misses spent waiting for upstreams, Queued the time that queries spent in the
	// socket's queue, if it is known and not 0.
	Upstream [NumWindows]Latency `json:"upstream"`
	Queued   [NumWindows]Latency `json:"queued"`
	// Clients are sorted by address; Overflow, if present, is the last.
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

// Snapshot copies the statistics at now. Every query that ended before is included; queries that end meanwhile may
// be. It takes the locks for one client at a time.
func (s *Queries) Snapshot(now time.Time) *QueriesSnapshot {
	t := max(s.clock.at(now.UnixNano()), s.clock.latest.Load())
	// A client's copy has 5 KB: each is created once, where it stays until it is sorted.
	v := &QueriesSnapshot{At: now, InFlight: s.inFlight.Load(), Clients: make([]ClientSnapshot, 0, int(s.clients.Load())+numShards)}
	v.Lost[LossNoClient] = s.noClient.Load()
	v.Coverage = coverage(s.started, t)
	v.RecentCoverage = recentTops(s.started, t)
	var other *ClientSnapshot
	for i := range s.shards {
		var others *ClientSnapshot
		v.Clients, others = s.shards[i].snapshotClients(v.Clients, &s.clock, t)
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
	sortClients(v.Clients)
	sortStories(v.Stories)
	for i := range v.Clients {
		for w := range v.Total {
			v.Total[w].Add(&v.Clients[i].Windows[w])
		}
	}
	return v
}

// snapshotClients appends copies of the shard's clients to all. A client that loses its place meanwhile would be
// counted twice, because Overflow has it too: the copy then starts again, the third time without releasing the lock.
func (sh *shard) snapshotClients(all []ClientSnapshot, clock *timeline, t int64) (list []ClientSnapshot, other *ClientSnapshot) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.recent.decisions.settle(milliseconds(t))
	for try := 1; ; try++ {
		evictions := sh.evictions
		clients := sh.clients.list()
		if sh.other != nil {
			clients = append(clients, sh.other)
		}
		list, other = slices.Grow(all, len(clients)), nil
		for _, c := range clients {
			list = list[:len(list)+1]
			c.snapshot(&list[len(list)-1], clock, t)
			if try < 3 {
				sh.mu.Unlock()
				// A waiter has been woken, and would otherwise find the lock taken again.
				runtime.Gosched()
				sh.mu.Lock()
			}
		}
		if evictions != sh.evictions {
			continue
		}
		if n := len(clients) - 1; n >= 0 && clients[n] == sh.other {
			last := list[len(list)-1]
			list, other = list[:len(list)-1], &last
		}
		return list, other
	}
}

func (c *client) snapshot(v *ClientSnapshot, clock *timeline, t int64) {
	if c.marks.due(t) {
		c.marks.advance(t, c.tally.mark())
	}
	v.Client, v.FirstSeen, v.LastSeen, v.Names = Overflow, clock.wall(c.first), clock.wall(c.last), c.names.snapshot(c.names.floor())
	if c.addr.IsValid() {
		v.Client = c.addr.String()
	}
	for w := range rolling {
		v.Windows[w] = c.tally.since(c.marks.since(Window(w)))
	}
	v.Windows[SinceStart] = c.tally.since(nil)
}

// snapshotCommon adds what the shard's clients have in common. Everything that takes longer than a copy is done
// without the lock.
func (sh *shard) snapshotCommon(v *QueriesSnapshot, t int64) {
	stories := make([]story, 0, storiesPerShard)
	sh.mu.Lock()
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
	for l, n := range sh.lost {
		v.Lost[l] += n
	}
	stories = append(stories, sh.stories.kept()...)
	sh.mu.Unlock()
	v.Stories = appendStories(v.Stories, stories)
	for by := range NumTops {
		sh.mu.Lock()
		lists := sh.tops.copyOf(TopBy(by)) // all three of one order: at the end of a period they change together
		sh.mu.Unlock()
		lists.addTo(&v.Tops[by], &v.RecentTops[by], TopBy(by))
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

// MaxStories is how many stories a merged snapshot keeps: at least those of four nodes.
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

// mergeClients merges entries of the same client.
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
	sortClients(all)
	return all
}

// sortClients sorts by address. Entries without an address come last.
func sortClients(list []ClientSnapshot) {
	type key struct {
		addr  netip.Addr // invalid if there is none
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
	// Each entry is moved once, along the cycles of the permutation.
	for i := range keys {
		if keys[i].index == i {
			continue
		}
		first, to := list[i], i
		for keys[to].index != i {
			from := keys[to].index
			list[to] = list[from]
			keys[to].index, to = to, from
		}
		list[to] = first
		keys[to].index = to
	}
}

package observe

import (
	"cmp"
	"slices"
	"time"
)

// UpstreamCounts holds what happened to exchanges with one upstream over one transport in one window. The fields are
// those of UpstreamSnapshot; a Drop has no time of its own and counts with the exchange that ends next.
type UpstreamCounts struct {
	Outcomes [NumOutcomes]uint64 `json:"outcomes"`
	Probes   [NumOutcomes]uint64 `json:"probes"`
	Drops    [NumDrops]uint64    `json:"drops"`
	Hedges   uint64              `json:"hedges"`
	Retries  uint64              `json:"retries"`
	Reused   uint64              `json:"reused"`
	BytesOut uint64              `json:"bytesOut"`
	BytesIn  uint64              `json:"bytesIn"`
	Latency  Latency             `json:"latency"`
}

// Exchanges is the number of clients' exchanges.
func (c *UpstreamCounts) Exchanges() uint64 { return c.Answers() + c.Failures() }

// Answers is the number of clients' exchanges that ended in an answer.
func (c *UpstreamCounts) Answers() uint64 {
	var n uint64
	for _, k := range c.Outcomes[:numRcodes] {
		n += k
	}
	return n
}

// Failures is the number of clients' exchanges that did not.
func (c *UpstreamCounts) Failures() uint64 {
	var n uint64
	for _, k := range c.Outcomes[numRcodes:] {
		n += k
	}
	return n
}

// Add merges other into c.
func (c *UpstreamCounts) Add(other *UpstreamCounts) {
	for i := range c.Outcomes {
		c.Outcomes[i] += other.Outcomes[i]
		c.Probes[i] += other.Probes[i]
	}
	for i, n := range other.Drops {
		c.Drops[i] += n
	}
	c.Hedges += other.Hedges
	c.Retries += other.Retries
	c.Reused += other.Reused
	c.BytesOut += other.BytesOut
	c.BytesIn += other.BytesIn
	c.Latency.Add(&other.Latency)
}

// sub returns c without what was counted before.
func (c UpstreamCounts) sub(before *UpstreamCounts) UpstreamCounts {
	for i := range c.Outcomes {
		c.Outcomes[i] -= before.Outcomes[i]
		c.Probes[i] -= before.Probes[i]
	}
	for i, n := range before.Drops {
		c.Drops[i] -= n
	}
	c.Hedges -= before.Hedges
	c.Retries -= before.Retries
	c.Reused -= before.Reused
	c.BytesOut -= before.BytesOut
	c.BytesIn -= before.BytesIn
	for i, n := range before.Latency.Counts {
		c.Latency.Counts[i] -= n
	}
	c.Latency.Sum -= before.Latency.Sum
	return c
}

// counts returns the current counters. It takes some hundred nanoseconds.
func (s *upstreamStats) counts() *UpstreamCounts {
	c := &UpstreamCounts{
		Hedges: s.hedges.Load(), Retries: s.retries.Load(), Reused: s.reused.Load(),
		BytesOut: s.bytesOut.Load(), BytesIn: s.bytesIn.Load(),
	}
	for i := range c.Outcomes {
		c.Outcomes[i] = s.outcomes[i].Load()
		c.Probes[i] = s.probes[i].Load()
	}
	for i := range c.Drops {
		c.Drops[i] = s.drops[i].Load()
	}
	for i := range s.latency.counts {
		c.Latency.Counts[coarse(i)] += s.latency.counts[i].Load()
	}
	c.Latency.Sum = time.Duration(s.latency.sum.Load())
	return c
}

// advance makes the marks that are due, before the exchange that ended at t is counted. An exchange that ends
// elsewhere at the same moment may be counted on either side.
func (s *upstreamStats) advance(t int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.marks.due(t) {
		s.marks.advance(t, s.counts())
		s.nextMark.Store(s.marks.next)
	}
}

// windows returns what was counted in each window that ends now. Call it after advance.
func (s *upstreamStats) windows() (w [NumWindows]UpstreamCounts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.counts()
	for i := range rolling {
		w[i] = now.sub(s.marks.since(Window(i)))
	}
	w[SinceStart] = *now
	return w
}

// Add merges the statistics that another node has about the same upstream and transport into s.
func (s *UpstreamSnapshot) Add(other *UpstreamSnapshot) {
	for i := range s.Outcomes {
		s.Outcomes[i] += other.Outcomes[i]
		s.Probes[i] += other.Probes[i]
	}
	for i, n := range other.Drops {
		s.Drops[i] += n
	}
	s.Hedges += other.Hedges
	s.Retries += other.Retries
	s.Reused += other.Reused
	s.BytesOut += other.BytesOut
	s.BytesIn += other.BytesIn
	s.InFlight += other.InFlight
	s.Latency.Add(&other.Latency)
	for w := range s.Windows {
		s.Windows[w].Add(&other.Windows[w])
		s.Coverage[w] = max(s.Coverage[w], other.Coverage[w])
	}
	if other.LastAnswer.After(s.LastAnswer) {
		s.LastAnswer = other.LastAnswer
	}
	if other.LastFailure.After(s.LastFailure) {
		s.LastFailure = other.LastFailure
	}
	if s.FailingSince.IsZero() || !other.FailingSince.IsZero() && other.FailingSince.Before(s.FailingSince) {
		s.FailingSince = other.FailingSince
	}
	s.Failures = recentFailures(s.Failures, other.Failures)
	open := s.OpenConnections + other.OpenConnections
	list := slices.Concat(s.Connections, other.Connections)
	sortConnections(list)
	s.setConnections(list)
	s.OpenConnections = open
}

// MergeUpstreams merges the statistics of nodes, sorted by upstream and transport.
func MergeUpstreams(nodes ...[]UpstreamSnapshot) []UpstreamSnapshot {
	at := make(map[upstreamKey]int)
	var all []UpstreamSnapshot
	for _, node := range nodes {
		for i := range node {
			key := upstreamKey{node[i].Upstream, node[i].Proto}
			if j, ok := at[key]; ok {
				all[j].Add(&node[i])
				continue
			}
			at[key] = len(all)
			all = append(all, node[i])
		}
	}
	sortUpstreams(all)
	return all
}

func sortUpstreams(list []UpstreamSnapshot) {
	slices.SortFunc(list, func(a, b UpstreamSnapshot) int {
		return cmp.Or(cmp.Compare(a.Upstream, b.Upstream), cmp.Compare(a.Proto, b.Proto))
	})
}

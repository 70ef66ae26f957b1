package observe

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultMaxUpstreams is how many pairs of upstream and transport get statistics of their own. One costs about 16
	// KiB. kube-dns and the node's resolvers are fewer than 20 pairs.
	DefaultMaxUpstreams = 256
	// RecentFailures is how many failed exchanges of clients each pair remembers.
	RecentFailures = 32
	// RecentProbes is how many failed health checks each pair remembers: the first and the latest one of each of its
	// last outages.
	RecentProbes = 4
	// Overflow is the name under which further upstreams are counted together.
	Overflow = "~other"
)

// Upstreams keeps statistics for each pair of upstream and transport. It is a Recorder.
type Upstreams struct {
	limit   int
	started int64
	clock   timeline

	mu    sync.Mutex
	all   map[upstreamKey]*upstreamStats
	pools []connectionPool
}

type upstreamKey struct {
	upstream string
	proto    Proto
}

// NewUpstreams returns statistics for at most limit pairs of upstream and transport; 0 means DefaultMaxUpstreams. At
// the limit, the pair that was silent longest among those without a Sink makes room; if there is none, new pairs are
// counted together as Overflow.
func NewUpstreams(limit int) *Upstreams { return newUpstreams(limit, time.Now()) }

func newUpstreams(limit int, now time.Time) *Upstreams {
	if limit <= 0 {
		limit = DefaultMaxUpstreams
	}
	u := &Upstreams{limit: limit, started: now.UnixNano(), all: make(map[upstreamKey]*upstreamStats)}
	u.clock.latest.Store(u.started)
	return u
}

// Sink implements Recorder. A pair that was known before keeps its statistics.
func (u *Upstreams) Sink(upstream string, proto Proto) Sink {
	u.mu.Lock()
	defer u.mu.Unlock()
	key := upstreamKey{upstream, proto}
	s := u.all[key]
	if s == nil && len(u.all) >= u.limit && !u.evict() {
		key.upstream = Overflow
		s = u.all[key]
	}
	if s == nil {
		s = &upstreamStats{owner: u, key: key}
		s.marks.start(u.clock.at(0))
		s.nextMark.Store(s.marks.next)
		u.all[key] = s
	}
	s.refs++
	return s
}

// evict forgets the pair that was silent longest among the released ones. It runs with u.mu held.
func (u *Upstreams) evict() bool {
	var oldest *upstreamStats
	for _, s := range u.all {
		if s.refs == 0 && (oldest == nil || s.lastEnd.Load() < oldest.lastEnd.Load()) {
			oldest = s
		}
	}
	if oldest == nil {
		return false
	}
	delete(u.all, oldest.key)
	return true
}

// Snapshot copies all statistics, sorted by upstream and transport.
func (u *Upstreams) Snapshot() []UpstreamSnapshot { return u.snapshot(time.Now()) }

func (u *Upstreams) snapshot(now time.Time) []UpstreamSnapshot {
	t := max(u.clock.at(now.UnixNano()), u.clock.latest.Load())
	u.mu.Lock()
	pools := slices.Clone(u.pools)
	all := make([]*upstreamStats, 0, len(u.all))
	for _, s := range u.all {
		all = append(all, s)
	}
	u.mu.Unlock()

	snapshots := make([]UpstreamSnapshot, len(all))
	open := connections(pools)
	for i, s := range all {
		s.advance(t)
		snapshots[i] = s.snapshot()
		snapshots[i].Coverage = coverage(u.started, t)
		snapshots[i].setConnections(open[s.key])
	}
	sortUpstreams(snapshots)
	return snapshots
}

// UpstreamSnapshot is a copy of the statistics of one upstream over one transport. Counters run since
// the start of the process; two snapshots make a window by subtraction.
type UpstreamSnapshot struct {
	Upstream string
	Proto    Proto
	// Windows has the same counters for each Window, with latencies in coarser buckets. Coverage is the real length
	// of each; see QueriesSnapshot.
	Windows  [NumWindows]UpstreamCounts
	Coverage [NumWindows]time.Duration
	// Connections are open at the moment, the oldest first; OpenConnections is their number.
	Connections     []Connection
	OpenConnections int
	// Outcomes counts clients' exchanges by outcome, Probes health checks.
	Outcomes [NumOutcomes]uint64
	Probes   [NumOutcomes]uint64
	Drops    [NumDrops]uint64
	Hedges   uint64 // exchanges sent while an earlier attempt was waiting
	Retries  uint64 // exchanges that were not the first attempt, hedges included
	Reused   uint64 // exchanges on a connection that had carried another one
	BytesOut uint64
	BytesIn  uint64
	InFlight int64
	// Latency counts clients' exchanges that ended in an answer: timeouts would only show how long the client was
	// willing to wait.
	Latency Buckets
	// LastAnswer and LastFailure are zero if there was none; probes count.
	LastAnswer  time.Time
	LastFailure time.Time
	// FailingSince is the start of the first exchange or health check that failed and was followed by no answer; zero
	// while the upstream answers.
	FailingSince time.Time
	// Failures are the most recent failures, newest first: RecentFailures of clients, RecentProbes of health checks.
	Failures []Exchange
}

// upstreamStats is updated by exchanges as they end. Its lock is taken only by a failure and by the first exchange in
// each step of the windows.
type upstreamStats struct {
	owner *Upstreams
	key   upstreamKey
	refs  int // guarded by owner.mu

	inFlight   atomic.Int64
	outcomes   [NumOutcomes]atomic.Uint64
	probes     [NumOutcomes]atomic.Uint64
	drops      [NumDrops]atomic.Uint64
	hedges     atomic.Uint64
	retries    atomic.Uint64
	reused     atomic.Uint64
	bytesOut   atomic.Uint64
	bytesIn    atomic.Uint64
	lastAnswer atomic.Int64 // Unix nanoseconds
	lastEnd    atomic.Int64
	// failingSince is in Unix nanoseconds, 0 while it answers.
	failingSince atomic.Int64
	latency      Histogram

	nextMark atomic.Int64

	mu       sync.Mutex
	failures ring
	probed   outages
	marks    marks[UpstreamCounts]
}

// Begin implements Sink.
func (s *upstreamStats) Begin() { s.inFlight.Add(1) }

// End implements Sink.
func (s *upstreamStats) End(e *Exchange) {
	s.inFlight.Add(-1)
	if e.Capped {
		return
	}
	end := e.Start.Add(e.Duration).UnixNano()
	if t := s.owner.clock.at(end); t >= s.nextMark.Load() {
		s.advance(t)
	}
	s.lastEnd.Store(end)
	s.bytesOut.Add(uint64(e.BytesOut))
	s.bytesIn.Add(uint64(e.BytesIn))
	if e.Outcome.Answer() {
		s.lastAnswer.Store(end)
		if s.failingSince.Load() != 0 {
			s.recovered()
		}
	} else {
		s.failed(e, end)
	}
	if e.Probe {
		s.probes[e.Outcome].Add(1)
		return
	}
	s.outcomes[e.Outcome].Add(1)
	if e.Outcome.Answer() {
		s.latency.Observe(e.Duration)
	}
	if e.Hedge {
		s.hedges.Add(1)
	}
	if e.Attempt > 1 {
		s.retries.Add(1)
	}
	if e.Reused {
		s.reused.Add(1)
	}
}

// failed remembers e, which ended without an answer.
func (s *upstreamStats) failed(e *Exchange, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Probe {
		s.probed.push(e)
	} else {
		s.failures.push(e)
	}
	if s.failingSince.Load() != 0 {
		return
	}
	s.failingSince.Store(end)
	// An answer that arrived after e was sent outweighs e. It may arrive while this runs: each side sees the other.
	if answered := s.lastAnswer.Load(); answered != 0 && answered > e.Start.UnixNano() {
		s.failingSince.Store(0)
		s.probed.over()
	}
}

// recovered records an answer after failures.
func (s *upstreamStats) recovered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failingSince.Store(0)
	s.probed.over()
}

// Drop implements Sink.
func (s *upstreamStats) Drop(d Drop) { s.drops[d].Add(1) }

// Release implements Sink.
func (s *upstreamStats) Release() {
	s.owner.mu.Lock()
	s.refs--
	s.owner.mu.Unlock()
}

func (s *upstreamStats) snapshot() UpstreamSnapshot {
	v := UpstreamSnapshot{
		Upstream: s.key.upstream,
		Proto:    s.key.proto,
		Hedges:   s.hedges.Load(),
		Retries:  s.retries.Load(),
		Reused:   s.reused.Load(),
		BytesOut: s.bytesOut.Load(),
		BytesIn:  s.bytesIn.Load(),
		InFlight: s.inFlight.Load(),
		Latency:  s.latency.Snapshot(),
		Windows:  s.windows(),
	}
	for i := range v.Outcomes {
		v.Outcomes[i] = s.outcomes[i].Load()
		v.Probes[i] = s.probes[i].Load()
	}
	for i := range v.Drops {
		v.Drops[i] = s.drops[i].Load()
	}
	if at := s.lastAnswer.Load(); at != 0 {
		v.LastAnswer = time.Unix(0, at)
	}
	s.mu.Lock()
	v.Failures = recentFailures(s.failures.newestFirst(), s.probed.list())
	if at := s.failingSince.Load(); at != 0 {
		v.FailingSince = time.Unix(0, at)
	}
	s.mu.Unlock()
	if len(v.Failures) > 0 {
		v.LastFailure = v.Failures[0].Start.Add(v.Failures[0].Duration)
	}
	return v
}

// ring holds the last RecentFailures exchanges that failed.
type ring struct {
	entries [RecentFailures]Exchange
	pushed  int
}

func (r *ring) push(e *Exchange) {
	r.entries[r.pushed%RecentFailures] = *e
	r.pushed++
}

func (r *ring) newestFirst() []Exchange {
	var list []Exchange
	for i := r.pushed - 1; i >= max(0, r.pushed-RecentFailures); i-- {
		list = append(list, r.entries[i%RecentFailures])
	}
	return list
}

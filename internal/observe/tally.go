package observe

import (
	"time"
)

// Resolver is a stub resolver, recognized by how it asks again.
type Resolver uint8

// The resolvers.
const (
	UnknownResolver Resolver = iota
	Glibc
	Go
	Musl

	// NumResolvers is the number of resolvers, for arrays that are indexed by them.
	NumResolvers = int(Musl) + 1
)

var resolverNames = [NumResolvers]string{"unknown", "glibc", "go", "musl"}

// String is the resolver's name in metrics and the API.
func (r Resolver) String() string { return nameOf(resolverNames[:], "resolver", uint8(r)) }

// MarshalText writes the name, for JSON.
func (r Resolver) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// Cause is why a client had to ask again.
type Cause uint8

// The causes.
const (
	SlowUpstream Cause = iota // the first question was unanswered, or answered too late
	ReplyLost                 // it was answered in time, and asked again
	QueryLost                 // the query never arrived, but the other half of its A/AAAA pair did

	// NumCauses is the number of causes, for arrays that are indexed by them.
	NumCauses = int(QueryLost) + 1
)

var causeNames = [NumCauses]string{"slow_upstream", "reply_lost", "query_lost"}

// String is the cause's name in metrics and the API.
func (c Cause) String() string { return nameOf(causeNames[:], "cause", uint8(c)) }

// MarshalText writes the name, for JSON.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// numRcodes is the number of outcomes that are answers.
const numRcodes = int(OtherRcode) + 1

// Counts holds what happened to queries in one window.
type Counts struct {
	// Sources counts queries by Source, Rcodes by Outcome (the first five, by RCODE).
	Sources [NumSources]uint64 `json:"sources"`
	Rcodes  [numRcodes]uint64  `json:"rcodes"`
	// Retransmits counts how often a client got no reply in time and asked again, by Resolver and Cause: a pair of A
	// and AAAA that is sent again counts once. Suspected counts by Cause the cases that may have another explanation.
	Retransmits [NumResolvers][NumCauses]uint64 `json:"retransmits"`
	Suspected   [NumCauses]uint64               `json:"suspected"`
	// Hit is the time to the answer without an upstream, Miss with one.
	Hit  Latency `json:"hit"`
	Miss Latency `json:"miss"`
	// Upstream is the part of all time that was spent waiting for upstreams, Queued the part in the socket's queue.
	Upstream time.Duration `json:"upstreamNanoseconds"`
	Queued   time.Duration `json:"queuedNanoseconds"`
}

// Add merges other into c.
func (c *Counts) Add(other *Counts) {
	for i, n := range other.Sources {
		c.Sources[i] += n
	}
	for i, n := range other.Rcodes {
		c.Rcodes[i] += n
	}
	for r := range other.Retransmits {
		for i, n := range other.Retransmits[r] {
			c.Retransmits[r][i] += n
		}
	}
	for i, n := range other.Suspected {
		c.Suspected[i] += n
	}
	c.Hit.Add(&other.Hit)
	c.Miss.Add(&other.Miss)
	c.Upstream += other.Upstream
	c.Queued += other.Queued
}

// Queries is the number of queries.
func (c *Counts) Queries() uint64 { return c.Hits() + c.Misses() }

// Hits returns the number of queries that were answered without an upstream, stale answers included.
func (c *Counts) Hits() uint64 {
	var n uint64
	for s, k := range c.Sources {
		if Source(s) != FromUpstream {
			n += k
		}
	}
	return n
}

// Misses is the number of queries for which an upstream was asked.
func (c *Counts) Misses() uint64 { return c.Sources[FromUpstream] }

// Retransmitted returns the number of Retransmits of all kinds, without the suspected ones.
func (c *Counts) Retransmitted() uint64 {
	var n uint64
	for r := range c.Retransmits {
		for _, k := range c.Retransmits[r] {
			n += k
		}
	}
	return n
}

// SearchWaste returns the number of NXDOMAIN answers for each answer with RCODE 0: with the search path that
// Kubernetes gives pods (ndots:5), an external name costs three to four. NODATA counts as an answer. It returns the
// number of NXDOMAIN answers if there is no answer with RCODE 0.
func (c *Counts) SearchWaste() float64 {
	return float64(c.Rcodes[NXDomain]) / float64(max(c.Rcodes[NoError], 1))
}

// The counters of a client form one array, so that one loop makes a mark of them.
const (
	atSources     = 0
	atRcodes      = atSources + NumSources
	atRetransmits = atRcodes + numRcodes
	atSuspected   = atRetransmits + NumResolvers*NumCauses
	atHit         = atSuspected + NumCauses
	atMiss        = atHit + NumLatencyBuckets
	numCounters   = atMiss + NumLatencyBuckets
)

// The sums of times.
const (
	timeHit = iota
	timeMiss
	timeUpstream
	timeQueued
	numTimes
)

// tally are the counters of a client since the start. Times are in nanoseconds.
type tally struct {
	time [numTimes]uint64
	n    [numCounters]uint64
}

// tallyMark is a copy of a tally, modulo 2³²: a window counts less than that.
type tallyMark struct {
	n    [numCounters]uint32
	time [numTimes]uint64
}

func (t *tally) count(q *Query) {
	source := q.Source
	if int(source) >= NumSources {
		source = FromLocal
	}
	t.n[atSources+int(source)]++
	t.n[atRcodes+int(OutcomeOf(q.Rcode))]++
	buckets, sum := atHit, timeHit
	if source == FromUpstream {
		buckets, sum = atMiss, timeMiss
	}
	t.n[buckets+LatencyBucket(q.Duration)]++
	t.time[sum] += uint64(max(q.Duration, 0))
	t.time[timeUpstream] += uint64(max(q.Upstream, 0))
	t.time[timeQueued] += uint64(max(q.Queued, 0))
}

func (t *tally) mark() *tallyMark {
	m := &tallyMark{time: t.time}
	for i, n := range t.n {
		m.n[i] = uint32(n)
	}
	return m
}

func (t *tally) add(other *tally) {
	for i, n := range other.n {
		t.n[i] += n
	}
	for i, n := range other.time {
		t.time[i] += n
	}
}

func (m *tallyMark) add(other *tallyMark) {
	for i, n := range other.n {
		m.n[i] += n
	}
	for i, n := range other.time {
		m.time[i] += n
	}
}

// since returns what was counted after the mark was made; everything if m is nil.
func (t *tally) since(m *tallyMark) Counts {
	var n [numCounters]uint64
	sums := t.time
	if m == nil {
		n = t.n
	} else {
		for i := range n {
			n[i] = uint64(uint32(t.n[i]) - m.n[i])
		}
		for i := range sums {
			sums[i] -= m.time[i]
		}
	}
	c := Counts{
		Sources:   [NumSources]uint64(n[atSources:]),
		Rcodes:    [numRcodes]uint64(n[atRcodes:]),
		Suspected: [NumCauses]uint64(n[atSuspected:]),
		Hit:       Latency{[NumLatencyBuckets]uint64(n[atHit:]), time.Duration(sums[timeHit])},
		Miss:      Latency{[NumLatencyBuckets]uint64(n[atMiss:]), time.Duration(sums[timeMiss])},
		Upstream:  time.Duration(sums[timeUpstream]),
		Queued:    time.Duration(sums[timeQueued]),
	}
	for r := range c.Retransmits {
		c.Retransmits[r] = [NumCauses]uint64(n[atRetransmits+r*NumCauses:])
	}
	return c
}

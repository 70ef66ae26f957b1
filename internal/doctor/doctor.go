// Package doctor judges facts about the node's DNS: Judge turns Facts into Findings by a table of rules (rules.go). It is
// pure, so that each rule is tested with literal facts, and it is the only place that judges: the API, the page and the
// command line show its findings.
package doctor

import (
	"cmp"
	"slices"
	"time"
)

// Severity says how serious a finding is.
type Severity string

// The severities.
const (
	OK      Severity = "ok" // nothing is wrong
	Info    Severity = "info"
	Warning Severity = "warning"
	Error   Severity = "error"
)

// Finding is a sentence about what the facts mean.
type Finding struct {
	Code     string
	Severity Severity
	Text     string
	Hint     string // what to look at next; "" for none
	// Since is when the problem began, nil if unknown. SinceAtLeast is true if it may have begun before, because older
	// failures were forgotten.
	Since        *time.Time
	SinceAtLeast bool

	Upstream *Upstream // the upstream that it is about; nil for none
	Client   *Client   // the client that it is about; nil for none

	weight float64 // order among findings of the same severity
}

// Facts are what the rules judge. They cover the last minute, except where a field says otherwise.
type Facts struct {
	Upstreams []Upstream
	Traffic   Traffic
	// Clients are the clients that may be named.
	Clients []Client
	// AllClients are the retransmits of all clients together. They are judged only if Clients is nil, because names are
	// hidden.
	AllClients Retransmits
}

// Upstream is one pair of upstream and transport.
type Upstream struct {
	Name, Proto         string
	Exchanges, Failures uint64
	MostlyFailure       string        // the most frequent failure, in words
	P90                 time.Duration // within which nine of ten answers arrived
	FailingSince        *time.Time    // when the outage, or the latest run of failures, began; nil if unknown
	FailingLonger       bool          // failures before FailingSince may have been forgotten
}

// Traffic is the traffic of all clients.
type Traffic struct {
	Ever      uint64        // queries since the start
	Length    time.Duration // of the window that the other counts cover
	Queries   uint64
	Hits      uint64
	ServFail  uint64 // queries that got SERVFAIL
	Stale     uint64 // queries that got an answer past its TTL
	Queued    uint64 // queries whose time in the socket's queue is known and not 0
	QueuedP99 time.Duration
}

// Client is one client.
type Client struct {
	ID          int    // for the caller
	Called      string // in a sentence, such as "pod shop/web-1"
	Plural      bool   // Called is a plural
	Queries     uint64
	NXDomain    uint64  // queries for names that do not exist
	SearchWaste float64 // NXDOMAIN answers for each useful answer
	Retransmits Retransmits
}

// Retransmits are the queries that were repeated in the last five minutes, by cause.
type Retransmits struct{ SlowUpstream, ReplyLost, QueryLost Repeated }

// Repeated counts retransmits of one cause.
type Repeated struct {
	Count    uint64
	Resolver string // the stub resolver of most of them; "" if unknown
}

// Bounds of the result.
const (
	maxFindings       = 8
	maxClientFindings = 3 // of one rule about clients
)

// Judge returns the findings about the facts, the most severe first: at most 8, at least one.
func Judge(f *Facts) []Finding {
	var all []Finding
	for _, rule := range rules {
		all = append(all, rule(f)...)
	}
	if !slices.ContainsFunc(all, func(v Finding) bool { return v.Severity == Warning || v.Severity == Error }) {
		all = append(all, calm(&f.Traffic))
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(a.Severity), rank(b.Severity)), cmp.Compare(b.weight, a.weight))
	})
	return all[:min(len(all), maxFindings)]
}

// rank returns the order of severities: problems, then that there are none, then remarks.
func rank(s Severity) int { return slices.Index([]Severity{Error, Warning, OK, Info}, s) }

// heaviest returns the findings with the greatest weight, at most maxClientFindings.
func heaviest(all []Finding) []Finding {
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.weight, a.weight) })
	return all[:min(len(all), maxClientFindings)]
}

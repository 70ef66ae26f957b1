package api

import (
	"time"

	"localcache.dev/localcache/internal/observe"
)

// List is the envelope of an answer.
type List[T any] struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Items      []T      `json:"items"`
}

// Metadata describes the items.
type Metadata struct {
	Node        string    `json:"node,omitempty"`
	Nodes       []string  `json:"nodes,omitempty"` // those that answered, in answers about several nodes (see Gather)
	GeneratedAt time.Time `json:"generatedAt"`
	// Window is the requested one, WindowSeconds its real length: it begins at a multiple of its step, and not before
	// the process.
	Window        string  `json:"window,omitempty"`
	WindowSeconds float64 `json:"windowSeconds,omitempty"`
	// LatencyBoundsSeconds are the upper bounds of the buckets of all latencies; the last bucket has none.
	LatencyBoundsSeconds []float64 `json:"latencyBoundsSeconds,omitempty"`
	Floor                uint64    `json:"floor,omitempty"` // the most that a name can have that is not listed
	Continue             string    `json:"continue,omitempty"`
	Notes                []string  `json:"notes,omitempty"` // remarks about the items for people
}

// ErrorBody is the answer to a request that cannot be answered.
type ErrorBody struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Error      Error  `json:"error"`
}

// Error says what is wrong with a request.
type Error struct {
	Code    int    `json:"code"` // the HTTP status
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Hint    string `json:"hint"` // what to do
}

// Error implements error.
func (e *Error) Error() string {
	if e.Hint == "" {
		return e.Message
	}
	return e.Message + ": " + e.Hint
}

// Latency is a distribution of durations. Counts belong to Metadata.LatencyBoundsSeconds, without trailing zeros;
// they merge by addition, like SumSeconds.
type Latency struct {
	Count       uint64   `json:"count"`
	SumSeconds  float64  `json:"sumSeconds"`
	MeanSeconds float64  `json:"meanSeconds"`
	P50Seconds  float64  `json:"p50Seconds"`
	P90Seconds  float64  `json:"p90Seconds"`
	P99Seconds  float64  `json:"p99Seconds"`
	Counts      []uint64 `json:"counts"`
}

// Retransmit counts how often clients got no reply in time and asked again.
type Retransmit struct {
	Resolver string `json:"resolver"`
	Cause    string `json:"cause"`
	Count    uint64 `json:"count"`
}

// Traffic is what happened to queries within the window.
type Traffic struct {
	Queries          uint64            `json:"queries"`
	QueriesPerSecond float64           `json:"queriesPerSecond"`
	Hits             uint64            `json:"hits"`
	HitRatio         float64           `json:"hitRatio"`
	Sources          map[string]uint64 `json:"sources"`
	Rcodes           map[string]uint64 `json:"rcodes"`
	// RetransmitTotal is the sum of Retransmits. Suspected are by cause, and not certain.
	RetransmitTotal uint64            `json:"retransmitTotal"`
	Retransmits     []Retransmit      `json:"retransmits"`
	Suspected       map[string]uint64 `json:"suspected,omitempty"`
	// SearchWaste is the number of NXDOMAIN answers for each useful one.
	SearchWaste float64 `json:"searchWaste"`
	Hit         Latency `json:"hit"`
	Miss        Latency `json:"miss"`
	// UpstreamWaitSeconds is the part of all time that was spent waiting for upstreams, QueuedSeconds the part in the
	// socket's queue.
	UpstreamWaitSeconds float64 `json:"upstreamWaitSeconds"`
	QueuedSeconds       float64 `json:"queuedSeconds"`
}

// Summary is the node's traffic as a whole.
type Summary struct {
	Traffic
	UpstreamWait      Latency           `json:"upstreamWait"`
	Queued            Latency           `json:"queued"`
	InFlight          int64             `json:"inFlight"`
	Clients           int               `json:"clients"` // that asked within the window
	UpstreamExchanges uint64            `json:"upstreamExchanges"`
	UpstreamFailures  uint64            `json:"upstreamFailures"`
	UpstreamOutcomes  map[string]uint64 `json:"upstreamOutcomes"`
	Lost              map[string]uint64 `json:"lost"` // what there was no room for, since the start
}

// Upstream is a pair of upstream and transport.
type Upstream struct {
	Node               string            `json:"node,omitempty"` // in PerNode
	Upstream           string            `json:"upstream"`
	Proto              string            `json:"proto"`
	Exchanges          uint64            `json:"exchanges"`
	ExchangesPerSecond float64           `json:"exchangesPerSecond"`
	Answers            uint64            `json:"answers"`
	Failures           uint64            `json:"failures"`
	FailureRatio       float64           `json:"failureRatio"`
	Outcomes           map[string]uint64 `json:"outcomes"`
	Probes             map[string]uint64 `json:"probes"` // health checks
	Drops              map[string]uint64 `json:"drops"`
	Hedges             uint64            `json:"hedges"`
	Retries            uint64            `json:"retries"`
	Reused             uint64            `json:"reused"`
	BytesOut           uint64            `json:"bytesOut"`
	BytesIn            uint64            `json:"bytesIn"`
	Latency            Latency           `json:"latency"` // of answers only
	// The following fields are of this moment, not of the window.
	InFlight   int64      `json:"inFlight"`
	LastAnswer *time.Time `json:"lastAnswer,omitempty"`
	// FailingSince is the start of the first exchange or health check that failed and was followed by no answer.
	FailingSince *time.Time `json:"failingSince,omitempty"`
	// LastFailure is of a client's exchange, or of a health check where only these failed.
	LastFailure     *Failure     `json:"lastFailure,omitempty"`
	OpenConnections int          `json:"openConnections"`
	Connections     []Connection `json:"connections"`
	// PerNode are the parts of the sum, with the connections, in answers about several nodes (see Gather).
	PerNode []Upstream `json:"perNode,omitempty"`
}

// Failure is an exchange that brought no answer.
type Failure struct {
	At              time.Time `json:"at"`
	Outcome         string    `json:"outcome"`
	DurationSeconds float64   `json:"durationSeconds"`
	Attempt         int       `json:"attempt"`
	Probe           bool      `json:"probe,omitempty"`
	Message         string    `json:"message"`
}

// Connection is an open connection to an upstream; see tcp(7), TCP_INFO. A UDP socket is included: its round-trip
// time is that of the latest exchanges, smoothed, and TCP-only fields are 0.
type Connection struct {
	Local         string    `json:"local"`
	Opened        time.Time `json:"opened"`
	InFlight      int       `json:"inFlight"`
	RTTSeconds    float64   `json:"rttSeconds"`
	RTTVarSeconds float64   `json:"rttVarSeconds"`
	Retransmits   uint32    `json:"retransmits"`
	Lost          uint32    `json:"lost"`
	Unacked       uint32    `json:"unacked"`
	SilentSeconds float64   `json:"silentSeconds"`
}

// Client is the source of queries: a pod, or an address if pods are not known.
type Client struct {
	Node      string   `json:"node,omitempty"` // in answers about several nodes (see Gather)
	Addresses []string `json:"addresses"`      // empty for those that are counted together
	Namespace string   `json:"namespace,omitempty"`
	PodName   string   `json:"pod,omitempty"`
	UID       string   `json:"uid,omitempty"`
	Workload  string   `json:"workload,omitempty"` // kind/name
	Host      bool     `json:"host,omitempty"`     // everything that asks from the node's own addresses
	Overflow  bool     `json:"overflow,omitempty"` // all clients beyond the limit
}

// Name returns the client's name for people: NAMESPACE/POD, host, an address, or ~other.
func (c *Client) Name() string {
	switch {
	case c.Overflow:
		return observe.Overflow
	case c.Host:
		return "host"
	case c.PodName != "" && c.Namespace != "":
		return c.Namespace + "/" + c.PodName
	case c.PodName != "":
		return c.PodName
	case len(c.Addresses) > 0:
		return c.Addresses[0]
	}
	return "-"
}

// Pod is a client and its traffic.
type Pod struct {
	Client
	FirstSeen time.Time `json:"firstSeen"`
	LastSeen  time.Time `json:"lastSeen"`
	Traffic
	Names []Name `json:"names"` // its most frequent ones since FirstSeen
}

// PodDetail is a client with all windows and its slow and failed queries.
type PodDetail struct {
	Pod
	Windows map[string]Traffic `json:"windows"`
	Recent  []Query            `json:"recent"`
}

// Name is a name and how often it was counted: at most Count times and at least Count − Error.
type Name struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
	Error uint64 `json:"error,omitempty"`
	// Seconds is the longest duration, in lists of the slowest instead of Count.
	Seconds float64 `json:"seconds,omitempty"`
}

// Query is a slow or failed query.
type Query struct {
	ReceivedAt      time.Time  `json:"receivedAt"`
	Client          Client     `json:"client"`
	Port            uint16     `json:"port"`
	ID              uint16     `json:"id"`
	Proto           string     `json:"proto"`
	Name            string     `json:"name"`
	Type            string     `json:"type"`
	Rcode           string     `json:"rcode"` // NOREPLY where the query was dropped
	Source          string     `json:"source"`
	DurationSeconds float64    `json:"durationSeconds"`
	QueuedSeconds   float64    `json:"queuedSeconds"`
	UpstreamSeconds float64    `json:"upstreamSeconds"`
	Exchanges       []Exchange `json:"exchanges"`
	LostExchanges   int        `json:"lostExchanges,omitempty"`
}

// Exchange is one exchange of a query with an upstream.
type Exchange struct {
	Upstream string `json:"upstream"`
	Proto    string `json:"proto"`
	Outcome  string `json:"outcome"`
	// StartSeconds is the time from the arrival of the query to the start of the exchange; negative if another query
	// started it.
	StartSeconds    *float64 `json:"startSeconds,omitempty"`
	DurationSeconds float64  `json:"durationSeconds"`
	Hedge           bool     `json:"hedge,omitempty"`
	Reused          bool     `json:"reused,omitempty"`
	Shared          bool     `json:"shared,omitempty"`
	// Overtaken by another one that answered, while it was under way. The outcome is timeout then.
	Overtaken bool   `json:"overtaken,omitempty"`
	Message   string `json:"message,omitempty"`
}

// Event is something that happened once.
type Event struct {
	Node     string `json:"node,omitempty"` // in answers about several nodes (see Gather)
	Type     string `json:"type"`           // UpstreamFailure
	Upstream string `json:"upstream"`
	Proto    string `json:"proto"`
	Failure
}

// Status describes the program and its state.
type Status struct {
	Version       string            `json:"version"`
	Node          string            `json:"node,omitempty"`
	PID           int               `json:"pid"`
	StartedAt     time.Time         `json:"startedAt"`
	UptimeSeconds float64           `json:"uptimeSeconds"`
	Queries       uint64            `json:"queries"`
	InFlight      int64             `json:"inFlight"`
	Clients       int               `json:"clients"`
	MaxClients    int               `json:"maxClients"`
	SlowSeconds   float64           `json:"slowSeconds"`
	Pods          PodFeed           `json:"pods"`
	Redact        string            `json:"redact"`
	Listeners     []string          `json:"listeners"`
	Lost          map[string]uint64 `json:"lost"`
}

// PodFeed says whether addresses can be mapped to pods.
type PodFeed struct {
	Known   bool   `json:"known"`
	Count   int    `json:"count"`
	Message string `json:"message,omitempty"` // why not, or that they are not kept up to date any more
}

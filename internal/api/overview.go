package api

import (
	"cmp"
	"net/http"
	"reflect"
	"slices"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const overviewPath = "/api/v1/overview"

// Number of items of each list in the overview. The endpoints return all.
const (
	overviewUpstreams   = 32
	overviewEvents      = 8
	overviewPods        = 8
	overviewRetransmits = 8
	overviewNames       = 8
	overviewQueries     = 10
)

var overviewParams = []parameter{windowParameter(windows...)}

// Overview is the start of the page: a summary, and the first items of each list. Names of clients and what they
// asked for are left out for users without that role; Hidden says so.
type Overview struct {
	Version   string    `json:"version"`
	StartedAt time.Time `json:"startedAt"`
	// SlowSeconds is the duration from which a query is listed in Queries although nothing failed.
	SlowSeconds float64 `json:"slowSeconds"`
	Hidden      string  `json:"hidden,omitempty"`
	// Findings describe the present state in words, whatever window was requested. The most severe comes first; there
	// is always one.
	Findings []Finding `json:"findings"`
	// Total counts since the start: the difference of two overviews is what happened between them.
	Total     Total              `json:"total"`
	Summary   Summary            `json:"summary"`
	Upstreams []OverviewUpstream `json:"upstreams"` // the most failures first
	Events    []Event            `json:"events"`
	Pods      []Pod              `json:"pods"` // the slowest first
	// Retransmits are by client, resolver and cause, the most frequent first.
	Retransmits []ClientRetransmit `json:"retransmits"`
	// Top lists names by each order, of the last hour or, for the window start, since the start.
	Top     map[string][]Name `json:"top"`
	Queries []Query           `json:"queries"` // slow and failed ones, the newest first
}

// Total counts since the start of the process.
type Total struct {
	Queries           uint64 `json:"queries"`
	Hits              uint64 `json:"hits"`
	UpstreamExchanges uint64 `json:"upstreamExchanges"`
	UpstreamFailures  uint64 `json:"upstreamFailures"`
}

// upstreamSeen is Upstream under a name that does not hide its field Upstream.
type upstreamSeen = Upstream

// OverviewUpstream is an upstream and its statistics since the start.
type OverviewUpstream struct {
	upstreamSeen
	TotalExchanges uint64 `json:"totalExchanges"`
	TotalFailures  uint64 `json:"totalFailures"`
}

// ClientRetransmit counts how often a client got no reply in time and asked again.
type ClientRetransmit struct {
	Client Client `json:"client"`
	Retransmit
}

// overviewEndpoint returns the endpoint that answers one overview; the stream sends it repeatedly.
func overviewEndpoint(access Access) endpoint {
	return endpoint{
		path: overviewPath, kind: "Overview", role: RoleAggregates, item: reflect.TypeFor[Overview](),
		text:   "what the page begins with; without the role names, what has none",
		params: overviewParams, window: observe.Last5m,
		answer: func(s *Server, r *http.Request, p *params) (any, *Error) {
			return s.overviewList(kindFor(r, access, p.window)), nil
		},
	}
}

func (s *Server) overviewList(kind streamKind) List[Overview] {
	v := s.snapshot()
	p := &params{window: kind.window}
	answer := list(s, v, p, "Overview", []Overview{s.overview(v, kind)}, "")
	answer.Metadata.LatencyBoundsSeconds = nil
	return answer
}

func (s *Server) overview(v *snapshot, kind streamKind) Overview {
	w := kind.window
	askers := s.askers(v)
	o := Overview{
		Version: s.options.Version, StartedAt: s.options.Queries.Started(), Hidden: kind.hidden,
		SlowSeconds: s.options.Queries.Options().Slow.Seconds(),
		Findings:    s.findings(v, askers, kind.names), Summary: summaryItem(v, w),
		Upstreams: []OverviewUpstream{}, Events: []Event{}, Pods: []Pod{}, Retransmits: []ClientRetransmit{}, Top: map[string][]Name{}, Queries: []Query{},
	}
	bare(&o.Summary.Traffic)
	o.Summary.UpstreamWait.Counts, o.Summary.Queued.Counts = []uint64{}, []uint64{}
	o.Total.Queries, o.Total.Hits = v.queries.Total[observe.SinceStart].Queries(), v.queries.Total[observe.SinceStart].Hits()
	s.overviewOfUpstreams(&o, v, w)
	if kind.names {
		s.overviewOfClients(&o, v, askers, w)
	}
	return o
}

// bare leaves out the buckets, which the page does not draw.
func bare(t *Traffic) { t.Hit.Counts, t.Miss.Counts = []uint64{}, []uint64{} }

func (s *Server) overviewOfUpstreams(o *Overview, v *snapshot, w observe.Window) {
	all := slices.Clone(v.upstreams)
	slices.SortStableFunc(all, func(a, b observe.UpstreamSnapshot) int {
		return cmp.Or(cmp.Compare(b.Windows[w].Failures(), a.Windows[w].Failures()), cmp.Compare(b.Windows[w].Exchanges(), a.Windows[w].Exchanges()))
	})
	for i := range all {
		u, total := &all[i], &all[i].Windows[observe.SinceStart]
		o.Total.UpstreamExchanges += total.Exchanges()
		o.Total.UpstreamFailures += total.Failures()
		if i < overviewUpstreams {
			item := OverviewUpstream{upstreamSeen: upstreamItem(u, w), TotalExchanges: total.Exchanges(), TotalFailures: total.Failures()}
			item.Latency.Counts = []uint64{}
			item.Connections = []Connection{}
			o.Upstreams = append(o.Upstreams, item)
		}
		for j := range u.Failures {
			o.Events = append(o.Events, eventItem(u, &u.Failures[j]))
		}
	}
	slices.SortStableFunc(o.Events, func(a, b Event) int { return b.At.Compare(a.At) })
	o.Events = slices.Clip(o.Events[:min(len(o.Events), overviewEvents)])
}

func (s *Server) overviewOfClients(o *Overview, v *snapshot, askers []asker, w observe.Window) {
	slow := make([]asker, 0, len(askers))
	for _, a := range askers {
		c := &a.seen.Windows[w]
		if c.Queries() > 0 {
			slow = append(slow, a)
		}
		for _, r := range traffic(c, 0).Retransmits {
			o.Retransmits = append(o.Retransmits, ClientRetransmit{a.Client, r})
		}
	}
	slow, _ = page(slow, func(a *asker) cursor {
		return cursor{podOrder("latency", &a.seen.Windows[w]), a.Name() + " " + a.UID}
	}, &params{limit: overviewPods})
	for i := range slow {
		item := s.podItem(&slow[i], w, v)
		bare(&item.Traffic)
		item.Names = []Name{}
		o.Pods = append(o.Pods, item)
	}
	slices.SortStableFunc(o.Retransmits, func(a, b ClientRetransmit) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Client.Name(), b.Client.Name()), cmp.Compare(a.Resolver, b.Resolver), cmp.Compare(a.Cause, b.Cause))
	})
	o.Retransmits = slices.Clip(o.Retransmits[:min(len(o.Retransmits), overviewRetransmits)])

	lists := &v.queries.RecentTops
	if w == observe.SinceStart {
		lists = &v.queries.Tops
	}
	for by, word := range topOrders {
		names := s.names(&lists[by], observe.TopBy(by) == observe.BySlowest)
		o.Top[word] = names[:min(len(names), overviewNames)]
	}
	for i := range v.queries.Stories[:min(len(v.queries.Stories), overviewQueries)] {
		o.Queries = append(o.Queries, s.queryItem(&v.queries.Stories[i], v.pods))
	}
}

package api

import (
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// endpoint describes a path, its parameters and its answer. openapi.go documents it, parse reads its parameters.
type endpoint struct {
	path, kind, text string
	role             Role
	params           []parameter
	window           observe.Window // without the parameter
	by               string
	item             reflect.Type // nil for the description itself
	answer           func(s *Server, r *http.Request, p *params) (any, *Error)
}

func (e *endpoint) parameterNames() string {
	if len(e.params) == 0 {
		return "none"
	}
	names := make([]string, len(e.params))
	for i, p := range e.params {
		names[i] = p.name
	}
	return strings.Join(names, ", ")
}

// The orders of lists.
var (
	upstreamOrders = []string{"name", "exchanges", "failures", "latency"}
	podOrders      = []string{"queries", "misses", "latency", "wait", "retransmits", "nxdomain", "errors", "waste", "name"}
	topOrders      = []string{"queries", "misses", "nxdomain", "servfail", "slowest"}
)

var endpoints = []endpoint{
	{
		path: "/api/v1/summary", kind: "Summary", role: RoleAggregates, text: "the node's traffic as a whole", item: reflect.TypeFor[Summary](),
		params: []parameter{windowParameter(windows...)}, window: observe.Last5m, answer: (*Server).summary,
	},
	{
		path: "/api/v1/upstreams", kind: "UpstreamList", role: RoleAggregates, text: "each pair of upstream and transport", item: reflect.TypeFor[Upstream](),
		params: []parameter{windowParameter(windows...), byParameter(upstreamOrders...), limitParameter, continueParameter},
		window: observe.Last5m, by: upstreamOrders[0], answer: (*Server).upstreams,
	},
	{
		path: "/api/v1/pods", kind: "PodList", role: RoleNames, text: "each client that asked within the window", item: reflect.TypeFor[Pod](),
		params: []parameter{windowParameter(windows...), byParameter(podOrders...), namespaceParameter, limitParameter, continueParameter},
		window: observe.Last5m, by: podOrders[0], answer: (*Server).pods,
	},
	{
		path: "/api/v1/pods/{namespace}/{name}", kind: "PodDetail", role: RoleNames, text: "one pod, in all windows", item: reflect.TypeFor[PodDetail](),
		params: []parameter{windowParameter(windows...)}, window: observe.Last5m, answer: (*Server).pod,
	},
	{
		path: "/api/v1/pods/{client}", kind: "PodDetail", role: RoleNames, text: "one client by IP address, host or ~other, in all windows", item: reflect.TypeFor[PodDetail](),
		params: []parameter{windowParameter(windows...)}, window: observe.Last5m, answer: (*Server).pod,
	},
	{
		path: "/api/v1/top", kind: "NameList", role: RoleNames, text: "the names that were asked for most, missed most, and so on", item: reflect.TypeFor[Name](),
		params: []parameter{windowParameter("1h", "start"), byParameter(topOrders...), limitParameter, continueParameter},
		window: observe.Last1h, by: topOrders[0], answer: (*Server).top,
	},
	{
		path: "/api/v1/queries", kind: "QueryList", role: RoleNames, text: "slow and failed queries, the newest first", item: reflect.TypeFor[Query](),
		params: []parameter{podParameter, namespaceParameter, nameParameter, rcodeParameter, outcomeParameter, minDurationParameter, sinceParameter, limitParameter, continueParameter},
		window: observe.SinceStart, answer: (*Server).queries,
	},
	{
		path: "/api/v1/events", kind: "EventList", role: RoleAggregates, text: "failures of upstreams, the newest first", item: reflect.TypeFor[Event](),
		params: []parameter{outcomeParameter, minDurationParameter, sinceParameter, limitParameter, continueParameter},
		window: observe.SinceStart, answer: (*Server).events,
	},
	{
		path: "/statusz", kind: "Status", role: RoleAggregates, text: "the program and what it keeps", item: reflect.TypeFor[Status](),
		window: observe.SinceStart, answer: (*Server).statusz,
	},
}

// all are the endpoints with the one that describes them.
func all() []endpoint {
	return append(slices.Clip(endpoints), endpoint{
		path: "/openapi.json", role: RoleAggregates, text: "this description",
		answer: func(s *Server, _ *http.Request, _ *params) (any, *Error) { return openAPI(s.options.Version), nil },
	})
}

func (s *Server) summary(_ *http.Request, p *params) (any, *Error) {
	v := s.snapshot()
	return list(s, v, p, "Summary", []Summary{summaryItem(v, p.window)}, ""), nil
}

func summaryItem(v *snapshot, w observe.Window) Summary {
	item := Summary{
		Traffic:      traffic(&v.queries.Total[w], v.queries.Coverage[w].Seconds()),
		UpstreamWait: latency(&v.queries.Upstream[w]), Queued: latency(&v.queries.Queued[w]),
		InFlight: v.queries.InFlight, UpstreamOutcomes: map[string]uint64{}, Lost: map[string]uint64{},
	}
	for i := range v.queries.Clients {
		if v.queries.Clients[i].Windows[w].Queries() > 0 {
			item.Clients++
		}
	}
	for o := range observe.NumOutcomes {
		item.UpstreamOutcomes[observe.Outcome(o).String()] = 0
	}
	for i := range v.upstreams {
		c := &v.upstreams[i].Windows[w]
		item.UpstreamExchanges += c.Exchanges()
		item.UpstreamFailures += c.Failures()
		for o, n := range c.Outcomes {
			item.UpstreamOutcomes[observe.Outcome(o).String()] += n
		}
	}
	for l, n := range v.queries.Lost {
		item.Lost[observe.Loss(l).String()] = n
	}
	return item
}

func (s *Server) upstreams(_ *http.Request, p *params) (any, *Error) {
	v := s.upstreamsOnly()
	at := func(u *observe.UpstreamSnapshot) cursor {
		c, key := &u.Windows[p.window], u.Upstream+" "+u.Proto.String()
		switch p.by {
		case "exchanges":
			return cursor{number(c.Exchanges()), key}
		case "failures":
			return cursor{number(c.Failures()), key}
		case "latency":
			return cursor{int64(c.Latency.Quantile(0.99)), key}
		}
		return cursor{0, key}
	}
	chosen, next := page(v.upstreams, at, p)
	items := make([]Upstream, len(chosen))
	for i := range chosen {
		items[i] = upstreamItem(&chosen[i], p.window)
	}
	return list(s, v, p, "UpstreamList", items, next), nil
}

func (s *Server) pods(_ *http.Request, p *params) (any, *Error) {
	if e := s.refuseRedacted(p); e != nil {
		return nil, e
	}
	v := s.snapshot()
	var chosen []asker
	for _, a := range s.askers(v) {
		c := &a.seen.Windows[p.window]
		if (p.namespace == "" || a.Namespace == p.namespace) && c.Queries()+c.Retransmitted() > 0 {
			chosen = append(chosen, a)
		}
	}
	chosen, next := page(chosen, func(a *asker) cursor {
		return cursor{podOrder(p.by, &a.seen.Windows[p.window]), a.Name() + " " + a.UID}
	}, p)
	items := make([]Pod, len(chosen))
	for i := range chosen {
		items[i] = s.podItem(&chosen[i], p.window, v)
	}
	return list(s, v, p, "PodList", items, next), nil
}

// podOrder returns the value by which clients are ordered.
func podOrder(by string, c *observe.Counts) int64 {
	switch by {
	case "queries":
		return number(c.Queries())
	case "misses":
		return number(c.Misses())
	case "latency":
		all := c.Hit
		all.Add(&c.Miss)
		return int64(all.Quantile(0.99))
	case "wait":
		return int64(c.Upstream)
	case "retransmits":
		return number(c.Retransmitted())
	case "nxdomain":
		return number(c.Rcodes[observe.NXDomain])
	case "errors":
		return number(c.Rcodes[observe.ServFail] + c.Rcodes[observe.Refused] + c.Rcodes[observe.OtherRcode])
	case "waste":
		return int64(c.SearchWaste() * 1e6)
	}
	return 0
}

func number(n uint64) int64 { return int64(min(n, math.MaxInt64)) }

func (s *Server) pod(r *http.Request, p *params) (any, *Error) {
	name := r.PathValue("client")
	if name == "" {
		name = r.PathValue("namespace") + "/" + r.PathValue("name")
	}
	v := s.snapshot()
	for _, a := range s.askers(v) {
		if !a.is(name) {
			continue
		}
		item := PodDetail{Pod: s.podItem(&a, p.window, v), Windows: map[string]Traffic{}, Recent: []Query{}}
		for w := range a.seen.Windows {
			item.Windows[observe.Window(w).String()] = traffic(&a.seen.Windows[w], v.queries.Coverage[w].Seconds())
		}
		for i := range v.queries.Stories {
			if q := s.queryItem(&v.queries.Stories[i], v.pods); q.Client.same(&a.Client) {
				item.Recent = append(item.Recent, q)
			}
		}
		return list(s, v, p, "PodDetail", []PodDetail{item}, ""), nil
	}
	e := &Error{Code: http.StatusNotFound, Reason: "NotFound", Message: fmt.Sprintf("%s has not asked this node", cut(name)), Hint: "GET /api/v1/pods lists them"}
	if known, reason := v.pods.Known(); !known && strings.Contains(name, "/") {
		e.Hint = "ask by IP address, pods are not known: " + reason
	}
	return nil, e
}

func (s *Server) top(_ *http.Request, p *params) (any, *Error) {
	v := s.snapshot()
	lists, covered := &v.queries.Tops, v.queries.Coverage[observe.SinceStart]
	if p.window == observe.Last1h {
		lists, covered = &v.queries.RecentTops, v.queries.RecentCoverage
	}
	by := observe.ByQueries
	for i, word := range topOrders {
		if word == p.by {
			by = observe.TopBy(i)
		}
	}
	names := s.names(&lists[by], by == observe.BySlowest)
	items, next := page(names, namePlace, p)
	answer := list(s, v, p, "NameList", items, next)
	answer.Metadata.WindowSeconds = covered.Seconds()
	answer.Metadata.Floor = lists[by].Floor
	answer.Metadata.LatencyBoundsSeconds = nil
	return answer, nil
}

func (s *Server) queries(_ *http.Request, p *params) (any, *Error) {
	if e := s.refuseRedacted(p); e != nil {
		return nil, e
	}
	v := s.snapshot()
	var chosen []Query
	for i := range v.queries.Stories {
		story := &v.queries.Stories[i]
		if story.Duration < p.minDuration || !p.since.IsZero() && !story.Received.After(p.since) {
			continue
		}
		q := s.queryItem(story, v.pods)
		switch {
		case p.pod != "" && !q.Client.is(p.pod),
			p.namespace != "" && q.Client.Namespace != p.namespace,
			p.name != "" && !below(strings.ToLower(q.Name), p.name),
			p.rcode != "" && q.Rcode != p.rcode,
			p.outcome != "" && !q.ended(p.outcome, story.Rcode):
			continue
		}
		chosen = append(chosen, q)
	}
	items, next := page(chosen, queryPlace, p)
	answer := list(s, v, p, "QueryList", items, next)
	answer.Metadata.LatencyBoundsSeconds = nil
	return answer, nil
}

// below reports whether name is zone or ends with its labels.
func below(name, zone string) bool {
	return zone == "." || name == zone || strings.HasSuffix(name, "."+zone)
}

// ended reports whether an exchange ended with the outcome; without exchanges, whether the client got it.
func (q *Query) ended(outcome string, rcode int) bool {
	for i := range q.Exchanges {
		if q.Exchanges[i].Outcome == outcome && !q.Exchanges[i].Overtaken {
			return true
		}
	}
	return observe.OutcomeOf(rcode).String() == outcome
}

func (s *Server) events(_ *http.Request, p *params) (any, *Error) {
	v := s.upstreamsOnly()
	var all []Event
	for i := range v.upstreams {
		u := &v.upstreams[i]
		for j := range u.Failures {
			e := eventItem(u, &u.Failures[j])
			if e.DurationSeconds < p.minDuration.Seconds() || !p.since.IsZero() && !e.At.After(p.since) || p.outcome != "" && e.Outcome != p.outcome {
				continue
			}
			all = append(all, e)
		}
	}
	items, next := page(all, eventPlace, p)
	answer := list(s, v, p, "EventList", items, next)
	answer.Metadata.LatencyBoundsSeconds = nil
	return answer, nil
}

func (s *Server) statusz(_ *http.Request, _ *params) (any, *Error) {
	now := time.Now()
	m := Metadata{Node: s.options.Node, GeneratedAt: now}
	return List[Status]{APIVersion: Version, Kind: "Status", Metadata: m, Items: []Status{s.status()}}, nil
}

// list puts items into the envelope.
func list[T any](s *Server, v *snapshot, p *params, kind string, items []T, next string) List[T] {
	m := s.metadata(v, p.window)
	m.Continue = next
	m.LatencyBoundsSeconds = latencyBounds
	return List[T]{APIVersion: Version, Kind: kind, Metadata: m, Items: items}
}

// is reports whether name means the client: its name or one of its addresses.
func (c *Client) is(name string) bool {
	if c.Name() == name {
		return true
	}
	if a, err := netip.ParseAddr(name); err == nil {
		name = a.Unmap().String()
	}
	for _, a := range c.Addresses {
		if a == name {
			return true
		}
	}
	return false
}

package api

import (
	"strings"
	"time"

	"localcache.dev/localcache/internal/doctor"
	"localcache.dev/localcache/internal/observe"
)

// Finding is a sentence about what the numbers mean; see package doctor.
type Finding struct {
	Code     string          `json:"code"`
	Severity doctor.Severity `json:"severity"` // ok, info, warning, error
	Text     string          `json:"text"`
	Hint     string          `json:"hint,omitempty"` // what to look at next
	// Since is when the problem began, as far as it is remembered: SinceAtLeast says that it may have begun before.
	Since        *time.Time `json:"since,omitempty"`
	SinceAtLeast bool       `json:"sinceAtLeast,omitempty"`
	// Upstream, Proto and Client say what it is about, if it is about one of them.
	Upstream string  `json:"upstream,omitempty"`
	Proto    string  `json:"proto,omitempty"`
	Client   *Client `json:"client,omitempty"`
}

const (
	// findingWindow is the window of the facts, retransmitWindow that of retransmits: these are rare, because a resolver
	// waits for seconds before it asks again.
	findingWindow    = observe.Last1m
	retransmitWindow = observe.Last5m
)

// findings returns what package doctor finds in a snapshot. names says whether clients may be named.
func (s *Server) findings(v *snapshot, askers []asker, names bool) []Finding {
	facts := &doctor.Facts{Traffic: trafficFacts(v.queries), AllClients: retransmitFacts(&v.queries.Total[retransmitWindow])}
	for i := range v.upstreams {
		facts.Upstreams = append(facts.Upstreams, upstreamFacts(&v.upstreams[i]))
	}
	if names {
		facts.Clients = make([]doctor.Client, len(askers)) // not nil, even if empty
		for i := range askers {
			facts.Clients[i] = clientFacts(i, &askers[i])
		}
	}
	var all []Finding
	for _, d := range doctor.Judge(facts) {
		f := Finding{Code: d.Code, Severity: d.Severity, Text: d.Text, Hint: d.Hint, Since: d.Since, SinceAtLeast: d.SinceAtLeast}
		if d.Upstream != nil {
			f.Upstream, f.Proto = d.Upstream.Name, d.Upstream.Proto
		}
		if d.Client != nil {
			f.Client = &askers[d.Client.ID].Client
		}
		all = append(all, f)
	}
	return all
}

func trafficFacts(q *observe.QueriesSnapshot) doctor.Traffic {
	c, queued := &q.Total[findingWindow], &q.Queued[findingWindow]
	return doctor.Traffic{
		Ever: q.Total[observe.SinceStart].Queries(), Length: q.Coverage[findingWindow],
		Queries: c.Queries(), Hits: c.Hits(), ServFail: c.Rcodes[observe.ServFail], Stale: c.Sources[observe.FromStale],
		Queued: queued.Count(), QueuedP99: queued.Quantile(0.99),
	}
}

func upstreamFacts(u *observe.UpstreamSnapshot) doctor.Upstream {
	c := &u.Windows[findingWindow]
	most := observe.Timeout
	for o, n := range c.Outcomes {
		if outcome := observe.Outcome(o); !outcome.Answer() && n > c.Outcomes[most] {
			most = outcome
		}
	}
	f := doctor.Upstream{
		Name: u.Upstream, Proto: u.Proto.String(), Exchanges: c.Exchanges(), Failures: c.Failures(),
		MostlyFailure: strings.ReplaceAll(most.String(), "_", " "), P90: c.Latency.Quantile(0.9),
	}
	f.FailingSince, f.FailingLonger = failingSince(u)
	return f
}

// failingSince returns when the outage began or, of an upstream that answers now and then, the latest run of failures.
func failingSince(u *observe.UpstreamSnapshot) (since *time.Time, longer bool) {
	if !u.FailingSince.IsZero() {
		return &u.FailingSince, false
	}
	ends := make([]time.Time, len(u.Failures))
	for i := range u.Failures {
		ends[i] = u.Failures[i].Start.Add(u.Failures[i].Duration).Round(0)
	}
	return doctor.FailureRun(ends, len(ends) >= observe.RecentFailures)
}

func clientFacts(id int, a *asker) doctor.Client {
	f := doctor.Client{ID: id, Retransmits: retransmitFacts(&a.seen.Windows[retransmitWindow])}
	switch {
	case a.Overflow:
		f.Called, f.Plural = "the other clients", true
	case a.Host:
		f.Called = "the node itself"
	case a.PodName != "":
		f.Called = "pod " + a.Name()
	default:
		f.Called = "client " + a.Name()
	}
	c := &a.seen.Windows[findingWindow]
	f.Queries, f.NXDomain, f.SearchWaste = c.Queries(), c.Rcodes[observe.NXDomain], c.SearchWaste()
	return f
}

func retransmitFacts(c *observe.Counts) doctor.Retransmits {
	of := func(cause observe.Cause) (f doctor.Repeated) {
		by := observe.UnknownResolver
		for r := range c.Retransmits {
			f.Count += c.Retransmits[r][cause]
			if c.Retransmits[r][cause] > c.Retransmits[by][cause] {
				by = observe.Resolver(r)
			}
		}
		if by != observe.UnknownResolver {
			f.Resolver = by.String()
		}
		return f
	}
	return doctor.Retransmits{SlowUpstream: of(observe.SlowUpstream), ReplyLost: of(observe.ReplyLost), QueryLost: of(observe.QueryLost)}
}

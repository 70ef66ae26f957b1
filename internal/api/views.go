package api

import (
	"net/netip"
	"slices"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// latencyBounds are the upper bounds of observe.Latency's buckets but the last, in seconds.
var latencyBounds = func() []float64 {
	bounds := make([]float64, observe.NumLatencyBuckets-1)
	for i := range bounds {
		_, high := observe.LatencyBounds(i)
		bounds[i] = high.Seconds()
	}
	return bounds
}()

func latency(l *observe.Latency) Latency {
	n := len(l.Counts)
	for n > 0 && l.Counts[n-1] == 0 {
		n--
	}
	return Latency{
		Count: l.Count(), SumSeconds: l.Sum.Seconds(), MeanSeconds: l.Mean().Seconds(),
		P50Seconds: l.Quantile(0.5).Seconds(), P90Seconds: l.Quantile(0.9).Seconds(), P99Seconds: l.Quantile(0.99).Seconds(),
		Counts: append([]uint64{}, l.Counts[:n]...),
	}
}

// traffic is c with its rates over a window of so many seconds.
func traffic(c *observe.Counts, seconds float64) Traffic {
	t := Traffic{
		Queries: c.Queries(), Hits: c.Hits(), Sources: make(map[string]uint64, observe.NumSources), Rcodes: make(map[string]uint64, len(c.Rcodes)),
		RetransmitTotal: c.Retransmitted(), Retransmits: []Retransmit{}, SearchWaste: c.SearchWaste(), Hit: latency(&c.Hit), Miss: latency(&c.Miss),
		UpstreamWaitSeconds: c.Upstream.Seconds(), QueuedSeconds: c.Queued.Seconds(),
	}
	if seconds > 0 {
		t.QueriesPerSecond = float64(t.Queries) / seconds
	}
	if t.Queries > 0 {
		t.HitRatio = float64(t.Hits) / float64(t.Queries)
	}
	for source, n := range c.Sources {
		t.Sources[observe.Source(source).String()] = n
	}
	for rcode, n := range c.Rcodes {
		t.Rcodes[observe.Outcome(rcode).String()] = n
	}
	for r := range c.Retransmits {
		for cause, n := range c.Retransmits[r] {
			if n > 0 {
				t.Retransmits = append(t.Retransmits, Retransmit{observe.Resolver(r).String(), observe.Cause(cause).String(), n})
			}
		}
	}
	for cause, n := range c.Suspected {
		if n > 0 {
			if t.Suspected == nil {
				t.Suspected = map[string]uint64{}
			}
			t.Suspected[observe.Cause(cause).String()] = n
		}
	}
	return t
}

func byOutcome(counts *[observe.NumOutcomes]uint64) map[string]uint64 {
	m := make(map[string]uint64, len(counts))
	for o, n := range counts {
		m[observe.Outcome(o).String()] = n
	}
	return m
}

func upstreamItem(u *observe.UpstreamSnapshot, w observe.Window) Upstream {
	c := &u.Windows[w]
	item := Upstream{
		Upstream: u.Upstream, Proto: u.Proto.String(), Exchanges: c.Exchanges(), Answers: c.Answers(), Failures: c.Failures(),
		Outcomes: byOutcome(&c.Outcomes), Probes: byOutcome(&c.Probes), Drops: make(map[string]uint64, len(c.Drops)),
		Hedges: c.Hedges, Retries: c.Retries, Reused: c.Reused, BytesOut: c.BytesOut, BytesIn: c.BytesIn, Latency: latency(&c.Latency),
		InFlight: u.InFlight, OpenConnections: u.OpenConnections, Connections: make([]Connection, len(u.Connections)),
	}
	if seconds := u.Coverage[w].Seconds(); seconds > 0 {
		item.ExchangesPerSecond = float64(item.Exchanges) / seconds
	}
	if item.Exchanges > 0 {
		item.FailureRatio = float64(item.Failures) / float64(item.Exchanges)
	}
	for d, n := range c.Drops {
		item.Drops[observe.Drop(d).String()] = n
	}
	if !u.LastAnswer.IsZero() {
		item.LastAnswer = &u.LastAnswer
	}
	if !u.FailingSince.IsZero() {
		item.FailingSince = &u.FailingSince
	}
	if len(u.Failures) > 0 {
		f := failureItem(&u.Failures[max(0, slices.IndexFunc(u.Failures, func(e observe.Exchange) bool { return !e.Probe }))])
		item.LastFailure = &f
	}
	for i, o := range u.Connections {
		item.Connections[i] = Connection{
			Local: o.Local.String(), Opened: o.Opened, InFlight: o.InFlight, RTTSeconds: o.RTT.Seconds(), RTTVarSeconds: o.RTTVar.Seconds(),
			Retransmits: o.Retransmits, Lost: o.Lost, Unacked: o.Unacked, SilentSeconds: o.Silent.Seconds(),
		}
	}
	return item
}

func failureItem(e *observe.Exchange) Failure {
	return Failure{At: e.Start.Add(e.Duration).Round(0), Outcome: e.Outcome.String(), DurationSeconds: e.Duration.Seconds(), Attempt: e.Attempt, Probe: e.Probe, Message: e.Err}
}

func eventItem(u *observe.UpstreamSnapshot, e *observe.Exchange) Event {
	return Event{Type: "UpstreamFailure", Upstream: u.Upstream, Proto: u.Proto.String(), Failure: failureItem(e)}
}

// asker is a client with its statistics over all its addresses.
type asker struct {
	Client
	seen *observe.ClientSnapshot
}

// askers puts together the addresses that belong to the same pod.
func (s *Server) askers(v *snapshot) []asker {
	all := make([]asker, 0, len(v.queries.Clients))
	at := map[string]int{} // by pod
	for i := range v.queries.Clients {
		seen := &v.queries.Clients[i]
		client, key := s.client(seen.Client, v.pods)
		if j, ok := at[key]; ok && key != "" {
			both := *all[j].seen // the snapshot is shared
			both.Add(seen)
			all[j].seen = &both
			all[j].Addresses = append(all[j].Addresses, client.Addresses...)
			continue
		}
		if key != "" {
			at[key] = len(all)
		}
		all = append(all, asker{client, seen})
	}
	return all
}

// same reports whether two are the same client. A pod's name can come back with another pod.
func (c *Client) same(o *Client) bool {
	return c.UID == o.UID && c.Name() == o.Name()
}

// client returns the client of an address. key is the same for all addresses of a pod; empty if there is none.
func (s *Server) client(address string, table *pods.Table) (c Client, key string) {
	if address == observe.Overflow {
		return Client{Addresses: []string{}, Overflow: true}, ""
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return Client{Addresses: []string{address}}, ""
	}
	p, ok := table.Of(a)
	return s.clientOf(a, p, ok)
}

// clientOf is the client with an address that is a pod's, where known.
func (s *Server) clientOf(a netip.Addr, p pods.Pod, ok bool) (c Client, key string) {
	a = a.Unmap()
	c.Addresses = []string{a.String()}
	switch {
	case !ok:
	case p.IsHost():
		c.Host, key = true, "host"
	default:
		c.Namespace, c.PodName, c.UID, key = p.Namespace, p.Name, p.UID, "pod "+p.UID
		if p.WorkloadName != "" {
			c.Workload = p.WorkloadKind + "/" + p.WorkloadName
		}
	}
	return s.redactClient(c), key
}

func (s *Server) podItem(a *asker, w observe.Window, v *snapshot) Pod {
	return Pod{
		Client: a.Client, FirstSeen: a.seen.FirstSeen, LastSeen: a.seen.LastSeen,
		Traffic: traffic(&a.seen.Windows[w], v.queries.Coverage[w].Seconds()), Names: s.names(&a.seen.Names, false),
	}
}

// names lists t's names; those of slowest ones count microseconds.
func (s *Server) names(t *observe.Top, slowest bool) []Name {
	list := make([]Name, len(t.Names))
	for i, n := range t.Names {
		list[i] = Name{Name: s.redactName(n.Name), Count: n.Count, Error: n.Error}
		if slowest {
			list[i].Count, list[i].Error = 0, 0
			list[i].Seconds = (time.Duration(min(n.Count, 1<<40)) * time.Microsecond).Seconds()
		}
	}
	return list
}

func (s *Server) queryItem(q *observe.Story, table *pods.Table) Query {
	// Its address may be another pod's by now.
	p, ok := table.At(q.Client.Addr(), q.Received)
	client, _ := s.clientOf(q.Client.Addr(), p, ok)
	item := Query{
		ReceivedAt: q.Received, Client: client, Port: q.Client.Port(), ID: q.ID, Proto: q.Proto.String(), Name: s.redactName(q.Name),
		Type: typeText(q.Type), Rcode: rcodeText(q.Rcode), Source: q.Source.String(), DurationSeconds: q.Duration.Seconds(),
		QueuedSeconds: q.Queued.Seconds(), UpstreamSeconds: q.Upstream.Seconds(), Exchanges: make([]Exchange, len(q.Steps)), LostExchanges: q.LostStep,
	}
	for i, e := range q.Steps {
		item.Exchanges[i] = Exchange{
			Upstream: e.Upstream, Proto: e.Proto.String(), Outcome: e.Outcome.String(), DurationSeconds: e.Duration.Seconds(),
			Hedge: e.Hedge, Reused: e.Reused, Shared: e.Shared, Overtaken: e.Overtaken, Message: s.redactText(e.Err, e.Upstream),
		}
		if !e.Start.IsZero() {
			start := e.Start.Sub(q.Received).Seconds()
			item.Exchanges[i].StartSeconds = &start
		}
	}
	return item
}

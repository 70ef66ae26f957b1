package api

import "slices"

// mergeUpstreams sums the statistics of the nodes about the same upstream and transport, and keeps the parts.
func mergeUpstreams(g *Gather, from []answer[Upstream], to *List[Upstream]) {
	bounds := to.Metadata.LatencyBoundsSeconds
	var sums []Upstream
	at := map[[2]string]int{}
	for _, a := range from {
		for _, u := range a.Items {
			u.Node, u.PerNode = a.node, nil
			key := [2]string{u.Upstream, u.Proto}
			i, known := at[key]
			if !known {
				i = len(sums)
				at[key] = i
				sums = append(sums, Upstream{Upstream: u.Upstream, Proto: u.Proto})
			}
			parts := sums[i].PerNode
			if n := len(parts) - 1; n >= 0 && parts[n].Node == a.node { // another process of the node
				parts[n].add(&u, bounds)
				parts[n].Connections = slices.Concat(parts[n].Connections, u.Connections)
			} else {
				sums[i].PerNode = append(parts, u)
			}
		}
	}
	for i := range sums {
		for j := range sums[i].PerNode {
			sums[i].add(&sums[i].PerNode[j], bounds)
		}
		sums[i].Connections = []Connection{} // those of hundreds of nodes are in the parts
	}
	place(g, to, sums, func(u *Upstream) cursor {
		key := u.Upstream + " " + u.Proto
		switch g.params.by {
		case "exchanges":
			return cursor{number(u.Exchanges), key}
		case "failures":
			return cursor{number(u.Failures), key}
		case "latency":
			return cursor{nanoseconds(u.Latency.P99Seconds), key}
		}
		return cursor{0, key}
	}, from)
}

// add merges the statistics of another node or process about the same upstream, except the connections.
func (u *Upstream) add(o *Upstream, bounds []float64) {
	u.Exchanges, u.Answers, u.Failures = add(u.Exchanges, o.Exchanges), add(u.Answers, o.Answers), add(u.Failures, o.Failures)
	u.ExchangesPerSecond = addFloat(u.ExchangesPerSecond, o.ExchangesPerSecond)
	u.FailureRatio = ratio(u.Failures, u.Exchanges)
	addMap(&u.Outcomes, o.Outcomes)
	addMap(&u.Probes, o.Probes)
	addMap(&u.Drops, o.Drops)
	u.Hedges, u.Retries, u.Reused = add(u.Hedges, o.Hedges), add(u.Retries, o.Retries), add(u.Reused, o.Reused)
	u.BytesOut, u.BytesIn = add(u.BytesOut, o.BytesOut), add(u.BytesIn, o.BytesIn)
	u.Latency.add(&o.Latency, bounds)
	u.InFlight = addInt(u.InFlight, o.InFlight)
	u.OpenConnections = int(addInt(int64(u.OpenConnections), int64(o.OpenConnections)))
	u.LastAnswer = later(u.LastAnswer, o.LastAnswer)
	if u.FailingSince == nil || o.FailingSince != nil && o.FailingSince.Before(*u.FailingSince) {
		u.FailingSince = o.FailingSince
	}
	if a, b := u.LastFailure, o.LastFailure; a == nil || b != nil && (a.Probe && !b.Probe || a.Probe == b.Probe && b.At.After(a.At)) {
		u.LastFailure = b
	}
}

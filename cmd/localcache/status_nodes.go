package main

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"localcache.dev/localcache/internal/api"
)

// showNodes shows how the caches of all nodes do: a line for each, and the sum.
func showNodes(ctx context.Context, a *asking) error {
	var v api.List[api.Status]
	if a.output == "json" || a.output == "yaml" {
		raw, err := a.document(ctx, "/statusz", url.Values{}, &v)
		if err != nil {
			return err
		}
		_, err = a.print(raw)
		return err
	}
	states, err := api.NewGather("/statusz", nil)
	if err != nil {
		return err
	}
	totals, err := api.NewGather("/api/v1/summary", nil)
	if err != nil {
		return err
	}
	lines, err := a.nodes.ask(ctx, states, "/statusz")
	if err != nil {
		return err
	}
	sums, err := a.nodes.ask(ctx, totals, "/api/v1/summary", lines...)
	if err != nil {
		return err
	}
	bySum := map[string]*reply{}
	for i := range sums {
		bySum[sums[i].pod] = &sums[i]
	}
	t := table{header: []string{"NODE", "STATE", "RUNNING", "QUERIES", "HITS", "MISS-P99", "SERVFAIL", "STALE", "RETRANS", "EXCHANGES", "FAILED", "CLIENTS", "PODS"}}
	if a.wide() {
		t.header = append(t.header, "VERSION", "POD", "IN-FLIGHT", "REDACT")
	}
	for i := range lines {
		r := &lines[i]
		node := r.node
		if node == "" {
			node = "-"
		}
		row := make([]string, len(t.header))
		for c := range row {
			row[c] = "-"
		}
		row[0], row[1] = node, "no answer"
		if a.wide() {
			row[14] = r.pod
		}
		trouble := true
		if s := only[api.Status](states, r); s != nil {
			trouble = false
			row[1], row[2], row[11], row[12] = "answers", age(time.Duration(s.UptimeSeconds*1e9)), fmt.Sprint(s.Clients), "unknown"
			if s.Pods.Known {
				row[12] = fmt.Sprint(s.Pods.Count)
			}
			if a.wide() {
				row[13], row[15], row[16] = s.Version, fmt.Sprint(s.InFlight), s.Redact
			}
		}
		if m := only[api.Summary](totals, bySum[r.pod]); m != nil {
			copy(row[3:11], totalCells(m))
			trouble = trouble || m.Rcodes["servfail"]+m.UpstreamFailures+m.RetransmitTotal > 0
		}
		t.add(trouble, row...)
	}
	merged, err := a.nodes.merge(totals, sums)
	if err != nil {
		return err
	}
	m := merged.(*api.List[api.Summary])
	row := append([]string{"all", fmt.Sprintf("%d nodes", len(m.Metadata.Nodes)), "-"}, totalCells(&m.Items[0])...)
	row = append(row, fmt.Sprint(m.Items[0].Clients), "-")
	for len(row) < len(t.header) {
		row = append(row, "-")
	}
	t.add(false, row...)
	t.print(a.stdout, coloured(a.stdout))
	fmt.Fprintln(a.stderr, "note: QUERIES to FAILED are of the last 5m")
	a.notes(&m.Metadata)
	return nil
}

// totalCells are what happened in the last minutes.
func totalCells(m *api.Summary) []string {
	return []string{
		count(m.Queries), percent(m.Hits, m.Queries), short(m.Miss.P99Seconds), count(m.Rcodes["servfail"]), count(m.Sources["stale"]), count(m.RetransmitTotal),
		count(m.UpstreamExchanges), count(m.UpstreamFailures),
	}
}

// only is the item of a reply that has one; nil where there is none.
func only[T any](g *api.Gather, r *reply) *T {
	if r == nil || r.part == nil {
		return nil
	}
	merged, err := g.Merge([]*api.Part{r.part})
	if err != nil {
		return nil // it cannot be: one part has the buckets of itself
	}
	if list := merged.(*api.List[T]); len(list.Items) == 1 {
		return &list.Items[0]
	}
	return nil
}

package apiclient

import (
	"context"
	"fmt"
	"net/url"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/fleet"
	"localcache.dev/localcache/internal/apiclient/render"
)

// showNodes shows the state of the caches of all nodes: a line for each, and the sum.
func showNodes(ctx context.Context, a *Command) error {
	var v api.List[api.Status]
	if a.output == "json" || a.output == "yaml" {
		raw, err := a.Document(ctx, "/statusz", url.Values{}, &v)
		if err != nil {
			return err
		}
		_, err = a.Print(raw)
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
	lines, err := a.nodes.Ask(ctx, states, "/statusz")
	if err != nil {
		return err
	}
	sums, err := a.nodes.Ask(ctx, totals, "/api/v1/summary", lines...)
	if err != nil {
		return err
	}
	bySum := map[string]*fleet.Reply{}
	for i := range sums {
		bySum[sums[i].Pod] = &sums[i]
	}
	t := render.Table{Header: []string{"NODE", "STATE", "RUNNING", "QUERIES", "HITS", "MISS-P99", "SERVFAIL", "STALE", "RETRANS", "EXCHANGES", "FAILED", "CLIENTS", "PODS"}}
	if a.wide() {
		t.Header = append(t.Header, "VERSION", "POD", "IN-FLIGHT", "REDACT")
	}
	for i := range lines {
		r := &lines[i]
		node := r.Node
		if node == "" {
			node = "-"
		}
		row := make([]string, len(t.Header))
		for c := range row {
			row[c] = "-"
		}
		row[0], row[1] = node, "no answer"
		if a.wide() {
			row[14] = r.Pod
		}
		trouble := true
		if s := only[api.Status](states, r); s != nil {
			trouble = false
			row[1], row[2], row[11], row[12] = "answers", render.Age(time.Duration(s.UptimeSeconds*1e9)), fmt.Sprint(s.Clients), "unknown"
			if s.Pods.Known {
				row[12] = fmt.Sprint(s.Pods.Count)
			}
			if a.wide() {
				row[13], row[15], row[16] = s.Version, fmt.Sprint(s.InFlight), s.Redact
			}
		}
		if m := only[api.Summary](totals, bySum[r.Pod]); m != nil {
			copy(row[3:11], totalCells(m))
			trouble = trouble || m.Rcodes["servfail"]+m.UpstreamFailures+m.RetransmitTotal > 0
		}
		t.Add(trouble, row...)
	}
	merged, err := a.nodes.Merge(totals, sums)
	if err != nil {
		return err
	}
	m := merged.(*api.List[api.Summary])
	row := append([]string{"all", fmt.Sprintf("%d nodes", len(m.Metadata.Nodes)), "-"}, totalCells(&m.Items[0])...)
	row = append(row, fmt.Sprint(m.Items[0].Clients), "-")
	for len(row) < len(t.Header) {
		row = append(row, "-")
	}
	t.Add(false, row...)
	t.Print(a.stdout, render.Coloured(a.stdout))
	fmt.Fprintln(a.stderr, "note: QUERIES to FAILED are of the last 5m")
	a.notes(&m.Metadata)
	return nil
}

// totalCells returns the counts of the last minutes.
func totalCells(m *api.Summary) []string {
	return []string{
		count(m.Queries), render.Percent(m.Hits, m.Queries), render.Short(m.Miss.P99Seconds), count(m.Rcodes["servfail"]), count(m.Sources["stale"]), count(m.RetransmitTotal),
		count(m.UpstreamExchanges), count(m.UpstreamFailures),
	}
}

// only returns the single item of a reply; nil if there is none.
func only[T any](g *api.Gather, r *fleet.Reply) *T {
	if r == nil || r.Part == nil {
		return nil
	}
	merged, err := g.Merge([]*api.Part{r.Part})
	if err != nil {
		return nil // impossible: one part has the buckets of itself
	}
	if list := merged.(*api.List[T]); len(list.Items) == 1 {
		return &list.Items[0]
	}
	return nil
}

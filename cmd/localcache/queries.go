package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"localcache.dev/localcache/internal/api"
)

// queriesFlags are the flags of queries.
type queriesFlags struct {
	*asking
	slow                                           time.Duration
	outcome, pod, namespace, name, rcode, earliest string
	limit                                          int
	follow                                         bool
}

func newQueriesFlags(stdout, stderr io.Writer) *queriesFlags {
	f := &queriesFlags{asking: newAsking("queries", stdout, stderr)}
	f.flags.DurationVar(&f.slow, "slow", 0, "only queries that took at least this `duration`, such as 100ms")
	f.flags.StringVar(&f.outcome, "outcome", "", "only queries of which an exchange ended so: timeout, servfail, conn_refused, … (`outcome`)")
	f.flags.StringVar(&f.pod, "pod", "", "only this `client`: NAMESPACE/NAME, an IP address, host or ~other")
	f.flags.StringVar(&f.namespace, "n", "", "only pods of this `namespace`")
	f.flags.StringVar(&f.name, "name", "", "only this domain `name` and those below it")
	f.flags.StringVar(&f.rcode, "rcode", "", "only this `RCODE`: SERVFAIL, NXDOMAIN, …, or NOREPLY for dropped ones")
	f.flags.StringVar(&f.earliest, "since", "", "only queries after a `time` (RFC 3339), or of a duration up to now such as 5m")
	f.flags.IntVar(&f.limit, "limit", 50, "`number` of queries")
	f.flags.BoolVar(&f.follow, "follow", false, "go on with new ones until interrupted; with -o json one a line")
	return f
}

func queriesHelp(w io.Writer) {
	fmt.Fprint(w, `Show the latest queries that were slow or failed, with each exchange that they waited for.

Usage:
  localcache queries [flags]

Examples:
  localcache queries --slow 1s
  localcache queries --outcome timeout --pod shop/web-1
  localcache queries --follow
  kubectl localcache queries --all-nodes --slow 1s
`)
	printFlags(w, newQueriesFlags(io.Discard, io.Discard).asking)
}

func queries(args []string, stdout, stderr io.Writer) int {
	f := newQueriesFlags(stdout, stderr)
	if _, status, ok := f.parse(args, 0, queriesHelp); !ok {
		return status
	}
	query := url.Values{"limit": {strconv.Itoa(f.limit)}}
	for name, v := range map[string]string{"outcome": f.outcome, "pod": f.pod, "namespace": f.namespace, "name": f.name, "rcode": f.rcode, "since": f.earliest} {
		if v != "" {
			query.Set(name, v)
		}
	}
	if f.slow > 0 {
		query.Set("minDuration", f.slow.String())
	}
	if f.follow {
		return f.followQueries(query)
	}
	return f.run(func(ctx context.Context) error {
		var v api.List[api.Query]
		raw, err := f.document(ctx, "/api/v1/queries", query, &v)
		if err != nil {
			return err
		}
		if done, err := f.print(raw); done {
			return err
		}
		t := queryTable(v.Items, v.Metadata.GeneratedAt, f.wide(), f.nodes.on)
		f.table(&t, &v.Metadata, len(v.Items), "no such query is remembered; those faster than 'diag { slow }' of the Corefile are not")
		return nil
	})
}

// queryTable lists queries with their ages; all columns where wide, and those of several nodes with their node.
func queryTable(list []api.Query, now time.Time, wide, nodes bool) table {
	t := table{header: []string{"AGE", "CLIENT", "NAME", "TYPE", "RCODE", "SOURCE", "TOOK", "WAITED", "EXCHANGES"}}
	if wide {
		t.header = slices.Insert(t.header, 1, "TIME", "PROTO", "PORT", "ID", "QUEUED")
	}
	if nodes {
		t.header = slices.Insert(t.header, 1, "NODE")
	}
	for i := range list {
		q := &list[i]
		row := queryRow(q, age(now.Sub(q.ReceivedAt)))
		if wide {
			row = slices.Insert(row, 1, q.ReceivedAt.Format(time.RFC3339Nano), q.Proto, fmt.Sprint(q.Port), fmt.Sprint(q.ID), short(q.QueuedSeconds))
		}
		if nodes {
			row = slices.Insert(row, 1, q.Client.Node)
		}
		t.add(failed(q), row...)
	}
	return t
}

func failed(q *api.Query) bool { return q.Rcode != "NOERROR" && q.Rcode != "NXDOMAIN" }

func queryRow(q *api.Query, when string) []string {
	return []string{when, q.Client.Name(), q.Name, q.Type, q.Rcode, q.Source, short(q.DurationSeconds), short(q.UpstreamSeconds), orDash(exchanges(q))}
}

// exchanges tells what a query waited for.
func exchanges(q *api.Query) string {
	var list []string
	for _, e := range q.Exchanges {
		s := fmt.Sprintf("%s/%s %s %s", e.Upstream, e.Proto, e.Outcome, short(e.DurationSeconds))
		if e.Message != "" {
			s += " (" + e.Message + ")"
		}
		list = append(list, s)
	}
	if q.LostExchanges > 0 {
		list = append(list, fmt.Sprintf("and %d more", q.LostExchanges))
	}
	return strings.Join(list, "; ")
}

const (
	followEvery = 500 * time.Millisecond
	// followNodesEvery is for all nodes, where a look takes a kubectl for each.
	followNodesEvery = 3 * time.Second
	// followBack is how long before the newest query one may have come that ended later: longer than any takes.
	followBack = 30 * time.Second
)

// followQueries prints each new query once. A query is remembered when it ends, so that later ones may have come earlier.
func (f *queriesFlags) followQueries(query url.Values) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	colour := coloured(f.stdout)
	seen := map[string]time.Time{}
	var newest time.Time
	var said []string
	for first := true; ; first = false {
		if !newest.IsZero() {
			query.Set("since", newest.Add(-followBack).UTC().Format(time.RFC3339Nano))
			query.Del("limit") // what is new is not to be cut
			query.Set("limit", "2048")
		}
		var v api.List[api.Query]
		if _, err := f.document(ctx, "/api/v1/queries", query, &v); err != nil {
			if ctx.Err() != nil {
				return exitOK
			}
			return f.fail(err)
		}
		if first || f.nodes.on && !slices.Equal(v.Metadata.Notes, said) {
			f.notes(&v.Metadata) // also of nodes that cease to answer, and do again
		}
		said = v.Metadata.Notes
		for _, q := range slices.Backward(v.Items) {
			key := fmt.Sprint(q.ReceivedAt.UnixNano(), q.Client.Node, q.Client.Name(), q.Port, q.ID, q.Name, q.Type)
			if _, known := seen[key]; known {
				continue
			}
			seen[key] = q.ReceivedAt
			if q.ReceivedAt.After(newest) {
				newest = q.ReceivedAt
			}
			if err := f.line(&q, colour); err != nil {
				return exitFailed // nobody reads
			}
		}
		for key, at := range seen {
			if at.Before(newest.Add(-followBack)) {
				delete(seen, key)
			}
		}
		every := followEvery
		if f.nodes.on {
			every = followNodesEvery
		}
		if !waitFor(ctx, every) {
			return exitOK
		}
	}
}

// line prints one query.
func (f *queriesFlags) line(q *api.Query, colour bool) error {
	raw, err := json.Marshal(q)
	if err != nil {
		return err
	}
	switch f.output {
	case "json":
		_, err = fmt.Fprintf(f.stdout, "%s\n", raw)
		return err
	case "yaml":
		if _, err := fmt.Fprintln(f.stdout, "---"); err != nil {
			return err
		}
		return writeYAML(f.stdout, raw)
	}
	row := queryRow(q, q.ReceivedAt.Format("15:04:05.000"))
	if f.nodes.on {
		row = slices.Insert(row, 1, q.Client.Node)
	}
	text := printable(strings.Join(row, "  "))
	if colour && failed(q) {
		text = "\x1b[31m" + text + "\x1b[0m"
	}
	_, err = fmt.Fprintln(f.stdout, text)
	return err
}

package apiclient

import (
	"cmp"
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
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/cli"
)

// queriesFlags are the flags of queries.
type queriesFlags struct {
	*Command
	slow                                           time.Duration
	outcome, pod, namespace, name, rcode, earliest string
	limit                                          int
	follow                                         bool
}

func newQueriesFlags(stdout, stderr io.Writer) *queriesFlags {
	f := &queriesFlags{Command: newCommand("queries", stdout, stderr)}
	f.flags.DurationVar(&f.slow, "slow", 0, "only queries that took at least this `duration`, such as 100ms")
	f.flags.StringVar(&f.outcome, "outcome", "", "only queries of which an exchange had this `outcome`, or the answer where there was none: timeout, servfail, conn_refused, …")
	f.flags.StringVar(&f.pod, "pod", "", "only this `client`: NAMESPACE/NAME, an IP address, host or ~other")
	f.flags.StringVar(&f.namespace, "n", "", "only pods of this `namespace`")
	f.flags.StringVar(&f.name, "name", "", "only this domain `name` and those below it")
	f.flags.StringVar(&f.rcode, "rcode", "", "only this `RCODE`: SERVFAIL, NXDOMAIN, …, or NOREPLY for dropped ones")
	f.flags.StringVar(&f.earliest, "since", "", "only queries after a `time` (RFC 3339), or of a duration up to now such as 5m")
	f.flags.IntVar(&f.limit, "limit", 50, "`number` of queries")
	f.flags.BoolVar(&f.follow, "follow", false, "continue with new ones until interrupted; with -o json one a line")
	return f
}

// QueriesHelp writes the help text of the subcommand queries.
func QueriesHelp(w io.Writer) {
	fmt.Fprint(w, `Show the latest queries that were slow or failed, with each exchange that they waited for.

Usage:
  localcache queries [flags]

Examples:
  localcache queries --slow 1s
  localcache queries --outcome timeout --pod shop/web-1
  localcache queries --follow
  kubectl localcache queries --all-nodes --slow 1s
`)
	printFlags(w, newQueriesFlags(io.Discard, io.Discard).Command)
}

// Queries runs the subcommand queries and returns its exit status.
func Queries(args []string, stdout, stderr io.Writer) int {
	f := newQueriesFlags(stdout, stderr)
	if _, status, ok := f.parse(args, 0, QueriesHelp); !ok {
		return status
	}
	renamed := map[string]string{"n": "namespace", "slow": "minDuration"}
	values := map[string]string{"limit": strconv.Itoa(f.limit)}
	for name, v := range map[string]string{"outcome": f.outcome, "pod": f.pod, "n": f.namespace, "name": f.name, "rcode": f.rcode, "since": f.earliest} {
		if v != "" {
			values[name] = v
		}
	}
	if f.slow != 0 {
		values["slow"] = f.slow.String()
	}
	if status, ok := f.accepted("/api/v1/queries", values, renamed); !ok {
		return status
	}
	if f.pod != "" {
		if err := checkClient(f.pod); err != nil {
			return f.usage("--pod: " + err.Error())
		}
	}
	query := url.Values{}
	for name, v := range values {
		query.Set(cmp.Or(renamed[name], name), v)
	}
	if f.follow {
		return f.followQueries(query)
	}
	return f.Run(func(ctx context.Context) error {
		var v api.List[api.Query]
		raw, err := f.Document(ctx, "/api/v1/queries", query, &v)
		if err != nil {
			return err
		}
		if done, err := f.Print(raw); done {
			return err
		}
		t := queryTable(v.Items, v.Metadata.GeneratedAt, f.wide(), f.nodes.On)
		f.table(&t, &v.Metadata, len(v.Items), "no such query is remembered; those faster than 'diag { slow }' of the Corefile are not")
		return nil
	})
}

// queryTable lists queries with their ages; all columns where wide, and those of several nodes with their node.
func queryTable(list []api.Query, now time.Time, wide, nodes bool) render.Table {
	t := render.Table{Header: []string{"AGE", "CLIENT", "NAME", "TYPE", "RCODE", "SOURCE", "TOOK", "WAITED", "EXCHANGES"}}
	if wide {
		t.Header = slices.Insert(t.Header, 1, "TIME", "PROTO", "PORT", "ID", "QUEUED")
	}
	if nodes {
		t.Header = slices.Insert(t.Header, 1, "NODE")
	}
	for i := range list {
		q := &list[i]
		row := queryRow(q, render.Age(now.Sub(q.ReceivedAt)), wide)
		if wide {
			row = slices.Insert(row, 1, q.ReceivedAt.Format(time.RFC3339Nano), q.Proto, fmt.Sprint(q.Port), fmt.Sprint(q.ID), render.Short(q.QueuedSeconds))
		}
		if nodes {
			row = slices.Insert(row, 1, q.Client.Node)
		}
		t.Add(failed(q), row...)
	}
	return t
}

func failed(q *api.Query) bool { return q.Rcode != "NOERROR" && q.Rcode != "NXDOMAIN" }

// queryRow are the cells of a query; its exchanges with all details where wide.
func queryRow(q *api.Query, when string, wide bool) []string {
	waited := Summarised(q)
	if wide {
		waited = exchanges(q)
	}

	return []string{when, q.Client.Name(), q.Name, q.Type, q.Rcode, q.Source, render.Short(q.DurationSeconds), render.Short(q.UpstreamSeconds), render.OrDash(waited)}
}

// maxSummarised bounds how many kinds of exchanges of a query are shown in a table, so that a line fits a screen.
const maxSummarised = 3

// Summarised says what a query waited for, once for all exchanges with the same upstream and outcome.
func Summarised(q *api.Query) string {
	type way struct{ upstream, outcome string }
	var order []way
	times, took := map[way]int{}, map[way]float64{}
	for i := range q.Exchanges {
		e := &q.Exchanges[i]
		w := way{e.Upstream + "/" + e.Proto, outcomeOf(e)}
		if times[w] == 0 {
			order = append(order, w)
		}
		times[w]++
		took[w] += e.DurationSeconds
	}
	more := q.LostExchanges
	var list []string
	for i, w := range order {
		switch {
		case i >= maxSummarised:
			more += times[w]
		case times[w] > 1:
			list = append(list, fmt.Sprintf("%d× %s %s", times[w], w.upstream, w.outcome))
		default:
			list = append(list, fmt.Sprintf("%s %s %s", w.upstream, w.outcome, render.Short(took[w])))
		}
	}
	if more > 0 {
		list = append(list, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(list, "; ")
}

// outcomeOf returns how an exchange ended: one that was under way when another one answered has not failed.
func outcomeOf(e *api.Exchange) string {
	if e.Overtaken {
		return "overtaken"
	}
	return e.Outcome
}

// exchanges lists everything that a query waited for.
func exchanges(q *api.Query) string {
	var list []string
	for _, e := range q.Exchanges {
		s := fmt.Sprintf("%s/%s %s %s", e.Upstream, e.Proto, outcomeOf(&e), render.Short(e.DurationSeconds))
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
	// followNodesEvery is the interval for all nodes, where each request needs a kubectl.
	followNodesEvery = 3 * time.Second
	// followBack is how far back a request looks: a query is recorded at its end and may have arrived that long
	// before. No query takes longer.
	followBack = 30 * time.Second
	// followSpan is the least that each look covers.
	followSpan = 45 * time.Second
)

// followQueries prints each new query once. A query is recorded when it ends, so that later ones may have arrived
// earlier. Each request covers the last seconds, by the clock of the cache: the clocks of the nodes and of this
// machine may differ.
func (f *queriesFlags) followQueries(query url.Values) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	colour := render.Coloured(f.stdout)
	seen := map[string]time.Time{} // when a query was last returned
	var said []string
	var began time.Time    // of the look before
	var took time.Duration // by it
	// New queries must not be cut off, and those that the first request does not show are not new.
	query.Set("limit", strconv.Itoa(api.MaxLimit))
	for first := true; ; first = false {
		span := followSpan
		if !first {
			// The node that was asked first then may be asked last now.
			span = max(span, followBack+time.Since(began)+took).Round(time.Second)
			query.Set("since", span.String())
		}
		began = time.Now()
		var v api.List[api.Query]
		if _, err := f.Document(ctx, "/api/v1/queries", query, &v); err != nil {
			if ctx.Err() != nil {
				return cli.ExitOK
			}
			return f.fail(err)
		}
		took = time.Since(began)
		if first || f.nodes.On && !slices.Equal(v.Metadata.Notes, said) {
			f.notes(&v.Metadata) // also of nodes that cease to answer, and do again
		}
		said = v.Metadata.Notes
		for i, q := range slices.Backward(v.Items) {
			key := fmt.Sprint(q.ReceivedAt.UnixNano(), q.Client.Node, q.Client.Name(), q.Port, q.ID, q.Name, q.Type)
			_, known := seen[key]
			seen[key] = time.Now()
			if known || first && i >= f.limit {
				continue
			}
			if err := f.line(&q, colour); err != nil {
				return cli.ExitFailed // there is no reader
			}
		}
		// Queries this old are not returned any more.
		for key, at := range seen {
			if time.Since(at) > 2*span {
				delete(seen, key)
			}
		}
		every := followEvery
		if f.nodes.On {
			every = followNodesEvery
		}
		if !cli.WaitFor(ctx, every) {
			return cli.ExitOK
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
		return render.PrintLine(f.stdout, raw)
	case "yaml":
		if _, err := fmt.Fprintln(f.stdout, "---"); err != nil {
			return err
		}
		return render.WriteYAML(f.stdout, raw)
	}
	row := queryRow(q, q.ReceivedAt.Format("15:04:05.000"), f.wide())
	if f.nodes.On {
		row = slices.Insert(row, 1, q.Client.Node)
	}
	text := render.Printable(strings.Join(row, "  "))
	if colour && failed(q) {
		text = "\x1b[31m" + text + "\x1b[0m"
	}
	_, err = fmt.Fprintln(f.stdout, text)
	return err
}

package apiclient

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/doctor"
)

// topFlags are the flags of top.
type topFlags struct {
	*Command
	by, window, namespace string
	limit                 int
}

func newTopFlags(stdout, stderr io.Writer) *topFlags {
	f := &topFlags{Command: newCommand("top", stdout, stderr)}
	f.watchable()
	f.flags.StringVar(&f.by, "by", "", "`order`: pods by queries, misses, latency, wait, retransmits, nxdomain, errors, waste, name; names by queries, misses, nxdomain, servfail, slowest; upstreams by failures, exchanges, latency, name. latency is P99, waste NXDOMAINs for each useful answer")
	f.flags.StringVar(&f.window, "window", "", "`time` that is looked at: 10s, 1m, 5m, 1h or start; of names 1h or start")
	f.flags.StringVar(&f.namespace, "n", "", "only pods of this `namespace`")
	f.flags.IntVar(&f.limit, "limit", 20, "`number` of lines")
	return f
}

// TopHelp writes the help text of the subcommand top.
func TopHelp(w io.Writer) {
	fmt.Fprint(w, `Show the busiest clients, the most frequent names, or the upstreams.

Usage:
  localcache top [pods|names|upstreams] [flags]

Examples:
  localcache top --by wait              which pods wait for upstreams
  localcache top pods --by retransmits  which pods lose queries or replies
  localcache top names --by nxdomain    what search paths cost
  localcache top upstreams --watch      which upstream fails
  kubectl localcache top --all-nodes    the same of all nodes together

With --all-nodes upstreams are summed, with the nodes where they fail; -o wide lists them by node.
`)
	printFlags(w, newTopFlags(io.Discard, io.Discard).Command)
}

// Top runs the subcommand top and returns its exit status.
func Top(args []string, stdout, stderr io.Writer) int {
	f := newTopFlags(stdout, stderr)
	rest, status, ok := f.parse(args, 1, TopHelp)
	if !ok {
		return status
	}
	what := "pods"
	if len(rest) > 0 {
		what = rest[0]
	}
	show := map[string]func(context.Context, url.Values) error{"pods": f.pods, "names": f.names, "upstreams": f.upstreams}[what]
	if show == nil {
		return f.usage(fmt.Sprintf("top of %q: there are pods, names and upstreams", what))
	}
	if f.namespace != "" && what != "pods" {
		return f.usage("-n is for pods")
	}
	query := url.Values{"limit": {strconv.Itoa(f.limit)}}
	values := map[string]string{"limit": strconv.Itoa(f.limit)}
	for name, v := range map[string]string{"by": f.by, "window": f.window, "n": f.namespace} {
		if v != "" {
			values[name] = v
			query.Set(cmp.Or(map[string]string{"n": "namespace"}[name], name), v)
		}
	}
	path := map[string]string{"pods": "/api/v1/pods", "names": "/api/v1/top", "upstreams": "/api/v1/upstreams"}[what]
	if status, ok := f.accepted(path, values, map[string]string{"n": "namespace"}); !ok {
		return status
	}
	f.nameless = what != "pods"
	if what == "upstreams" && f.by == "" {
		query.Set("by", "failures")
	}
	return f.Run(func(ctx context.Context) error { return show(ctx, query) })
}

func (f *topFlags) pods(ctx context.Context, query url.Values) error {
	var v api.List[api.Pod]
	raw, err := f.Document(ctx, "/api/v1/pods", query, &v)
	if err != nil {
		return err
	}
	if done, err := f.Print(raw); done {
		return err
	}
	t := render.Table{Header: []string{"CLIENT", "QUERIES", "HITS", "P50", "P99", "MISS-P99", "WAIT", "NXDOMAIN", "ERRORS", "RETRANS"}}
	if f.wide() {
		t.Header = append(t.Header, "QPS", "STALE", "WASTE", "QUEUED", "WORKLOAD", "ADDRESSES", "LAST", "TOP-NAME")
	}
	for i := range v.Items {
		p := &v.Items[i]
		all := Merged(&p.Hit, &p.Miss, v.Metadata.LatencyBoundsSeconds)
		failed := p.Rcodes["servfail"] + p.Rcodes["refused"] + p.Rcodes["other_rcode"]
		row := []string{
			p.Name(), count(p.Queries), render.Percent(p.Hits, p.Queries), render.Short(all(0.5)), render.Short(all(0.99)), render.Short(p.Miss.P99Seconds),
			render.Short(p.UpstreamWaitSeconds), count(p.Rcodes["nxdomain"]), count(failed), count(p.RetransmitTotal),
		}
		if f.wide() {
			name := "-"
			if len(p.Names) > 0 {
				name = p.Names[0].Name
			}
			row = append(row, fmt.Sprintf("%.1f", p.QueriesPerSecond), count(p.Sources["stale"]), fmt.Sprintf("%.1f", p.SearchWaste), render.Short(p.QueuedSeconds),
				render.OrDash(p.Workload), render.OrDash(strings.Join(p.Addresses, ",")), render.Age(v.Metadata.GeneratedAt.Sub(p.LastSeen)), name)
		}
		if f.nodes.On {
			row = slices.Insert(row, 1, p.Node)
		}
		t.Add(failed+p.RetransmitTotal > 0, row...)
	}
	if f.nodes.On {
		t.Header = slices.Insert(t.Header, 1, "NODE")
	}
	f.table(&t, &v.Metadata, len(v.Items), "no client has asked in that time")
	return nil
}

func (f *topFlags) names(ctx context.Context, query url.Values) error {
	var v api.List[api.Name]
	raw, err := f.Document(ctx, "/api/v1/top", query, &v)
	if err != nil {
		return err
	}
	if done, err := f.Print(raw); done {
		return err
	}
	slowest, bounds := query.Get("by") == "slowest", f.wide() || f.nodes.On
	t := render.Table{Header: []string{"NAME", "COUNT"}}
	if slowest {
		t.Header[1] = "LONGEST"
	} else if bounds {
		t.Header = append(t.Header, "AT-LEAST")
	}
	for _, n := range v.Items {
		switch {
		case slowest:
			t.Add(false, n.Name, render.Short(n.Seconds))
		case bounds:
			t.Add(false, n.Name, count(n.Count), count(n.Count-min(n.Error, n.Count)))
		default:
			t.Add(false, n.Name, count(n.Count))
		}
	}
	f.table(&t, &v.Metadata, len(v.Items), "no such name was asked for in that time")
	if last := len(v.Items) - 1; f.nodes.On && !slowest && last >= 0 && v.Items[last].Count-min(v.Items[last].Error, v.Items[last].Count) < v.Metadata.Floor {
		fmt.Fprintf(f.stderr, "note: names that are not listed were counted at most %d times each\n", v.Metadata.Floor)
	}
	return nil
}

func (f *topFlags) upstreams(ctx context.Context, query url.Values) error {
	var v api.List[api.Upstream]
	raw, err := f.Document(ctx, "/api/v1/upstreams", query, &v)
	if err != nil {
		return err
	}
	if done, err := f.Print(raw); done {
		return err
	}
	t := render.Table{Header: []string{"UPSTREAM", "PROTO", "EXCHANGES", "FAILED", "FAILED%", "P50", "P99", "IN-FLIGHT", "STATE", "LAST-FAILURE"}}
	if f.wide() {
		t.Header = append(t.Header, "PER-SECOND", "SERVFAIL", "TIMEOUT", "RETRIES", "HEDGES", "CONNECTIONS", "RTT", "LAST-ANSWER", "MESSAGE")
	}
	rows := v.Items
	if f.nodes.On {
		rows = f.perNode(&t, v.Items)
	}
	for i := range rows {
		u := &rows[i]
		last, message, answer := "-", "-", "-"
		if u.LastFailure != nil {
			last = fmt.Sprintf("%s %s ago", u.LastFailure.Outcome, render.Age(v.Metadata.GeneratedAt.Sub(u.LastFailure.At)))
			if u.LastFailure.Probe {
				last = "probe " + last
			}
			message = u.LastFailure.Message
		}
		if u.LastAnswer != nil {
			answer = render.Age(v.Metadata.GeneratedAt.Sub(*u.LastAnswer))
		}
		row := []string{u.Upstream, u.Proto, count(u.Exchanges), count(u.Failures), render.Percent(u.Failures, u.Exchanges), render.Short(u.Latency.P50Seconds), render.Short(u.Latency.P99Seconds), fmt.Sprint(u.InFlight), upstreamState(u, v.Metadata.GeneratedAt), last}
		if f.wide() {
			rtt := 0.0
			for _, c := range u.Connections {
				rtt = max(rtt, c.RTTSeconds)
			}
			row = append(row, fmt.Sprintf("%.1f", u.ExchangesPerSecond), count(u.Outcomes["servfail"]), count(u.Outcomes["timeout"]), count(u.Retries-min(u.Hedges, u.Retries)), count(u.Hedges),
				fmt.Sprint(u.OpenConnections), render.Short(rtt), answer, render.OrDash(message))
		}
		switch {
		case f.nodes.On && f.wide():
			row = slices.Insert(row, 1, u.Node)
		case f.nodes.On:
			row = append(row, failedOn(u))
		}
		t.Add(u.Failures > 0 || u.FailingSince != nil, row...)
	}
	f.table(&t, &v.Metadata, len(v.Items), "no upstream is known yet")
	return nil
}

// upstreamState says whether an upstream answers: in the shown window by the thresholds of package doctor, else as far as it
// was asked or probed.
func upstreamState(u *api.Upstream, now time.Time) string {
	switch {
	case u.FailingSince != nil:
		return "failing since " + render.Age(now.Sub(*u.FailingSince))
	case doctor.Fails(u.Exchanges, u.Failures) != doctor.OK:
		return "fails"
	case u.LastAnswer != nil:
		return "ok"
	}
	return "-"
}

// perNode adds the column of nodes, and returns the rows: sums, or with all columns one for each node.
func (f *topFlags) perNode(t *render.Table, sums []api.Upstream) (rows []api.Upstream) {
	if !f.wide() {
		t.Header = append(t.Header, "FAILED-ON")
		return sums
	}
	t.Header = slices.Insert(t.Header, 1, "NODE")
	for i := range sums {
		rows = append(rows, sums[i].PerNode...)
	}
	return rows
}

// failedOn says whether an upstream fails on all nodes or on one: then the cause is mostly not the upstream.
func failedOn(u *api.Upstream) string {
	var nodes []string
	for i := range u.PerNode {
		if u.PerNode[i].Failures > 0 {
			nodes = append(nodes, u.PerNode[i].Node)
		}
	}
	switch len(nodes) {
	case 0:
		return "-"
	case 1:
		return nodes[0]
	}
	return fmt.Sprintf("%d of %d nodes", len(nodes), len(u.PerNode))
}

// table prints t, and says if it is empty or not complete.
func (a *Command) table(t *render.Table, m *api.Metadata, n int, empty string) {
	if n == 0 {
		fmt.Fprintln(a.stderr, empty)
	} else {
		t.Print(a.stdout, render.Coloured(a.stdout))
	}
	if m.Continue != "" {
		fmt.Fprintln(a.stderr, "note: there are more; --limit shows them")
	}
	a.notes(m)
}

func count(n uint64) string { return strconv.FormatUint(n, 10) }

// Merged has the quantiles of two latencies together.
func Merged(a, b *api.Latency, bounds []float64) func(q float64) float64 {
	return func(q float64) float64 { return api.QuantileOf(a, b, q, bounds) }
}

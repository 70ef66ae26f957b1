package main

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"localcache.dev/localcache/internal/api"
)

func newPodsFlags(stdout, stderr io.Writer) *asking {
	a := newAsking("pods", stdout, stderr)
	a.watchable()
	return a
}

func podsHelp(w io.Writer) {
	fmt.Fprint(w, `Show what one client asked, how long it waited, and its slow and failed queries.

Usage:
  localcache pods NAMESPACE/NAME|IP|host|~other [flags]

'localcache top pods' lists the clients. host is everything that asks from the node's own addresses, ~other
are those beyond the number that the Corefile's 'diag { clients }' tells apart. With --all-nodes a pod is found wherever it is,
and host, ~other and addresses of several nodes are shown one by one.
`)
	printFlags(w, newPodsFlags(io.Discard, io.Discard))
}

func pods(args []string, stdout, stderr io.Writer) int {
	a := newPodsFlags(stdout, stderr)
	rest, status, ok := a.parse(args, 1, podsHelp)
	if !ok {
		return status
	}
	if len(rest) == 0 {
		return a.usage("which one? NAMESPACE/NAME, an IP address, host or ~other; 'localcache top pods' lists them")
	}
	namespace, name, isPod := strings.Cut(rest[0], "/")
	if _, err := netip.ParseAddr(rest[0]); namespace == "" || isPod && (name == "" || strings.Contains(name, "/")) || err != nil && !isPod && strings.ContainsAny(rest[0], ":%?#") {
		return a.usage(fmt.Sprintf("%q is neither NAMESPACE/NAME nor an IP address", rest[0]))
	}
	return a.run(func(ctx context.Context) error { return showPod(ctx, a, rest[0]) })
}

func showPod(ctx context.Context, a *asking, name string) error {
	var v api.List[api.PodDetail]
	raw, err := a.document(ctx, "/api/v1/pods/"+name, url.Values{}, &v)
	if err != nil {
		return err
	}
	if done, err := a.print(raw); done {
		return err
	}
	if len(v.Items) != 1 && !a.nodes.on {
		return fmt.Errorf("the cache tells of %d clients instead of one: is it another version?", len(v.Items))
	}
	for i := range v.Items {
		if i > 0 {
			fmt.Fprint(a.stdout, "\n\n")
		}
		a.client(&v.Items[i], v.Metadata.GeneratedAt)
	}
	a.notes(&v.Metadata)
	return nil
}

// client shows a client.
func (a *asking) client(p *api.PodDetail, now time.Time) {
	line := func(name, value string) { fmt.Fprintf(a.stdout, "%-13s%s\n", name+":", printable(value)) }
	line("Client", p.Name())
	if p.Node != "" {
		line("Node", p.Node)
	}
	line("Addresses", orDash(strings.Join(p.Addresses, ", ")))
	if p.Workload != "" {
		line("Workload", p.Workload)
	}
	line("First seen", age(now.Sub(p.FirstSeen))+" ago")
	line("Last seen", age(now.Sub(p.LastSeen))+" ago")

	fmt.Fprintln(a.stdout)
	t := table{header: []string{"WINDOW", "QUERIES", "HITS", "HIT-P99", "MISS-P50", "MISS-P99", "WAIT", "NXDOMAIN", "SERVFAIL", "WASTE", "RETRANS"}}
	for _, w := range []string{"10s", "1m", "5m", "1h", "start"} {
		c, known := p.Windows[w]
		if !known {
			continue
		}
		t.add(false, w, count(c.Queries), percent(c.Hits, c.Queries), short(c.Hit.P99Seconds), short(c.Miss.P50Seconds), short(c.Miss.P99Seconds), short(c.UpstreamWaitSeconds),
			count(c.Rcodes["nxdomain"]), count(c.Rcodes["servfail"]), fmt.Sprintf("%.1f", c.SearchWaste), count(c.RetransmitTotal))
	}
	t.print(a.stdout, false)

	start := p.Windows["start"]
	if len(start.Retransmits) > 0 {
		fmt.Fprintln(a.stdout)
		t := table{header: []string{"RESOLVER", "CAUSE", "RETRANSMITS"}}
		for _, r := range start.Retransmits {
			t.add(true, r.Resolver, r.Cause, count(r.Count))
		}
		t.print(a.stdout, coloured(a.stdout))
	}
	if len(p.Names) > 0 {
		fmt.Fprintln(a.stdout)
		t := table{header: []string{"NAME", "COUNT"}}
		for _, n := range p.Names {
			t.add(false, n.Name, count(n.Count))
		}
		t.print(a.stdout, false)
	}
	if len(p.Recent) > 0 {
		fmt.Fprintln(a.stdout)
		t := queryTable(p.Recent, now, a.wide(), false)
		t.print(a.stdout, coloured(a.stdout))
	}
}

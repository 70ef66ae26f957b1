package apiclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/observe"
)

func newPodsFlags(stdout, stderr io.Writer) *Command {
	a := newCommand("pods", stdout, stderr)
	a.watchable()
	return a
}

// PodsHelp writes the help text of the subcommand pods.
func PodsHelp(w io.Writer) {
	fmt.Fprint(w, `Show what one client asked, how long it waited, and its slow and failed queries.

Usage:
  localcache pods NAMESPACE/NAME|IP|host|~other [flags]

'localcache top pods' lists the clients. host is everything that asks from the node's own addresses,
where pods are known; where they are not, as outside of Kubernetes, those addresses are clients like others. ~other
are those beyond the number that the Corefile's 'diag { clients }' tells apart. With --all-nodes a pod is found wherever it is,
and host, ~other and addresses of several nodes are shown one by one.
`)
	printFlags(w, newPodsFlags(io.Discard, io.Discard))
}

// Pods runs the subcommand pods and returns its exit status.
func Pods(args []string, stdout, stderr io.Writer) int {
	a := newPodsFlags(stdout, stderr)
	rest, status, ok := a.parse(args, 1, PodsHelp)
	if !ok {
		return status
	}
	if len(rest) == 0 {
		return a.usage("which one? NAMESPACE/NAME, an IP address, host or ~other; 'localcache top pods' lists them")
	}
	if err := checkClient(rest[0]); err != nil {
		return a.usage(err.Error())
	}
	return a.Run(func(ctx context.Context) error { return showPod(ctx, a, rest[0]) })
}

// checkClient returns an error unless s can be the name of a client. Words other than host and ~other may stand for
// redacted clients.
func checkClient(s string) error {
	namespace, name, isPod := strings.Cut(s, "/")
	_, err := netip.ParseAddr(s)
	isPart := func(s string) bool { return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/?#%") }
	switch {
	case err == nil && !strings.Contains(s, "%"): // no client has an address with a zone
		return nil
	case !isPod && (strings.Contains(s, ":") || strings.Trim(s, ".0123456789") == ""):
		return fmt.Errorf("%q is no IP address", s)
	case isPod && (!isPart(namespace) || !isPart(name)) || !isPod && !isPart(s):
		return fmt.Errorf("%q is neither NAMESPACE/NAME nor an IP address", s)
	}
	return nil
}

// unknownClient is the error for a client that the cache does not know, with what to do about it.
type unknownClient struct{ message, hint string }

// Error implements error.
func (e *unknownClient) Error() string { return e.message }

// whyUnknown replaces the error for an unknown client by one in the words of this program. Other errors stay as they
// are.
func (a *Command) whyUnknown(ctx context.Context, name string, err error) error {
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Reason != "NotFound" {
		return err
	}
	if a.nodes.On {
		return &unknownClient{refused.Message, "'localcache top pods --all-nodes' lists them."}
	}
	unknown := &unknownClient{name + " has not asked this node", "'localcache top pods' lists them."}
	var v api.List[api.Status]
	if _, err := a.Document(ctx, "/statusz", url.Values{}, &v); err != nil || len(v.Items) != 1 {
		return unknown // only that it is unknown matters
	}
	switch s := &v.Items[0]; {
	case s.Redact == api.RedactClients.String() && name != "host" && name != observe.Overflow && !strings.HasPrefix(name, "redacted-"):
		unknown.message = "clients are redacted here ('diag { redact clients }' in the Corefile), and " + name + " is not told from others"
		unknown.hint = "'localcache top pods' lists them by the words that stand for them."
	case !s.Pods.Known && name == "host":
		unknown.message = "which addresses are the node's own is not known here: " + s.Pods.Message
		unknown.hint = "Ask by IP address; 'localcache top pods' lists them."
	case !s.Pods.Known && strings.Contains(name, "/"):
		unknown.message = "pods are not known here: " + s.Pods.Message
		unknown.hint = "Ask by IP address; 'localcache top pods' lists them."
	}
	return unknown
}

func showPod(ctx context.Context, a *Command, name string) error {
	var v api.List[api.PodDetail]
	raw, err := a.Document(ctx, "/api/v1/pods/"+name, url.Values{}, &v)
	if err != nil {
		return a.whyUnknown(ctx, name, err)
	}
	if done, err := a.Print(raw); done {
		return err
	}
	if len(v.Items) != 1 && !a.nodes.On {
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
func (a *Command) client(p *api.PodDetail, now time.Time) {
	line := func(name, value string) { fmt.Fprintf(a.stdout, "%-13s%s\n", name+":", render.Printable(value)) }
	line("Client", p.Name())
	if p.Node != "" {
		line("Node", p.Node)
	}
	line("Addresses", render.OrDash(strings.Join(p.Addresses, ", ")))
	if p.Workload != "" {
		line("Workload", p.Workload)
	}
	line("First seen", render.Age(now.Sub(p.FirstSeen))+" ago")
	line("Last seen", render.Age(now.Sub(p.LastSeen))+" ago")

	fmt.Fprintln(a.stdout)
	t := render.Table{Header: []string{"WINDOW", "QUERIES", "HITS", "HIT-P99", "MISS-P50", "MISS-P99", "WAIT", "NXDOMAIN", "SERVFAIL", "WASTE", "RETRANS"}}
	for _, w := range []string{"10s", "1m", "5m", "1h", "start"} {
		c, known := p.Windows[w]
		if !known {
			continue
		}
		t.Add(false, w, count(c.Queries), render.Percent(c.Hits, c.Queries), render.Short(c.Hit.P99Seconds), render.Short(c.Miss.P50Seconds), render.Short(c.Miss.P99Seconds), render.Short(c.UpstreamWaitSeconds),
			count(c.Rcodes["nxdomain"]), count(c.Rcodes["servfail"]), fmt.Sprintf("%.1f", c.SearchWaste), count(c.RetransmitTotal))
	}
	t.Print(a.stdout, false)

	start := p.Windows["start"]
	if len(start.Retransmits) > 0 {
		fmt.Fprintln(a.stdout)
		t := render.Table{Header: []string{"RESOLVER", "CAUSE", "RETRANSMITS"}}
		for _, r := range start.Retransmits {
			t.Add(true, r.Resolver, r.Cause, count(r.Count))
		}
		t.Print(a.stdout, render.Coloured(a.stdout))
	}
	if len(p.Names) > 0 {
		fmt.Fprintln(a.stdout)
		t := render.Table{Header: []string{"NAME", "COUNT"}}
		for _, n := range p.Names {
			t.Add(false, n.Name, count(n.Count))
		}
		t.Print(a.stdout, false)
	}
	if len(p.Recent) > 0 {
		fmt.Fprintln(a.stdout)
		t := queryTable(p.Recent, now, a.wide(), false)
		t.Print(a.stdout, render.Coloured(a.stdout))
	}
}

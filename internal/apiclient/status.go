package apiclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
)

func newStatusFlags(stdout, stderr io.Writer) *Command {
	a := newCommand("status", stdout, stderr)
	a.watchable()
	return a
}

// StatusHelp writes the help text of the subcommand status.
func StatusHelp(w io.Writer) {
	fmt.Fprint(w, `Show whether the cache runs, what it has done in the last minutes, and where its diagnostics listen.

Usage:
  localcache status [flags]

The JSON and YAML are those of /statusz. With --all-nodes there is a line for each node, also for those that do not answer.
`)
	printFlags(w, newStatusFlags(io.Discard, io.Discard))
}

// Status runs the subcommand status and returns its exit status.
func Status(args []string, stdout, stderr io.Writer) int {
	a := newStatusFlags(stdout, stderr)
	if _, status, ok := a.parse(args, 0, StatusHelp); !ok {
		return status
	}
	show := showStatus
	if a.nodes.On {
		show = showNodes
	}
	return a.Run(func(ctx context.Context) error { return show(ctx, a) })
}

func showStatus(ctx context.Context, a *Command) error {
	var v api.List[api.Status]
	raw, err := a.Document(ctx, "/statusz", url.Values{}, &v)
	if err != nil {
		return err
	}
	if done, err := a.Print(raw); done {
		return err
	}
	var summary api.List[api.Summary]
	if _, err := a.Document(ctx, "/api/v1/summary", url.Values{}, &summary); err != nil {
		return err
	}
	if len(v.Items) != 1 || len(summary.Items) != 1 {
		return errors.New("the cache tells something else than its status: is it another version?")
	}
	s, m := &v.Items[0], &summary.Items[0]
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.stdout, "%-13s%s\n", name+":", render.Printable(fmt.Sprintf(format, args...)))
	}
	line("Version", "%s", s.Version)
	if s.Node != "" {
		line("Node", "%s", s.Node)
	}
	line("Running", "for %s, process %d", render.Age(time.Duration(s.UptimeSeconds*1e9)), s.PID)
	line("Queries", "%d since the start, %d in flight", s.Queries, s.InFlight)
	line("Last 5m", "%d queries, %s hits, %s of the misses within %s", m.Queries, render.Percent(m.Hits, m.Queries), "99%", render.Short(m.Miss.P99Seconds))
	line("Failed", "%d SERVFAIL, %d stale answers, %d retransmits", m.Rcodes["servfail"], m.Sources["stale"], m.RetransmitTotal)
	line("Upstreams", "%d exchanges, %d failed", m.UpstreamExchanges, m.UpstreamFailures)
	line("Clients", "%d of at most %d", s.Clients, s.MaxClients)
	switch {
	case !s.Pods.Known:
		line("Pods", "not known: %s", s.Pods.Message)
	case s.Pods.Message != "":
		line("Pods", "%d on this node, %s", s.Pods.Count, s.Pods.Message)
	default:
		line("Pods", "%d on this node", s.Pods.Count)
	}
	line("Slow", "from %s", render.Short(s.SlowSeconds))
	line("Redacted", "%s", s.Redact)
	line("Listening", "%s", render.OrDash(strings.Join(s.Listeners, ", ")))
	return nil
}

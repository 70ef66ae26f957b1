// Package demo runs localcache in a private lab of network namespaces, shows what it does, and checks promises about it. It is
// the program localcache-demo.
package demo

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
)

// From when on a client is said to waste queries: enough of them to matter, and more names that do not exist than
// answers that help.
const (
	wastedQueries = 100
	wastedShare   = 1.0
)

// account is what the API of a cache reports about clients and upstreams with problems.
type account struct {
	at       time.Time
	wasteful []api.Pod
	unheard  []api.Pod
	silent   []silentUpstream
	absent   []api.Name // names that do not exist, the most asked first
}

// silentUpstream is an upstream that did not answer in time.
type silentUpstream struct {
	api.Upstream
	waiting []string      // clients whose queries waited for it, sorted
	queries int           // these
	longest time.Duration // of these
	rcodes  []string      // that the clients got, sorted
}

// readAccount asks the API for all since its start.
func readAccount(ctx context.Context, remote *api.Remote) (*account, error) {
	const most = "2048"
	all := url.Values{"window": {"start"}, "limit": {most}}
	var pods api.List[api.Pod]
	var upstreams api.List[api.Upstream]
	var absent api.List[api.Name]
	var queries api.List[api.Query]
	for _, question := range []struct {
		path  string
		query url.Values
		into  any
	}{
		{"/api/v1/pods", all, &pods},
		{"/api/v1/upstreams", all, &upstreams},
		{"/api/v1/top", url.Values{"window": {"start"}, "by": {"nxdomain"}, "limit": {most}}, &absent},
		{"/api/v1/queries", url.Values{"outcome": {"timeout"}, "limit": {most}}, &queries},
	} {
		if err := remote.Get(ctx, question.path, question.query, question.into); err != nil {
			return nil, err
		}
	}
	return newAccount(pods.Metadata.GeneratedAt, pods.Items, upstreams.Items, absent.Items, queries.Items), nil
}

// newAccount judges.
func newAccount(at time.Time, pods []api.Pod, upstreams []api.Upstream, absent []api.Name, timedOut []api.Query) *account {
	a := &account{at: at, absent: absent}
	for _, p := range pods {
		if p.Rcodes["nxdomain"] >= wastedQueries && p.SearchWaste > wastedShare {
			a.wasteful = append(a.wasteful, p)
		}
		if slices.ContainsFunc(p.Retransmits, replyLost) {
			a.unheard = append(a.unheard, p)
		}
	}
	for _, u := range upstreams {
		if u.Outcomes["timeout"] == 0 {
			continue
		}
		s := silentUpstream{Upstream: u}
		clients, rcodes := map[string]bool{}, map[string]bool{}
		for _, q := range timedOut {
			if !slices.ContainsFunc(q.Exchanges, func(e api.Exchange) bool {
				return e.Upstream == u.Upstream && e.Proto == u.Proto && e.Outcome == "timeout"
			}) {
				continue
			}
			s.queries++
			s.longest = max(s.longest, time.Duration(q.DurationSeconds*float64(time.Second)))
			clients[q.Client.Name()], rcodes[q.Rcode] = true, true
		}
		s.waiting, s.rcodes = slices.Sorted(maps.Keys(clients)), slices.Sorted(maps.Keys(rcodes))
		a.silent = append(a.silent, s)
	}
	return a
}

func replyLost(r api.Retransmit) bool { return r.Cause == "reply_lost" && r.Count > 0 }

// lines are the account in sentences.
func (a *account) lines() []string {
	var lines []string
	say := func(format string, args ...any) {
		lines = append(lines, render.Printable(fmt.Sprintf(format, args...)))
	}
	for _, p := range a.wasteful {
		example := ""
		for _, n := range a.absent {
			if slices.ContainsFunc(p.Names, func(own api.Name) bool { return own.Name == n.Name }) {
				example = ", such as " + strings.TrimSuffix(n.Name, ".")
				break
			}
		}
		say("%s asks for names that do not exist: %d of its %d queries, %.1f for each useful answer%s",
			p.Name(), p.Rcodes["nxdomain"], p.Queries, p.SearchWaste, example)
	}
	for _, p := range a.unheard {
		resolvers, n := map[string]bool{}, uint64(0)
		for _, r := range p.Retransmits {
			if replyLost(r) {
				n += r.Count
				resolvers[r.Resolver] = true
			}
		}
		say("%s asked again %s for what had been answered in time: replies to it get lost (reply_lost; its resolver: %s)",
			p.Name(), times(n), strings.Join(slices.Sorted(maps.Keys(resolvers)), ", "))
	}
	for _, s := range a.silent {
		last := ""
		if f := s.LastFailure; f != nil {
			last = fmt.Sprintf(", the last time %s ago (%s)", render.Age(a.at.Sub(f.At)), f.Outcome)
		}
		say("%s over %s was silent: no answer %s out of %d%s", s.Upstream.Upstream, s.Proto, times(s.Outcomes["timeout"]), s.Exchanges, last)
		if s.queries > 0 {
			say("  %d queries of %s waited for it up to %v and got %s", s.queries, strings.Join(s.waiting, ", "), round(s.longest), strings.Join(s.rcodes, ", "))
		}
	}
	if len(lines) == 0 {
		say("nothing is wrong")
	}
	return lines
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

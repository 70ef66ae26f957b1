package doctor

import (
	"fmt"
	"time"
)

// Thresholds of the rules.
const (
	// fewFailures in a minute are no problem: one datagram in thousands is lost on a healthy network.
	fewFailures = 3
	// failureWarning and failureError are shares of an upstream's exchanges.
	failureWarning = 0.02
	failureError   = 0.5
	fewServFail    = 3
	// servFailWarning and servFailError are shares of all queries.
	servFailWarning = 0.01
	servFailError   = 0.2
	// slowAnswers is the time that one answer in ten of a slow upstream takes at least, fewAnswers the least number to judge.
	slowAnswers = 500 * time.Millisecond
	fewAnswers  = 5
	// fewRetransmits of one client in five minutes may be chance.
	fewRetransmits = 2
	// wasteful is the number of NXDOMAIN answers for each useful one that the search list of Kubernetes causes for an
	// external name, fewNXDomain the least number to judge.
	wasteful    = 3
	fewNXDomain = 50
	// slowQueue is far more than the time in the queue of a socket that is read at once, fewQueued the least number to judge.
	slowQueue = 10 * time.Millisecond
	fewQueued = 20
)

// rules is the table of rules: each returns findings about the facts, or none.
var rules = []func(*Facts) []Finding{
	slowUpstreams,
	noUpstream,
	failingUpstreams,
	servFail,
	slowlyRead,
	staleAnswers,
	retransmits,
	searchWaste,
}

// Fails reports whether an upstream with these exchanges in a minute fails, and how seriously: OK if it does not.
func Fails(exchanges, failures uint64) Severity {
	share := float64(failures) / float64(max(exchanges, 1))
	switch {
	case failures < fewFailures || share < failureWarning:
		return OK
	case share >= failureError:
		return Error
	}
	return Warning
}

func slowUpstreams(f *Facts) (all []Finding) {
	for i := range f.Upstreams {
		u := &f.Upstreams[i]
		if Fails(u.Exchanges, u.Failures) == OK && u.Exchanges-u.Failures >= fewAnswers && u.P90 >= slowAnswers {
			all = append(all, Finding{
				Code: "upstream_slow", Severity: Warning, Upstream: u, weight: u.P90.Seconds(),
				Text: fmt.Sprintf("Upstream %s %s is slow: one answer in ten takes about %s or more", u.Name, u.Proto, brief(u.P90)),
			})
		}
	}
	return all
}

func failingUpstreams(f *Facts) (all []Finding) {
	for i := range f.Upstreams {
		u := &f.Upstreams[i]
		severity := Fails(u.Exchanges, u.Failures)
		if severity == OK {
			continue
		}
		all = append(all, Finding{
			Code: "upstream_fails", Severity: severity, Upstream: u, Since: u.FailingSince, SinceAtLeast: u.FailingLonger, weight: float64(u.Failures),
			Text: fmt.Sprintf("Upstream %s %s fails: %s of %s in the last minute, mostly %s", u.Name, u.Proto, share(u.Failures, u.Exchanges), count(u.Exchanges, "exchange"), u.MostlyFailure),
		})
	}
	return all
}

// noUpstream summarizes that several upstreams fail and none answers.
func noUpstream(f *Facts) []Finding {
	var exchanges, failures uint64
	for _, u := range f.Upstreams {
		exchanges, failures = exchanges+u.Exchanges, failures+u.Failures
	}
	failing := failingUpstreams(f)
	if len(failing) < 2 || failures < exchanges {
		return nil
	}
	v := Finding{
		Code: "no_upstream", Severity: Error, weight: float64(exchanges) + 1,
		Text: fmt.Sprintf("No upstream answers: all of %s in the last minute failed", count(exchanges, "exchange")),
		Hint: "can this node reach them? 'localcache top upstreams' has the errors",
	}
	for _, u := range failing {
		if u.Since != nil && (v.Since == nil || u.Since.Before(*v.Since)) {
			v.Since = u.Since
		}
		v.SinceAtLeast = v.SinceAtLeast || u.SinceAtLeast
	}
	return []Finding{v}
}

func servFail(f *Facts) []Finding {
	t := &f.Traffic
	ratio := float64(t.ServFail) / float64(max(t.Queries, 1))
	if t.ServFail < fewServFail || ratio < servFailWarning {
		return nil
	}
	severity := Warning
	if ratio >= servFailError {
		severity = Error
	}
	return []Finding{{
		Code: "servfail", Severity: severity, weight: ratio,
		Text: fmt.Sprintf("Clients get SERVFAIL: %s of %s in the last minute", share(t.ServFail, t.Queries), count(t.Queries, "query")),
	}}
}

func slowlyRead(f *Facts) []Finding {
	t := &f.Traffic
	if t.Queued < fewQueued || t.QueuedP99 < slowQueue {
		return nil
	}
	return []Finding{{
		Code: "queue", Severity: Warning, weight: t.QueuedP99.Seconds(),
		Text: fmt.Sprintf("Queries wait to be read: one in a hundred for about %s or more", brief(t.QueuedP99)),
		Hint: "localcache lacks processor time: look at its CPU limit and at the node's load",
	}}
}

func staleAnswers(f *Facts) []Finding {
	if f.Traffic.Stale == 0 {
		return nil
	}
	return []Finding{{
		Code: "stale", Severity: Info,
		Text: count(f.Traffic.Stale, "query") + " in the last minute got an answer past its TTL",
	}}
}

func retransmits(f *Facts) []Finding {
	if f.Clients == nil {
		return retransmitsOf("clients", true, nil, &f.AllClients)
	}
	var all []Finding
	for i := range f.Clients {
		c := &f.Clients[i]
		all = append(all, retransmitsOf(c.Called, c.Plural, c, &c.Retransmits)...)
	}
	return heaviest(all)
}

// retransmitsOf returns findings about the repeated queries of one client, or of all, which are called so in the text.
func retransmitsOf(called string, plural bool, client *Client, r *Retransmits) (all []Finding) {
	repeat := " repeats queries: "
	if plural {
		repeat = " repeat queries: "
	}
	for _, x := range []struct {
		code, text, hint string
		Repeated
	}{
		{"retransmits_slow_upstream", "the first had no answer in time", "an upstream was slower than the resolver waits", r.SlowUpstream},
		{"retransmits_reply_lost", "replies are lost", "they were answered in time: look at the way back, conntrack and network policies", r.ReplyLost},
		{"retransmits_query_lost", "some are lost on the way here", "only one of an A/AAAA pair came: look at conntrack (insert_failed) and at the pod's network", r.QueryLost},
	} {
		if x.Count < fewRetransmits {
			continue
		}
		text := sentence(called) + repeat + x.text + " (" + count(x.Count, "time") + " in 5 minutes"
		if x.Resolver != "" {
			text += ", " + x.Resolver
		}
		all = append(all, Finding{Code: x.code, Severity: Warning, Client: client, Hint: x.hint, Text: text + ")", weight: float64(x.Count)})
	}
	return all
}

func searchWaste(f *Facts) (all []Finding) {
	for i := range f.Clients {
		c := &f.Clients[i]
		if c.NXDomain < fewNXDomain || c.SearchWaste < wasteful {
			continue
		}
		all = append(all, Finding{
			Code: "search_waste", Severity: Info, Client: c, weight: float64(c.NXDomain),
			Text: fmt.Sprintf("%s asks for names that do not exist: %s of %s in the last minute", sentence(c.Called), share(c.NXDomain, c.Queries), count(c.Queries, "query")),
			Hint: "mostly the search list: write external names with a dot at the end, or set ndots in the pod's dnsConfig",
		})
	}
	return heaviest(all)
}

// calm returns the finding for the case that nothing is wrong.
func calm(t *Traffic) Finding {
	v := Finding{Severity: OK}
	switch {
	case t.Ever == 0:
		v.Code, v.Text = "no_query_yet", "Ready: no query has come yet"
		v.Hint = "do the pods' resolv.conf and the Corefile's 'bind' name the same address?"
	case t.Queries == 0:
		v.Code, v.Text = "no_query", "Quiet: no query came in the last minute"
	default:
		perSecond := float64(t.Queries) / max(t.Length.Seconds(), 1)
		v.Code, v.Text = "healthy", fmt.Sprintf("Healthy: %s, %s from memory", rate(perSecond), share(t.Hits, t.Queries))
	}
	return v
}

// sameRun is the longest time between two failures of the same run.
const sameRun = 90 * time.Second

// FailureRun returns when the latest run of failures began. ends are the ends of the remembered failures, newest first, and
// forgotten is true if older ones are not among them. longer is true if the run may have begun before. Failed health checks
// belong to the failures: they show an outage while no client asks.
func FailureRun(ends []time.Time, forgotten bool) (since *time.Time, longer bool) {
	for i := range ends {
		if since != nil && since.Sub(ends[i]) > sameRun {
			return since, false
		}
		since = &ends[i]
	}
	return since, forgotten
}

package api

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// Finding is a sentence about what the numbers mean.
type Finding struct {
	Code     string `json:"code"`
	Severity string `json:"severity"` // ok, info, warning, error
	Text     string `json:"text"`
	Hint     string `json:"hint,omitempty"` // what to look at next
	// Since is when it began, as far back as it is remembered: SinceAtLeast says that it may have begun before.
	Since        *time.Time `json:"since,omitempty"`
	SinceAtLeast bool       `json:"sinceAtLeast,omitempty"`
	// What it is about, if it is about one of them.
	Upstream string  `json:"upstream,omitempty"`
	Proto    string  `json:"proto,omitempty"`
	Client   *Client `json:"client,omitempty"`

	weight float64 // among those of the same severity
}

const (
	severityOK      = "ok"
	severityInfo    = "info"
	severityWarning = "warning"
	severityError   = "error"
)

var severities = []string{severityError, severityWarning, severityInfo, severityOK}

const (
	// Findings are about the last minute, those on retransmits about the last five: these are rare, because a
	// resolver waits for seconds before it asks again.
	findingWindow    = observe.Last1m
	retransmitWindow = observe.Last5m
	// fewFailures are no finding: one datagram in thousands is lost on a network that is well.
	fewFailures  = 3
	failureShare = 0.02 // of exchanges, from which on an upstream is said to fail
	failureMost  = 0.5  // from which on it is an error
	servfailFew  = 3
	servfailMin  = 0.01
	servfailMost = 0.2
	slowAnswers  = 500 * time.Millisecond // what one answer in ten takes at least
	slowFew      = 5
	// fewRetransmits of one client may be chance.
	fewRetransmits = 2
	// A search list of Kubernetes costs three NXDOMAINs for an external name.
	wasteMin = 3
	wasteFew = 50 // NXDOMAINs
	// queueSlow is far more than a socket that is read at once has.
	queueSlow = 10 * time.Millisecond
	queueFew  = 20
	// sameRun is how near failures are that belong together.
	sameRun = 90 * time.Second
	// maxFindings of each kind, and clientFindings of those about clients.
	maxFindings    = 8
	clientFindings = 3
)

// findings judges a snapshot. names tells whether clients may be named.
func (s *Server) findings(v *snapshot, askers []asker, names bool) []Finding {
	all := upstreamFindings(v.upstreams)
	all = append(all, trafficFindings(v.queries)...)
	if names {
		all = append(all, clientFindingsOf(askers)...)
	} else {
		all = append(all, retransmitFindings("clients", nil, &v.queries.Total[retransmitWindow])...)
	}
	if !slices.ContainsFunc(all, func(v Finding) bool { return v.Severity == severityWarning || v.Severity == severityError }) {
		all = append(all, calm(v.queries))
	}
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(rank(&a), rank(&b)), cmp.Compare(b.weight, a.weight))
	})
	return all[:min(len(all), maxFindings)]
}

// rank puts what went wrong first, then that nothing did, then remarks.
func rank(v *Finding) int {
	if v.Severity == severityOK {
		return 2
	}
	return []int{0, 1, 3}[slices.Index(severities, v.Severity)]
}

// calm is the finding where nothing is wrong.
func calm(q *observe.QueriesSnapshot) Finding {
	c := &q.Total[findingWindow]
	if c.Queries() == 0 {
		if q.Total[observe.SinceStart].Queries() == 0 {
			return Finding{Code: "no_query_yet", Severity: severityOK, Text: "Ready: no query has come yet", Hint: "do the pods' resolv.conf and the Corefile's 'bind' name the same address?"}
		}
		return Finding{Code: "no_query", Severity: severityOK, Text: "Quiet: no query came in the last minute"}
	}
	seconds := max(q.Coverage[findingWindow].Seconds(), 1)
	return Finding{Code: "healthy", Severity: severityOK, Text: fmt.Sprintf("Healthy: %s, %s from memory", rate(float64(c.Queries())/seconds), share(c.Hits(), c.Queries()))}
}

func upstreamFindings(upstreams []observe.UpstreamSnapshot) (all []Finding) {
	var failing []Finding
	var exchanges, answers uint64
	for i := range upstreams {
		u, c := &upstreams[i], &upstreams[i].Windows[findingWindow]
		exchanges, answers = exchanges+c.Exchanges(), answers+c.Answers()
		name := u.Upstream + " " + u.Proto.String()
		ratio := float64(c.Failures()) / float64(max(c.Exchanges(), 1))
		if c.Failures() >= fewFailures && ratio >= failureShare {
			severity := severityWarning
			if ratio >= failureMost {
				severity = severityError
			}
			since, more := failingSince(u)
			failing = append(failing, Finding{
				Code: "upstream_fails", Severity: severity, Upstream: u.Upstream, Proto: u.Proto.String(), Since: since, SinceAtLeast: more, weight: float64(c.Failures()),
				Text: fmt.Sprintf("Upstream %s fails: %s of %s in the last minute, mostly %s", name, share(c.Failures(), c.Exchanges()), count(c.Exchanges(), "exchange"), mostly(c)),
			})
			continue
		}
		if p90 := c.Latency.Quantile(0.9); c.Answers() >= slowFew && p90 >= slowAnswers {
			all = append(all, Finding{
				Code: "upstream_slow", Severity: severityWarning, Upstream: u.Upstream, Proto: u.Proto.String(), weight: p90.Seconds(),
				Text: fmt.Sprintf("Upstream %s is slow: one answer in ten takes about %s or more", name, brief(p90)),
			})
		}
	}
	if len(failing) > 1 && answers == 0 {
		first := failing[0]
		for i := range failing {
			if at := failing[i].Since; at != nil && (first.Since == nil || at.Before(*first.Since)) {
				first.Since = at
			}
			first.SinceAtLeast = first.SinceAtLeast || failing[i].SinceAtLeast
		}
		all = append(all, Finding{
			Code: "no_upstream", Severity: severityError, Since: first.Since, SinceAtLeast: first.SinceAtLeast, weight: float64(exchanges) + 1,
			Text: fmt.Sprintf("No upstream answers: all of %s in the last minute failed", count(exchanges, "exchange")),
			Hint: "can this node reach them? 'localcache top upstreams' has the errors",
		})
	}
	return append(all, failing...)
}

// mostly is the failure that is the most frequent one.
func mostly(c *observe.UpstreamCounts) string {
	most := observe.Timeout
	for o, n := range c.Outcomes {
		if outcome := observe.Outcome(o); !outcome.Answer() && n > c.Outcomes[most] {
			most = outcome
		}
	}
	return strings.ReplaceAll(most.String(), "_", " ")
}

// failingSince is when the outage began or, of an upstream that answers now and then, the run of failures that the newest
// belongs to. more tells that failures before it have been forgotten. Health checks count: they fail while nobody asks.
func failingSince(u *observe.UpstreamSnapshot) (since *time.Time, more bool) {
	if !u.FailingSince.IsZero() {
		return &u.FailingSince, false
	}
	newestFirst := u.Failures
	for i := range newestFirst {
		at := newestFirst[i].Start.Add(newestFirst[i].Duration).Round(0)
		if since != nil && since.Sub(at) > sameRun {
			return since, false
		}
		since = &at
	}
	return since, len(newestFirst) >= observe.RecentFailures
}

func trafficFindings(q *observe.QueriesSnapshot) (all []Finding) {
	c := &q.Total[findingWindow]
	n, failed := c.Queries(), c.Rcodes[observe.ServFail]
	if ratio := float64(failed) / float64(max(n, 1)); failed >= servfailFew && ratio >= servfailMin {
		severity := severityWarning
		if ratio >= servfailMost {
			severity = severityError
		}
		all = append(all, Finding{Code: "servfail", Severity: severity, weight: ratio, Text: fmt.Sprintf("Clients get SERVFAIL: %s of %s in the last minute", share(failed, n), count(n, "query"))})
	}
	if waited := &q.Queued[findingWindow]; waited.Count() >= queueFew && waited.Quantile(0.99) >= queueSlow {
		all = append(all, Finding{
			Code: "queue", Severity: severityWarning, weight: waited.Quantile(0.99).Seconds(),
			Text: fmt.Sprintf("Queries wait to be read: one in a hundred for about %s or more", brief(waited.Quantile(0.99))),
			Hint: "localcache lacks processor time: look at its CPU limit and at the node's load",
		})
	}
	if stale := c.Sources[observe.FromStale]; stale > 0 {
		all = append(all, Finding{Code: "stale", Severity: severityInfo, Text: fmt.Sprintf("%s in the last minute got an answer past its TTL", sentence(count(stale, "query")))})
	}
	return all
}

// clientFindingsOf are the findings about single clients.
func clientFindingsOf(askers []asker) (all []Finding) {
	var wasteful []Finding
	for i := range askers {
		a := &askers[i]
		all = append(all, retransmitFindings(a.called(), &a.Client, &a.seen.Windows[retransmitWindow])...)
		c := &a.seen.Windows[findingWindow]
		if missing := c.Rcodes[observe.NXDomain]; missing >= wasteFew && c.SearchWaste() >= wasteMin {
			wasteful = append(wasteful, Finding{
				Code: "search_waste", Severity: severityInfo, Client: &a.Client, weight: float64(missing),
				Text: fmt.Sprintf("%s asks for names that do not exist: %s of %s in the last minute", sentence(a.called()), share(missing, c.Queries()), count(c.Queries(), "query")),
				Hint: "mostly the search list: write external names with a dot at the end, or set ndots in the pod's dnsConfig",
			})
		}
	}
	return append(heaviest(all), heaviest(wasteful)...)
}

func heaviest(all []Finding) []Finding {
	slices.SortStableFunc(all, func(a, b Finding) int { return cmp.Compare(b.weight, a.weight) })
	return all[:min(len(all), clientFindings)]
}

// called is how a sentence names the client.
func (a *asker) called() string {
	switch {
	case a.Overflow:
		return "the other clients"
	case a.Host:
		return "the node itself"
	case a.PodName != "":
		return "pod " + a.Name()
	}
	return "client " + a.Name()
}

// retransmitFindings are about what one client, or all of them, had to ask again.
func retransmitFindings(who string, client *Client, c *observe.Counts) (all []Finding) {
	for cause := range observe.NumCauses {
		var n uint64
		by := observe.UnknownResolver
		for r := range c.Retransmits {
			n += c.Retransmits[r][cause]
			if c.Retransmits[r][cause] > c.Retransmits[by][cause] {
				by = observe.Resolver(r)
			}
		}
		if n < fewRetransmits {
			continue
		}
		v := Finding{Code: "retransmits_" + observe.Cause(cause).String(), Severity: severityWarning, Client: client, weight: float64(n)}
		verb := "repeats"
		if strings.HasSuffix(who, "clients") {
			verb = "repeat"
		}
		v.Text = fmt.Sprintf("%s %s queries: ", sentence(who), verb)
		switch observe.Cause(cause) {
		case observe.ReplyLost:
			v.Text += "replies are lost"
			v.Hint = "they were answered in time: look at the way back, conntrack and network policies"
		case observe.QueryLost:
			v.Text += "some are lost on the way here"
			v.Hint = "only one of an A/AAAA pair came: look at conntrack (insert_failed) and at the pod's network"
		default:
			v.Text += "the first had no answer in time"
			v.Hint = "an upstream was slower than the resolver waits"
		}
		v.Text += fmt.Sprintf(" (%s in 5 minutes", count(n, "time"))
		if by != observe.UnknownResolver {
			v.Text += ", " + by.String()
		}
		v.Text += ")"
		all = append(all, v)
	}
	return all
}

// sentence begins with a capital letter.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// count is a number and what it counts.
func count(n uint64, what string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(what, "y"):
		what = strings.TrimSuffix(what, "y") + "ies"
	default:
		what += "s"
	}
	return grouped(n) + " " + what
}

// grouped writes a number with commas: 1,234,567.
func grouped(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func rate(perSecond float64) string {
	if perSecond < 9.95 {
		return strconv.FormatFloat(perSecond, 'f', 1, 64) + " queries/s"
	}
	return grouped(uint64(perSecond+0.5)) + " queries/s"
}

// share is part in percent of whole. Only all is 100 %, and only nothing is 0 %.
func share(part, whole uint64) string {
	if whole == 0 {
		return "0 %"
	}
	percent := 100 * float64(part) / float64(whole)
	switch {
	case part == 0 || part == whole:
		return fmt.Sprintf("%.0f %%", percent)
	case percent < 0.1:
		return "under 0.1 %"
	case percent < 10:
		return fmt.Sprintf("%.1f %%", percent)
	case percent > 99:
		return fmt.Sprintf("%.1f %%", min(percent, 99.9))
	}
	return fmt.Sprintf("%.0f %%", percent)
}

// brief is a duration with two digits.
func brief(d time.Duration) string {
	switch {
	case d >= 9950*time.Millisecond:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d ms", d.Milliseconds())
}

package kube

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// sums are the counts of all counters of a cache during a fault, by class of names.
type sums struct {
	classes map[string]*sum
	order   []string
	details []string
}

type sum struct {
	queries, unanswered, inFlight, stalled, errors, again int
	gap                                                   time.Duration
}

func newSums() *sums { return &sums{classes: make(map[string]*sum)} }

// add adds one counter's counts. Queries that were sent so shortly before a death that they may have been with
// the process are counted apart.
func (s *sums) add(counts []count, deaths died, node string) {
	for _, c := range counts {
		if s.classes[c.Names] == nil {
			s.classes[c.Names] = new(sum)
			s.order = append(s.order, c.Names)
		}
		one := s.classes[c.Names]
		one.queries += c.Queries
		one.errors += c.Errors
		one.again += c.Again
		one.stalled += c.Stalled
		one.gap = max(one.gap, time.Duration(c.Gap))
		lost := 0
		var first, last int64
		for _, at := range c.UnansweredAt {
			d, killed := deaths[node]
			if killed && at > d.since.Add(-time.Second).UnixNano() && at < d.until.UnixNano() {
				one.inFlight++
				continue
			}
			if lost++; first == 0 {
				first = at
			}
			last = at
		}
		// UnansweredAt is bounded.
		lost += c.Unanswered - len(c.UnansweredAt)
		one.unanswered += lost
		if lost > 0 || c.Errors > 0 {
			detail := fmt.Sprintf("%s, %s, %s: %d unanswered, %d errors of %d", node, c.Way, c.Names, lost, c.Errors, c.Queries)
			if lost > 0 && first != 0 {
				detail += fmt.Sprintf("; sent from %s until %s", clock(first), clock(last))
			}
			if d, killed := deaths[node]; killed {
				detail += fmt.Sprintf("; killed between %s and %s", clock(d.since.UnixNano()), clock(d.until.UnixNano()))
			}
			s.details = append(s.details, detail)
		}
	}
}

func clock(ns int64) string { return time.Unix(0, ns).Format("15:04:05.000") }

// judge fails the test where a promise was broken, or where the fault did nothing.
func (s *sums) judge(t *testing.T, f fault, cache string) {
	t.Helper()
	failures := 0
	for names, one := range s.classes {
		if one.queries == 0 {
			t.Errorf("%s was asked for no names that are %s", cache, names)
		}
		failures += one.unanswered + one.inFlight + one.stalled + one.errors
		if cache == ours && f.promised && strings.HasPrefix(names, "internal") && one.unanswered+one.errors > 0 {
			t.Errorf("%s: of %d queries for names that are %s, %d were not answered and %d with an error", f.name, one.queries, names, one.unanswered, one.errors)
		}
	}
	if cache == plain && f.hurts && failures == 0 {
		t.Errorf("%s: the plain CoreDNS lost nothing, so the fault was none", f.name)
	}
	if cache == ours || f.name == "none" {
		for _, d := range s.details {
			t.Logf("%s: %s", cache, d)
		}
	}
}

package lab

import (
	"fmt"
	"slices"
	"time"
)

// Samples are the queries of a stream in the order of sending.
type Samples []Sample

// SentAfter returns the queries that were sent at t or later.
func (ss Samples) SentAfter(t time.Time) Samples {
	i, _ := slices.BinarySearchFunc(ss, t, func(s Sample, t time.Time) int { return s.Sent.Compare(t) })
	return ss[i:]
}

// SentBefore returns the queries that were sent before t.
func (ss Samples) SentBefore(t time.Time) Samples { return ss[:len(ss)-len(ss.SentAfter(t))] }

// InFlight returns the queries that were under way at t: sent before, answered later or never. Queries lost within
// grace before t cannot be told from queries lost earlier, so only losses sent in the last grace before t count as in
// flight.
func (ss Samples) InFlight(t time.Time, grace time.Duration) Samples {
	var under Samples
	for _, s := range ss.SentBefore(t).SentAfter(t.Add(-grace)) {
		if s.Lost() || s.Answered.After(t) {
			under = append(under, s)
		}
	}
	return under
}

// Lost returns the queries without an answer.
func (ss Samples) Lost() Samples {
	var lost Samples
	for _, s := range ss {
		if s.Lost() {
			lost = append(lost, s)
		}
	}
	return lost
}

// Rcodes counts the answers by response code.
func (ss Samples) Rcodes() map[int]int {
	counts := map[int]int{}
	for _, s := range ss {
		if !s.Lost() {
			counts[s.Rcode]++
		}
	}
	return counts
}

// Quantile returns the time within which a share q (0 to 1) of the answered queries was answered; 0 without any.
func (ss Samples) Quantile(q float64) time.Duration {
	var took []time.Duration
	for _, s := range ss {
		if !s.Lost() {
			took = append(took, s.Answered.Sub(s.Sent))
		}
	}
	if len(took) == 0 {
		return 0
	}
	slices.Sort(took)
	return took[min(int(q*float64(len(took))), len(took)-1)]
}

// String sums the samples up in a line, with the first loss.
func (ss Samples) String() string {
	lost := ss.Lost()
	text := fmt.Sprintf("%d sent, %d lost", len(ss), len(lost))
	if len(ss) > 0 {
		text += fmt.Sprintf(", median %v, 99 %% within %v", ss.Quantile(0.5).Round(time.Microsecond), ss.Quantile(0.99).Round(time.Microsecond))
	}
	if len(lost) > 0 {
		text += fmt.Sprintf("; first lost %s, %v after the first query", lost[0].Name, lost[0].Sent.Sub(ss[0].Sent).Round(time.Millisecond))
		if lost[0].Err != nil {
			text += ": " + lost[0].Err.Error()
		}
	}
	return text
}

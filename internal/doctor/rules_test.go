package doctor

import (
	"slices"
	"testing"
	"time"
)

// TestRules judges literal facts: each rule at its thresholds.
func TestRules(t *testing.T) {
	since := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	earlier := since.Add(-time.Minute)
	busy := Traffic{Ever: 1000, Length: 90 * time.Second, Queries: 900, Hits: 450}
	with := func(change func(*Traffic)) Traffic {
		busy := busy
		change(&busy)
		return busy
	}
	const healthy = "ok healthy Healthy: 10 queries/s, 50 % from memory"
	for name, tt := range map[string]struct {
		facts Facts
		want  []string // severity, code and text
	}{
		"no query yet": {Facts{}, []string{"ok no_query_yet Ready: no query has come yet"}},
		"no query":     {Facts{Traffic: Traffic{Ever: 1}}, []string{"ok no_query Quiet: no query came in the last minute"}},
		"healthy":      {Facts{Traffic: busy}, []string{healthy}},
		"two failures are no problem": {
			Facts{Traffic: busy, Upstreams: []Upstream{{Name: "a", Proto: "udp", Exchanges: 2, Failures: 2}}}, []string{healthy},
		},
		"less than one in fifty is no problem": {
			Facts{Traffic: busy, Upstreams: []Upstream{{Name: "a", Proto: "udp", Exchanges: 151, Failures: 3}}}, []string{healthy},
		},
		"some exchanges fail": {
			Facts{Traffic: busy, Upstreams: []Upstream{{Name: "a", Proto: "udp", Exchanges: 150, Failures: 3, MostlyFailure: "timeout"}}},
			[]string{"warning upstream_fails Upstream a udp fails: 2.0 % of 150 exchanges in the last minute, mostly timeout"},
		},
		"half of the exchanges fail, slow or not": {
			Facts{Traffic: busy, Upstreams: []Upstream{{Name: "a", Proto: "udp", Exchanges: 12, Failures: 6, MostlyFailure: "reset", P90: time.Second}}},
			[]string{"error upstream_fails Upstream a udp fails: 50 % of 12 exchanges in the last minute, mostly reset"},
		},
		"no upstream answers, the worst one first": {
			Facts{Traffic: busy, Upstreams: []Upstream{
				{Name: "a", Proto: "udp", Exchanges: 3, Failures: 3, MostlyFailure: "timeout", FailingSince: &since},
				{Name: "b", Proto: "tcp", Exchanges: 4, Failures: 4, MostlyFailure: "reset", FailingSince: &earlier},
			}},
			[]string{
				"error no_upstream No upstream answers: all of 7 exchanges in the last minute failed",
				"error upstream_fails Upstream b tcp fails: 100 % of 4 exchanges in the last minute, mostly reset",
				"error upstream_fails Upstream a udp fails: 100 % of 3 exchanges in the last minute, mostly timeout",
			},
		},
		"slow answers": {
			Facts{Traffic: busy, Upstreams: []Upstream{
				{Name: "a", Proto: "udp", Exchanges: 5, P90: 500 * time.Millisecond},
				{Name: "b", Proto: "udp", Exchanges: 4, P90: time.Second},
				{Name: "c", Proto: "udp", Exchanges: 5, P90: 499 * time.Millisecond},
			}},
			[]string{"warning upstream_slow Upstream a udp is slow: one answer in ten takes about 500 ms or more"},
		},
		"SERVFAIL for few":  {Facts{Traffic: with(func(t *Traffic) { t.ServFail = 8 })}, []string{healthy}},
		"SERVFAIL for some": {Facts{Traffic: with(func(t *Traffic) { t.ServFail = 9 })}, []string{"warning servfail Clients get SERVFAIL: 1.0 % of 900 queries in the last minute"}},
		"SERVFAIL for many": {Facts{Traffic: with(func(t *Traffic) { t.ServFail = 180 })}, []string{"error servfail Clients get SERVFAIL: 20 % of 900 queries in the last minute"}},
		"a full queue": {
			Facts{Traffic: with(func(t *Traffic) { t.Queued, t.QueuedP99 = 20, 10*time.Millisecond })},
			[]string{"warning queue Queries wait to be read: one in a hundred for about 10 ms or more"},
		},
		"a full queue, but few queries": {Facts{Traffic: with(func(t *Traffic) { t.Queued, t.QueuedP99 = 19, time.Second })}, []string{healthy}},
		"stale answers": {
			Facts{Traffic: with(func(t *Traffic) { t.Stale = 2 })},
			[]string{healthy, "info stale 2 queries in the last minute got an answer past its TTL"},
		},
		"each cause of retransmits": {
			Facts{Traffic: busy, Clients: []Client{{Called: "pod a/b", Retransmits: Retransmits{
				SlowUpstream: Repeated{4, "glibc"}, ReplyLost: Repeated{3, "musl"}, QueryLost: Repeated{2, ""},
			}}}},
			[]string{
				"warning retransmits_slow_upstream Pod a/b repeats queries: the first had no answer in time (4 times in 5 minutes, glibc)",
				"warning retransmits_reply_lost Pod a/b repeats queries: replies are lost (3 times in 5 minutes, musl)",
				"warning retransmits_query_lost Pod a/b repeats queries: some are lost on the way here (2 times in 5 minutes)",
			},
		},
		"one retransmit may be chance": {Facts{Traffic: busy, Clients: []Client{{Called: "pod a/b", Retransmits: Retransmits{ReplyLost: Repeated{1, ""}}}}}, []string{healthy}},
		"all clients where names are hidden": {
			Facts{Traffic: busy, AllClients: Retransmits{ReplyLost: Repeated{2, ""}}},
			[]string{"warning retransmits_reply_lost Clients repeat queries: replies are lost (2 times in 5 minutes)"},
		},
		"all clients do not count where names are shown": {
			Facts{Traffic: busy, Clients: []Client{}, AllClients: Retransmits{ReplyLost: Repeated{2, ""}}}, []string{healthy},
		},
		"search list": {
			Facts{Traffic: busy, Clients: []Client{
				{Called: "pod a/b", Queries: 80, NXDomain: 60, SearchWaste: 3},
				{Called: "pod a/c", Queries: 80, NXDomain: 49, SearchWaste: 9},
				{Called: "pod a/d", Queries: 800, NXDomain: 60, SearchWaste: 2.9},
			}},
			[]string{healthy, "info search_waste Pod a/b asks for names that do not exist: 75 % of 80 queries in the last minute"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, f := range Judge(&tt.facts) {
				got = append(got, string(f.Severity)+" "+f.Code+" "+f.Text)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestJudgeIsBounded: at most three findings of a rule about clients, the heaviest, and eight in all.
func TestJudgeIsBounded(t *testing.T) {
	var f Facts
	for i := range 20 {
		f.Upstreams = append(f.Upstreams, Upstream{Name: "a", Exchanges: 10, Failures: 9})
		f.Clients = append(f.Clients, Client{ID: i, Called: "x", Retransmits: Retransmits{ReplyLost: Repeated{Count: uint64(i)}}})
	}
	if got := Judge(&f); len(got) != maxFindings {
		t.Errorf("%d findings", len(got))
	}
	f.Upstreams = nil
	got := Judge(&f)
	if len(got) != 3 || got[0].Client.ID != 19 || got[1].Client.ID != 18 || got[2].Client.ID != 17 {
		t.Errorf("got %+v", got)
	}
}

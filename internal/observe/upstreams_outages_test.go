package observe

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// TestOutage: health checks do not push failures of clients out, and it stays known when the outage began.
func TestOutage(t *testing.T) {
	u := newUpstreams(0, epoch)
	sink := u.Sink("192.0.2.1:53", UDP)
	end := func(at int, outcome Outcome, probe bool) {
		sink.Begin()
		sink.End(&Exchange{Start: epoch.Add(time.Duration(at) * time.Second), Duration: time.Second, Outcome: outcome, Probe: probe, Err: fmt.Sprint(at)})
	}
	check := func(what string, since int, want ...string) {
		t.Helper()
		s := u.snapshot(epoch.Add(time.Hour))[0]
		var got []string
		for i := range s.Failures {
			got = append(got, s.Failures[i].Err)
		}
		wantSince := time.Time{}
		if since > 0 {
			wantSince = epoch.Add(time.Duration(since+1) * time.Second)
		}
		if !s.FailingSince.Equal(wantSince) || !slices.Equal(got, want) {
			t.Errorf("%s: failing since %s with %v, want %s with %v", what, s.FailingSince, got, wantSince, want)
		}
	}
	end(1, NoError, false)
	check("answers", 0)
	end(10, Timeout, false)
	for i := range 100 {
		end(11+i, Timeout, true)
	}
	end(200, Timeout, false)
	check("down", 10, "200", "110", "11", "10")
	end(300, ServFail, true)
	check("answers a probe", 0, "200", "110", "11", "10")
	for outage := range 2 {
		for i := range 5 {
			end(400+100*outage+i, Reset, true)
		}
		check("down again", 400+100*outage, [][]string{{"404", "400", "200", "110", "11", "10"}, {"504", "500", "404", "400", "200", "10"}}[outage]...)
		end(450+100*outage, NoError, false)
	}
}

// TestLateFailure checks that a failure of an exchange from before the last answer does not start an outage.
func TestLateFailure(t *testing.T) {
	u := newUpstreams(0, epoch)
	sink := u.Sink("192.0.2.1:53", UDP)
	for _, e := range []Exchange{
		{Start: epoch.Add(time.Second), Duration: time.Millisecond},
		{Start: epoch, Duration: 2 * time.Second, Outcome: Timeout},
	} {
		sink.Begin()
		sink.End(&e)
	}
	if s := u.snapshot(epoch.Add(time.Hour))[0]; !s.FailingSince.IsZero() || len(s.Failures) != 1 {
		t.Errorf("failing since %s, %d failures", s.FailingSince, len(s.Failures))
	}
}

// TestMergedOutages checks that the earliest start of the nodes counts, and that clients' failures stay beside health
// checks of many nodes.
func TestMergedOutages(t *testing.T) {
	var nodes [][]UpstreamSnapshot
	for n := range 40 {
		u := newUpstreams(0, epoch)
		sink := u.Sink("192.0.2.1:53", UDP)
		for i := range 3 {
			sink.Begin()
			sink.End(&Exchange{Start: epoch.Add(time.Duration(100+n-50*min(n%2, 1)+i) * time.Second), Outcome: Outcome(int(Timeout) * min(n, 1)), Probe: i > 0})
		}
		nodes = append(nodes, u.snapshot(epoch.Add(time.Hour)))
	}
	s := MergeUpstreams(nodes...)[0]
	if !s.FailingSince.Equal(epoch.Add(51*time.Second)) || len(s.Failures) != RecentFailures+RecentProbes {
		t.Errorf("failing since %s, %d failures", s.FailingSince, len(s.Failures))
	}
}

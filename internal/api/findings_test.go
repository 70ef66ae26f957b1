package api

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

func observeClient(i int) netip.AddrPort { return netip.AddrPortFrom(podAddr(i), 40000) }

// scene is a server with traffic made by a test.
type scene struct {
	*Server
	now time.Time
	u   *observe.Upstreams
	q   *observe.Queries
}

func newScene(t *testing.T) *scene {
	q, u := observe.NewQueries(observe.QueriesOptions{Clients: 64}), observe.NewUpstreams(0)
	s := New(Options{Queries: q, Upstreams: u, Pods: directory()})
	t.Cleanup(s.Close)
	return &scene{s, time.Now(), u, q}
}

func (s *scene) findings(names bool) []Finding {
	// Some seconds later, when it is decided which queries were repeated.
	v := &snapshot{at: s.now, queries: s.q.Snapshot(s.now.Add(15 * time.Second)), upstreams: s.u.Snapshot(), pods: s.options.Pods.Table()}
	return s.Server.findings(v, s.askers(v), names)
}

// exchanges reports n exchanges that ended so, a second ago.
func (s *scene) exchanges(n int, upstream string, outcome observe.Outcome, took time.Duration) {
	sink := s.u.Sink(upstream, observe.TCP)
	for range n {
		sink.Begin()
		sink.End(&observe.Exchange{Start: s.now.Add(-time.Second - took), Duration: took, Outcome: outcome, Attempt: 1})
	}
}

func (s *scene) queries(n, client int, change func(*observe.Query)) {
	for i := range n {
		x := &observe.Query{Client: observeClient(client), ID: uint16(i), Name: wire(fmt.Sprintf("n%d.example.", i)), Type: 1, Received: s.now.Add(-time.Second).UnixNano(), Duration: time.Millisecond}
		if change != nil {
			change(x)
		}
		s.q.Record(x)
	}
}

// lost makes a client ask n times again as musl does, though it was answered.
func (s *scene) lost(n, client int) {
	s.queries(1, client, nil)
	s.ask(time.Second, n, client)
	s.ask(3500*time.Millisecond, n, client)
}

// ask makes a client ask n questions, at a time after now: the statistics begin now, and know nothing before.
func (s *scene) ask(after time.Duration, n, client int) {
	for i := range n {
		s.q.Record(&observe.Query{
			Client: observeClient(client), ID: 7, Name: wire(fmt.Sprintf("again%d.example.", i)), Type: 1,
			Received: s.now.Add(after).UnixNano(), Duration: time.Millisecond,
		})
	}
}

func TestFindings(t *testing.T) {
	const a, b = "10.96.0.10:53", "192.0.2.53:53"
	for name, tt := range map[string]struct {
		scene func(*scene)
		want  []string // severity and text of each, in this order; the numbers of queries/s are left out
	}{
		"nothing":      {func(*scene) {}, []string{"ok Ready: no query has come yet"}},
		"well":         {func(s *scene) { s.queries(100, 1, nil); s.exchanges(10, a, observe.NoError, time.Millisecond) }, []string{"ok Healthy: N queries/s, 100 % from memory"}},
		"few failures": {func(s *scene) { s.queries(9, 1, nil); s.exchanges(2, a, observe.Timeout, time.Second) }, []string{"ok Healthy: N queries/s, 100 % from memory"}},
		"small share": {func(s *scene) {
			s.queries(9, 1, nil)
			s.exchanges(3, a, observe.Timeout, 0)
			s.exchanges(197, a, observe.NoError, 0)
		}, []string{"ok Healthy: N queries/s, 100 % from memory"}},
		"NXDOMAIN":  {func(s *scene) { s.queries(9, 1, nil); s.exchanges(50, a, observe.NXDomain, 0) }, []string{"ok Healthy: N queries/s, 100 % from memory"}},
		"some fail": {func(s *scene) { s.exchanges(34, a, observe.Timeout, 0); s.exchanges(66, a, observe.NoError, 0) }, []string{"warning Upstream 10.96.0.10:53 tcp fails: 34 % of 100 exchanges in the last minute, mostly timeout"}},
		"the worst is first": {func(s *scene) {
			s.exchanges(30, a, observe.Timeout, 0)
			s.exchanges(70, a, observe.NoError, 0)
			s.exchanges(10, b, observe.ConnRefused, 0)
		}, []string{"error Upstream 192.0.2.53:53 tcp fails: 100 % of 10 exchanges in the last minute, mostly conn refused", "warning Upstream 10.96.0.10:53 tcp fails: 30 % of 100 exchanges in the last minute, mostly timeout"}},
		"none answers": {func(s *scene) { s.exchanges(4, a, observe.Timeout, 0); s.exchanges(5, b, observe.Timeout, 0) }, []string{
			"error No upstream answers: all of 9 exchanges in the last minute failed",
			"error Upstream 192.0.2.53:53 tcp fails: 100 % of 5 exchanges in the last minute, mostly timeout", "error Upstream 10.96.0.10:53 tcp fails: 100 % of 4 exchanges in the last minute, mostly timeout",
		}},
		"slow upstream": {func(s *scene) { s.exchanges(20, a, observe.NoError, 2*time.Second) }, []string{"warning Upstream 10.96.0.10:53 tcp is slow: one answer in ten takes"}},
		"SERVFAIL": {func(s *scene) {
			s.queries(90, 1, nil)
			s.queries(10, 2, func(q *observe.Query) { q.Rcode = 2 })
		}, []string{"warning Clients get SERVFAIL: 10 % of 100 queries in the last minute"}},
		"mostly SERVFAIL": {func(s *scene) { s.queries(1000, 2, func(q *observe.Query) { q.Rcode = 2 }) }, []string{"error Clients get SERVFAIL: 100 % of 1,000 queries in the last minute"}},
		"queue":           {func(s *scene) { s.queries(50, 1, func(q *observe.Query) { q.Queued = 100 * time.Millisecond }) }, []string{"warning Queries wait to be read: one in a hundred for"}},
		"stale": {func(s *scene) {
			s.queries(99, 1, nil)
			s.queries(1, 1, func(q *observe.Query) { q.Source = observe.FromStale })
		}, []string{"ok Healthy: N queries/s, 100 % from memory", "info 1 query in the last minute got an answer past its TTL"}},
		"search list": {func(s *scene) {
			s.queries(20, 1, nil)
			s.queries(60, 1, func(q *observe.Query) { q.Rcode = 3 })
		}, []string{"ok Healthy: N queries/s, 100 % from memory", "info Pod shop/web-1 asks for names that do not exist: 75 % of 80 queries in the last minute"}},
		"replies lost":  {func(s *scene) { s.lost(3, 1) }, []string{"warning Pod shop/web-1 repeats queries: replies are lost (3 times in 5 minutes, musl)"}},
		"of the node":   {func(s *scene) { s.lost(2, 3) }, []string{"warning The node itself repeats queries: replies are lost (2 times in 5 minutes, musl)"}},
		"of a stranger": {func(s *scene) { s.lost(2, 9) }, []string{"warning Client 10.244.0.9 repeats queries: replies are lost (2 times in 5 minutes, musl)"}},
		"another resolver": {func(s *scene) {
			s.queries(400, 1, nil)
			s.ask(time.Second, 3, 1)
			s.ask(2*time.Second, 3, 1) // with a time of its own
		}, []string{"warning Pod shop/web-1 repeats queries: replies are lost (3 times in 5 minutes)"}},
		"one lost reply": {func(s *scene) { s.lost(1, 1) }, []string{"ok Healthy: N queries/s, 100 % from memory"}},
		"many clients": {func(s *scene) {
			// Together, because the clock of the statistics does not go back far.
			for c := range 9 {
				s.queries(1, 20+c, nil)
			}
			for _, after := range []time.Duration{time.Second, 3500 * time.Millisecond} {
				for c := range 9 {
					s.ask(after, 2+c, 20+c)
				}
			}
		}, []string{"warning Client 10.244.0.28", "warning Client 10.244.0.27", "warning Client 10.244.0.26"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			tt.scene(s)
			got := s.findings(true)
			if len(got) != len(tt.want) {
				t.Fatalf("got %+v, want %q", got, tt.want)
			}
			for i, f := range got {
				text := string(f.Severity) + " " + f.Text
				if before, _, ok := strings.Cut(text, " queries/s"); ok {
					head, _, _ := strings.Cut(before, ": ")
					text = head + ": N" + text[len(before):]
				}
				if !strings.HasPrefix(text, tt.want[i]) {
					t.Errorf("got %q, want %q", text, tt.want[i])
				}
				if f.Code == "" || strings.HasSuffix(f.Text, ".") || strings.HasSuffix(f.Hint, ".") {
					t.Errorf("got %+v", f)
				}
			}
		})
	}
}

// TestFindingsWithoutNames checks that a user without the role for names sees that clients have problems, but not
// which.
func TestFindingsWithoutNames(t *testing.T) {
	s := newScene(t)
	s.lost(3, 1)
	got := s.findings(false)
	if len(got) != 1 || got[0].Text != "Clients repeat queries: replies are lost (3 times in 5 minutes, musl)" || got[0].Client != nil {
		t.Errorf("got %+v", got)
	}
}

func TestFailingSince(t *testing.T) {
	now := time.Now()
	at := func(ago ...time.Duration) (list []observe.Exchange) {
		for _, d := range ago {
			list = append(list, observe.Exchange{Start: now.Add(-d - time.Second), Duration: time.Second})
		}
		return list
	}
	many := at()
	for i := range observe.RecentFailures {
		many = append(many, at(time.Duration(i)*time.Second)...)
	}
	for _, tt := range []struct {
		failures []observe.Exchange
		want     time.Duration
		more     bool
	}{
		{at(time.Second), time.Second, false},
		{at(time.Second, time.Minute, 2*time.Minute), 2 * time.Minute, false},
		{at(time.Second, time.Minute, 4*time.Minute), time.Minute, false},
		{many, (observe.RecentFailures - 1) * time.Second, true},
	} {
		since, more := failingSince(&observe.UpstreamSnapshot{Failures: tt.failures})
		if since == nil || now.Sub(*since).Round(time.Millisecond) != tt.want || more != tt.more {
			t.Errorf("%d failures: since %v, %v, want %v, %v", len(tt.failures), since, more, tt.want, tt.more)
		}
	}
	down := observe.UpstreamSnapshot{FailingSince: now.Add(-time.Hour), Failures: many}
	if since, more := failingSince(&down); since == nil || !since.Equal(down.FailingSince) || more {
		t.Errorf("down since %v, %v, want an hour ago for certain", since, more)
	}
	if since, more := failingSince(new(observe.UpstreamSnapshot)); since != nil || more {
		t.Errorf("got %v", since)
	}
}

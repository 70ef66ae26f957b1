package api

import (
	"fmt"
	"net/url"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// TestOutageStart checks the reported start of an outage, from clients' failures and the first and latest probe.
func TestOutageStart(t *testing.T) {
	s := newScene(t)
	sink := s.u.Sink("192.0.2.53:53", observe.UDP)
	from := s.now.Add(-10 * time.Minute)
	for i := range 100 {
		sink.Begin()
		sink.End(&observe.Exchange{Start: from.Add(time.Duration(i) * time.Second), Outcome: observe.Timeout, Probe: i > 0, Attempt: 1, Err: fmt.Sprint(i)})
	}
	h := s.Handler(nil)
	var events List[Event]
	get(t, h, "/api/v1/events", 200, &events)
	if len(events.Items) != 3 || events.Items[0].Message != "99" || events.Items[1].Message != "1" || events.Items[2].Probe {
		t.Errorf("got %+v", events.Items)
	}
	var v List[Upstream]
	get(t, h, "/api/v1/upstreams", 200, &v)
	if u := v.Items[0]; u.FailingSince == nil || !u.FailingSince.Equal(from) || u.LastFailure == nil || u.LastFailure.Probe {
		t.Errorf("got %+v, want since %s and the client's failure", u, from)
	}
}

// TestMergedOutage: of nodes, the earliest; and the failure of a client rather than a later one of a probe.
func TestMergedOutage(t *testing.T) {
	g, err := NewGather("/api/v1/upstreams", url.Values{})
	if err != nil {
		t.Fatal(err)
	}
	part := func(more string) string {
		return `{"apiVersion":"` + Version + `","kind":"UpstreamList","items":[{"upstream":"a","proto":"udp"` + more + `}]}`
	}
	v := mergeBodies[Upstream](t, g, part(``), part(`,"failingSince":"2026-01-02T15:04:05Z","lastFailure":{"at":"2026-01-02T15:04:05Z"}`),
		part(`,"failingSince":"2026-01-02T15:03:00Z","lastFailure":{"at":"2026-01-02T16:00:00Z","probe":true}`))
	if u := v.Items[0]; u.FailingSince == nil || u.FailingSince.Minute() != 3 || u.LastFailure == nil || u.LastFailure.Probe {
		t.Errorf("got %+v", u)
	}
}

// TestQuantileOf both together is not above that of either.
func TestQuantileOf(t *testing.T) {
	var hit, miss observe.Latency
	for range 1000 {
		hit.Counts[observe.LatencyBucket(40*time.Microsecond)]++
		hit.Sum += 40 * time.Microsecond
	}
	for range 20 {
		miss.Counts[observe.LatencyBucket(33*time.Millisecond)]++
		miss.Sum += 33 * time.Millisecond
	}
	a, b := latency(&hit), latency(&miss)
	for _, q := range []float64{0.5, 0.9, 0.99, 1} {
		all, low, high := QuantileOf(&a, &b, q, latencyBounds), a.Quantile(q, latencyBounds), b.Quantile(q, latencyBounds)
		if all < low || all > high {
			t.Errorf("%v: together %v, of %v and %v", q, all, low, high)
		}
	}
	var none Latency
	if QuantileOf(&none, &b, 0.99, latencyBounds) != b.P99Seconds || QuantileOf(&none, &none, 0.5, latencyBounds) != 0 {
		t.Error("with nothing, it is that of the other")
	}
}

// Package observe holds what the node's DNS traffic looked like: fixed-size statistics that are cheap
// to write on the path of a query and are read as snapshots.
//
// Whoever exchanges with an upstream reports to a Sink, one for each upstream and transport, that it
// got from a Recorder once and keeps: no look-up on the hot path. Upstreams is the Recorder behind the
// API and the page; a plugin that feeds Prometheus is another one, and Tee joins them. Nothing here
// grows with traffic: the number of upstreams is capped, histograms and rings have a fixed size.
//
// Whoever answers clients reports to Queries, each query once: by Record where the answer was at hand,
// by Begin and End where it took time. It counts for each client and window, finds questions that
// are asked again because an answer did not come, and keeps the stories of slow and failed queries; a
// Trace carries the exchanges of a query from those who make them to its story.
//
// Snapshots are plain values. Those of several nodes merge by addition; lists of top names carry the
// bounds of their errors.
package observe

import (
	"net/netip"
	"time"
)

// Exchange is one attempt to one upstream over one transport, from the moment the query is handed to
// the socket until an answer, a failure or the end of the wait.
type Exchange struct {
	Upstream string // "IP:port"
	Proto    Proto
	Start    time.Time
	Duration time.Duration // includes the wait for a connection that was being opened
	Outcome  Outcome
	Rcode    int  // of an answer; else 0
	Attempt  int  // 1 is the first attempt for its question
	Hedge    bool // sent while an earlier attempt was still waiting
	Probe    bool // a health check, not a client's question
	// Reused is true where the exchange used a connection (or UDP socket) that had carried another
	// one before. ConnAge is the age of the connection when the exchange began, 0 for a new one.
	Reused  bool
	ConnAge time.Duration
	// Capped is true where nothing was sent because a limit of the forwarder itself was reached. That says nothing
	// about the upstream, and statistics of upstreams leave it out.
	Capped   bool
	Local    netip.AddrPort // our end; invalid where no connection came about
	BytesOut int            // of the DNS message, without the length prefix of streams
	BytesIn  int
	Err      string // of a failure: what happened, for people
}

// Recorder hands out the sinks of upstreams. Implementations are safe for concurrent use.
type Recorder interface {
	// Sink returns where exchanges with one upstream over one transport are reported. The caller
	// keeps it and calls Release when the upstream is gone.
	Sink(upstream string, proto Proto) Sink
}

// Sink takes the reports of one upstream and transport. Each Begin is followed by exactly one End. It
// is called on the path of queries: an implementation does not block and does not keep e.
type Sink interface {
	Begin()
	End(e *Exchange)
	Drop(d Drop)
	Release()
}

// Tee returns a Recorder that reports to each of recorders, in order. Nil ones are left out.
func Tee(recorders ...Recorder) Recorder {
	var t tee
	for _, r := range recorders {
		if r != nil {
			t = append(t, r)
		}
	}
	if len(t) == 1 {
		return t[0]
	}
	return t
}

type tee []Recorder

func (t tee) Sink(upstream string, proto Proto) Sink {
	sinks := make(teeSink, len(t))
	for i, r := range t {
		sinks[i] = r.Sink(upstream, proto)
	}
	return sinks
}

type teeSink []Sink

func (t teeSink) Begin() {
	for _, s := range t {
		s.Begin()
	}
}

func (t teeSink) End(e *Exchange) {
	for _, s := range t {
		s.End(e)
	}
}

func (t teeSink) Drop(d Drop) {
	for _, s := range t {
		s.Drop(d)
	}
}

func (t teeSink) Release() {
	for _, s := range t {
		s.Release()
	}
}

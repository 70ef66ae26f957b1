// Package observe keeps statistics of the node's DNS traffic: of fixed size, cheap to update on the path of a query,
// and read as snapshots.
//
// Code that exchanges with upstreams reports to a Sink, one for each upstream and transport. It gets the Sink from a
// Recorder once and keeps it, so that the hot path needs no look-up. Upstreams is the Recorder behind the API and the
// page; a plugin that feeds Prometheus is another one, and Tee joins them. Nothing here grows with traffic: the
// number of upstreams is capped, histograms and rings have a fixed size.
//
// Code that answers clients reports each query once to Queries: with Record if the answer was at hand, with Begin and
// End if it took time. Queries counts for each client and window, finds queries that are repeated because an answer
// did not arrive, and keeps stories of slow and failed queries; a Trace carries the exchanges of a query from the
// code that makes them to its story.
//
// Snapshots are plain values. Those of several nodes merge by addition; lists of top names carry the bounds of their
// errors.
package observe

import (
	"net/netip"
	"time"
)

// Exchange is one attempt to one upstream over one transport, from the moment the query is given to the socket until
// an answer, a failure or the end of the wait.
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
	// Capped is true if nothing was sent because a limit of the forwarder was reached. This says nothing about the
	// upstream, so statistics of upstreams leave it out.
	Capped   bool
	Local    netip.AddrPort // this node's end; invalid if no connection was established
	BytesOut int            // of the DNS message, without the length prefix of streams
	BytesIn  int
	Err      string // of a failure: a description for people
}

// Recorder hands out the sinks of upstreams. Implementations are safe for concurrent use.
type Recorder interface {
	// Sink returns where exchanges with one upstream over one transport are reported. The caller
	// keeps it and calls Release when the upstream is gone.
	Sink(upstream string, proto Proto) Sink
}

// Sink takes the reports about one upstream and transport. Each Begin is followed by exactly one End. It is called on
// the path of queries: an implementation must not block and must not keep e.
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

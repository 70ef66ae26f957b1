package observe

import (
	"net/netip"
	"time"
)

// Source says where the answer to a client came from.
type Source uint8

// The sources.
const (
	FromReplay   Source = iota // a stored wire answer sent again: the fast path
	FromCache                  // the cache of the chain
	FromStale                  // the cache, past the answer's TTL (RFC 8767)
	FromUpstream               // a miss: an upstream was asked
	FromLocal                  // made on this node: hosts, templates, refusals

	// NumSources is the number of sources, for arrays that are indexed by them.
	NumSources = int(FromLocal) + 1
)

var sourceNames = [NumSources]string{"replay", "cache", "stale", "upstream", "local"}

// String is the source's name in the API.
func (s Source) String() string { return nameOf(sourceNames[:], "source", uint8(s)) }

// MarshalText writes the name, for JSON.
func (s Source) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// NoReply replaces the RCODE of a query that was dropped on purpose, so that its client got no reply.
const NoReply = -1

// Query is one client's query and its end. Name is valid only during the call that it is passed to.
type Query struct {
	Client   netip.AddrPort // unmapped: IPv4 as IPv4
	ID       uint16
	Proto    Proto
	Name     []byte // wire format, lower case (RFC 4343), without compression
	Type     uint16
	Rcode    int
	Source   Source
	Received int64         // Unix nanoseconds: the kernel's receive timestamp if the socket has one, see Arrival
	Queued   time.Duration // time in the socket's queue before it was read; 0 if unknown
	Duration time.Duration // from Received to the answer handed to the socket
	Upstream time.Duration // the part of Duration spent waiting for upstreams
}

package observe

import (
	"math"
	"net/netip"
	"time"
)

// Forget merges a client that was first seen before the given time into Overflow, and reports whether there was one:
// its address now belongs to another pod, which must not inherit its statistics. Sums stay correct. Pending queries
// of the client count in Overflow too, and its questions are not matched with those of the new client. Stories stay,
// by address and time. A client that was first seen at that time or later is left unchanged.
func (s *Queries) Forget(addr netip.Addr, before time.Time) bool {
	addr = addr.Unmap()
	hash := s.hashAddr(addr)
	sh := s.shardOf(hash)
	t := s.clock.at(0)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := sh.clients.find(addr, uint32(hash))
	if c == nil || !s.clock.wall(c.first).Before(before) {
		return false
	}
	sh.fold(c, t)
	sh.forgotten++
	s.clients.Add(-1)
	return true
}

// countingClient returns the client that a query counts for: the one that asked it, or the shard's overflow client if
// that one has lost its place since, because the address may now belong to another pod. It returns nil if no client
// is known to have asked. sh.mu is held.
func (sh *shard) countingClient(asked *client, t int64) *client {
	if asked != nil && asked.gone {
		return sh.others(t)
	}
	return asked
}

// known returns for how many milliseconds the client has been known; beyond the time that any question is remembered,
// the exact value does not matter.
func (c *client) known(now uint32) int32 {
	// The first question of a client arrived before c.first, which may be the time of its answer.
	if n := since(now, milliseconds(c.first)); n > -forgetAfter && n < forgetAfter {
		return max(n, 0)
	}
	return math.MaxInt32
}

package observe

import (
	"math"
	"net/netip"
	"time"
)

// Forget makes a client that was seen before the given time part of Overflow, and tells whether there was one: its
// address belongs to somebody else now, who must not inherit anything. Sums stay true. What the client has asked and
// has no answer to yet is counted in Overflow too, and its questions are not taken for the new client's when that asks
// the same. Stories stay, by address and time. A client that was seen first at that time or later is left as it is.
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

// heir is who a query counts for: the client that asked it, or the shard's other where that one has lost its place since.
// Who has the address now is somebody else, or may be. It is nil where no client is known to have asked. It runs with
// sh.mu held.
func (sh *shard) heir(asked *client, t int64) *client {
	if asked != nil && asked.gone {
		return sh.others(t)
	}
	return asked
}

// known is for how many milliseconds the client has been here; where it is so long that it makes no difference, longer
// than any question is remembered.
func (c *client) known(now uint32) int32 {
	// The first question of a client came before c.first, which may be when it was answered.
	if n := since(now, milliseconds(c.first)); n > -forgetAfter && n < forgetAfter {
		return max(n, 0)
	}
	return math.MaxInt32
}

package observe

import (
	"math/bits"
	"net/netip"
	"time"
)

const (
	// namesPerClient is how many top names each client has, of roomPerName bytes. That is enough for a Service's name
	// plus a search domain; longer names are cut.
	namesPerClient = 6
	roomPerName    = 80
	cellsPerClient = 16
	// idleAfter is how long a client must be silent before its place may go to another one.
	idleAfter = int64(5 * time.Minute)
	// makeRoomEvery is how often a new client may search for such a place.
	makeRoomEvery = int64(time.Second)
)

// client holds the statistics of one client, guarded by its shard's lock. It takes 7 KB with its names: 6,136 bytes
// plus the allocator's header fit a size class.
type client struct {
	addr netip.Addr // invalid for the one that stands for many
	hash uint32
	gone bool // it is part of the shard's other now
	// addresses counts the client's questions for addresses, paired those that were half of an A/AAAA pair.
	addresses, paired uint8

	// The fields that every query uses come first, next to each other.
	first, last int64
	names       topNames
	tally       tally
	marks       marks[tallyMark]
}

func newClient(addr netip.Addr, hash uint32, t int64) *client {
	c := &client{addr: addr, hash: hash, first: t, last: t, names: newTopNames(namesPerClient, roomPerName, cellsPerClient)}
	c.marks.start(t)
	return c
}

// advance brings the marks up to t. It is called before anything is counted.
func (c *client) advance(t int64) {
	if c.marks.due(t) {
		c.mark(t)
	}
	c.last = max(c.last, t)
}

// mark is apart from advance so that advance is inlined.
func (c *client) mark(t int64) { c.marks.advance(t, c.tally.mark()) }

// pairsUp reports whether the client usually asks for A and AAAA together.
func (c *client) pairsUp() bool { return c.addresses >= 4 && int(c.paired)*10 >= int(c.addresses)*8 }

// countAddress counts a question for an address. pair is 1 if it is the other half of one that was counted before,
// else 0. Which of them it is cannot be predicted, so there is no branch.
func (c *client) countAddress(pair uint8) {
	if c.paired >= c.addresses {
		pair = 0
	}
	c.paired += 2 * pair
	if c.addresses++; c.addresses >= 200 { // old habits count less
		c.addresses /= 2
		c.paired /= 2
	}
}

// absorb counts everything of d as c's. The windows come out as if c had counted it from the start.
func (c *client) absorb(d *client, t int64) {
	last := d.last
	t = max(t, c.marks.point[0]*step[0], d.marks.point[0]*step[0]) // both must be at the same point
	c.advance(t)
	d.advance(t)
	c.last = max(c.last, last)
	c.first = min(c.first, d.first)
	c.tally.add(&d.tally)
	for w := range c.marks.at {
		for i := range c.marks.at[w] {
			c.marks.at[w][i].add(&d.marks.at[w][i])
		}
	}
	c.names.merge(&d.names)
}

// clientTable finds clients by address: open addressing, linear probing.
type clientTable struct {
	slots []*client
	n     int
}

func (t *clientTable) find(addr netip.Addr, hash uint32) *client {
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; len(t.slots) > 0; i = (i + 1) & mask {
		c := t.slots[i]
		if c == nil || c.hash == hash && c.addr == addr {
			return c
		}
	}
	return nil
}

func (t *clientTable) insert(c *client) {
	if (t.n+1)*2 > len(t.slots) {
		t.rebuild(max(8, 2*len(t.slots)))
	}
	t.place(c)
	t.n++
}

func (t *clientTable) place(c *client) {
	mask := uint32(len(t.slots) - 1)
	i := c.hash & mask
	for t.slots[i] != nil {
		i = (i + 1) & mask
	}
	t.slots[i] = c
}

// remove leaves out clients that are gone.
func (t *clientTable) remove() {
	t.rebuild(len(t.slots))
}

func (t *clientTable) rebuild(size int) {
	old := t.slots
	t.slots = make([]*client, size)
	t.n = 0
	for _, c := range old {
		if c != nil && !c.gone {
			t.place(c)
			t.n++
		}
	}
}

func (t *clientTable) list() []*client {
	list := make([]*client, 0, t.n)
	for _, c := range t.slots {
		if c != nil {
			list = append(list, c)
		}
	}
	return list
}

// mix combines two values into one hash.
func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a^0x9e3779b97f4a7c15, b^0xd6e8feb86659fd93)
	return high ^ low
}

package observe

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultMaxClients is how many clients get statistics of their own. Kubernetes allows 110 pods a node by
	// default; managed clusters go up to 250.
	DefaultMaxClients = 256
	// DefaultSlow is the duration from which a query is slow.
	DefaultSlow = 100 * time.Millisecond

	numShards = 8 // a power of two
)

// QueriesOptions are the bounds of Queries. Zero values stand for the defaults.
type QueriesOptions struct {
	Clients int           // most clients with statistics of their own: 7 KB each once they are seen
	Slow    time.Duration // from which duration on a query is worth a story
}

// Queries keeps statistics of clients' queries: for each client, for names over all clients, and the stories of slow
// and failed queries. A client beyond the limit takes the place of the one that was silent longest, if that was for
// five minutes; else it is counted in Overflow, together with the counts of clients that lost their place. So the sum
// over all clients is always the sum of all queries.
//
// Clients are spread over shards, each with a lock that is held for the time of one query or of one batch. All
// methods are safe for concurrent use.
type Queries struct {
	limit atomic.Int32
	slow  atomic.Int64 // nanoseconds

	names   maphash.Seed
	seed    [3]uint64
	started int64
	clock   timeline

	clients  atomic.Int32
	makeRoom atomic.Int64 // when the next search for a place may be
	noClient atomic.Uint64
	inFlight atomic.Int64

	shards [numShards]shard
}

// NewQueries returns empty statistics.
func NewQueries(o QueriesOptions) *Queries { return newQueries(o, time.Now()) }

func newQueries(o QueriesOptions, now time.Time) *Queries {
	s := &Queries{
		started: now.UnixNano(),
		names:   maphash.MakeSeed(), seed: [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64()},
	}
	s.Configure(o)
	s.clock.latest.Store(s.started)
	for i := range s.shards {
		sh := &s.shards[i]
		sh.tops.init(s.started)
		sh.waitMarks.start(s.started)
	}
	return s
}

// Configure changes the bounds. Existing counts stay: clients beyond a lower limit keep their places until they have
// been silent for five minutes and another client asks.
func (s *Queries) Configure(o QueriesOptions) {
	if o.Clients <= 0 {
		o.Clients = DefaultMaxClients
	}
	if o.Slow <= 0 {
		o.Slow = DefaultSlow
	}
	s.limit.Store(int32(min(o.Clients, math.MaxInt32)))
	s.slow.Store(int64(o.Slow))
}

// Options are the bounds as they are.
func (s *Queries) Options() QueriesOptions {
	return QueriesOptions{Clients: int(s.limit.Load()), Slow: time.Duration(s.slow.Load())}
}

// Started returns the time at which the statistics began.
func (s *Queries) Started() time.Time { return time.Unix(0, s.started) }

// shard holds the clients whose address hashes share a prefix, and statistics that these clients have in common.
type shard struct {
	mu        sync.Mutex
	clients   clientTable
	other     *client // made when it is needed
	evictions uint64  // of clients that became part of other
	forgotten uint64  // of these, by Forget
	tops      tops
	waits     waits
	waitMarks marks[waitsMark]
	recent    recent
	stories   stories
	lost      [NumLosses]uint64

	_ [64]byte // shards are written by different processors
}

// waits are the distributions of times that are kept over all clients of a shard.
type waits struct {
	n    [2][NumLatencyBuckets]uint64
	time [2]uint64
}

type waitsMark struct {
	n    [2][NumLatencyBuckets]uint32
	time [2]uint64
}

const (
	waitUpstream = iota
	waitQueued
)

func (w *waits) count(which int, d time.Duration) {
	w.n[which][LatencyBucket(d)]++
	w.time[which] += uint64(max(d, 0))
}

func (w *waits) mark() *waitsMark {
	m := &waitsMark{time: w.time}
	for i := range w.n {
		for j, n := range w.n[i] {
			m.n[i][j] = uint32(n)
		}
	}
	return m
}

// since returns what was counted after the mark was made; everything if m is nil.
func (w *waits) since(m *waitsMark) (l [2]Latency) {
	for i := range w.n {
		l[i].Counts = w.n[i]
		l[i].Sum = time.Duration(w.time[i])
		if m == nil {
			continue
		}
		for j, n := range w.n[i] {
			l[i].Counts[j] = uint64(uint32(n) - m.n[i][j])
		}
		l[i].Sum -= time.Duration(m.time[i])
	}
	return l
}

// keys are the hashes by which a query is known.
type keys struct {
	client, name uint64
	question     uint32 // of client and name, and of types other than A and AAAA
	exact        uint32 // of client, port, ID, name and type
	set          uint32 // the set in which they are looked up
	exactSet     uint32
}

func (s *Queries) keys(k *keys, q *Query, client uint64) {
	k.client, k.name = client, maphash.Bytes(s.names, q.Name)
	other := uint64(0)
	if q.Type != typeA && q.Type != typeAAAA {
		other = uint64(q.Type)
	}
	question := mix(client^other, k.name)
	exact := mix(question^s.seed[2], uint64(q.Client.Port())<<32|uint64(q.ID)<<16|uint64(q.Type))
	k.question, k.set = uint32(question>>32), uint32(question)
	k.exact, k.exactSet = uint32(exact>>32), uint32(exact)
}

func (s *Queries) hashAddr(addr netip.Addr) uint64 {
	a := addr.As16()
	return mix(binary.LittleEndian.Uint64(a[:8])^s.seed[0], binary.LittleEndian.Uint64(a[8:])^s.seed[1])
}

func (s *Queries) shardOf(hash uint64) *shard { return &s.shards[hash>>61%numShards] }

// Record counts q, which is answered. It allocates only for a client that is new.
func (s *Queries) Record(q *Query) { s.record(q, nil, nil) }

// Token connects the Begin of a query with its End.
type Token struct {
	keys  keys
	by    *client
	asked uint32 // milliseconds; 0 for a query that is not known by its question
	begun bool
}

// Begin notes that q has arrived and that its answer takes time; only Client, ID, Proto, Name, Type and Received of q
// count. A question that is repeated meanwhile is then known to be caused by a slow upstream. Each Begin is followed
// by one End. It allocates only for a new client.
func (s *Queries) Begin(q *Query) Token {
	s.inFlight.Add(1)
	token := Token{begun: true}
	addr := q.Client.Addr()
	if !addr.IsValid() {
		return token
	}
	t := s.clock.at(q.Received)
	hash := s.hashAddr(addr)
	s.keys(&token.keys, q, hash)
	sh := s.shardOf(hash)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	c := s.client(sh, addr, hash, t)
	token.by = c
	if q.Proto == UDP {
		token.asked = milliseconds(t)
		sh.ask(c, q, &token.keys, token.asked, pending)
	}
	return token
}

// End counts q, for which Begin returned token. t may be nil; it accepts no more exchanges.
func (s *Queries) End(token Token, q *Query, t *Trace) {
	t.end()
	if token.begun {
		s.inFlight.Add(-1)
	}
	s.record(q, &token, t)
}

func (s *Queries) record(q *Query, token *Token, trace *Trace) {
	addr := q.Client.Addr()
	if !addr.IsValid() {
		s.noClient.Add(1)
		return
	}
	t := s.answeredAt(q)
	var fresh keys
	k := &fresh
	if token != nil && token.asked != 0 {
		k = &token.keys
	} else {
		s.keys(k, q, s.hashAddr(addr))
	}
	sh := s.shardOf(k.client)
	sh.mu.Lock()
	var c *client
	if token != nil {
		c = sh.countingClient(token.by, t)
	}
	if c == nil {
		c = s.client(sh, addr, k.client, t)
	}
	if q.Proto == UDP {
		if token != nil && token.asked != 0 {
			sh.recent.answered(k, q, token.asked, milliseconds(t))
		} else {
			sh.askAnswered(c, q, k, t)
		}
	}
	sh.count(c, q, k, t)
	if isStory(q, time.Duration(s.slow.Load()), trace) {
		sh.keepStory(q, trace)
	}
	sh.mu.Unlock()
}

// RecordAll counts queries like Record, in their order. Consecutive queries share look-ups, and the lock of a shard
// is taken once.
func (s *Queries) RecordAll(list []Query) {
	var (
		sh   *shard
		c    *client // of addr
		addr netip.Addr
		hash uint64
		k    keys
		slow = time.Duration(s.slow.Load())
	)
	for i := range list {
		q := &list[i]
		if !q.Client.Addr().IsValid() {
			s.noClient.Add(1)
			continue
		}
		t := s.answeredAt(q)
		if a := q.Client.Addr(); a != addr {
			addr, hash, c = a, s.hashAddr(a), nil
		}
		s.keys(&k, q, hash)
		if next := s.shardOf(hash); next != sh {
			if sh != nil {
				sh.mu.Unlock()
			}
			sh = next
			sh.mu.Lock()
		}
		if c == nil {
			c = s.client(sh, addr, hash, t)
		}
		if q.Proto == UDP {
			sh.askAnswered(c, q, &k, t)
		}
		sh.count(c, q, &k, t)
		if isStory(q, slow, nil) {
			sh.keepStory(q, nil)
		}
	}
	if sh != nil {
		sh.mu.Unlock()
	}
}

// answeredAt returns the time at which q was answered, by the clock of the statistics.
func (s *Queries) answeredAt(q *Query) int64 {
	if q.Received > 0 {
		return s.clock.at(q.Received + int64(q.Duration))
	}
	return s.clock.at(0)
}

// askAnswered is ask for a question that was answered at t.
func (sh *shard) askAnswered(c *client, q *Query, k *keys, t int64) {
	took := max(q.Duration, 0)
	sh.ask(c, q, k, milliseconds(t-int64(took)), answerTime(took))
}

// keepStory keeps the story of q.
func (sh *shard) keepStory(q *Query, trace *Trace) {
	overwritten, steps := sh.stories.push(q, trace)
	if overwritten {
		sh.lost[LossStory]++
	}
	sh.lost[LossStep] += uint64(steps)
}

func (sh *shard) count(c *client, q *Query, k *keys, t int64) {
	c.advance(t)
	c.tally.count(q)
	c.names.add(k.name, q.Name)
	if sh.waitMarks.due(t) {
		sh.waitMarks.advance(t, sh.waits.mark())
		sh.tops.advance(t) // a period is many steps
	}
	sh.tops.count(q, k.name)
	if q.Source == FromUpstream || q.Upstream > 0 {
		sh.waits.count(waitUpstream, q.Upstream)
	}
	if q.Queued > 0 {
		sh.waits.count(waitQueued, q.Queued)
	}
}

// client returns the statistics of a client, and creates them if needed. sh.mu is held.
func (s *Queries) client(sh *shard, addr netip.Addr, hash uint64, t int64) *client {
	if c := sh.clients.find(addr, uint32(hash)); c != nil {
		return c
	}
	if s.clients.Add(1) > s.limit.Load() {
		s.clients.Add(-1)
		if !s.evict(sh, t) {
			return sh.others(t)
		}
	}
	c := newClient(addr, uint32(hash), t)
	sh.clients.insert(c)
	return c
}

func (sh *shard) others(t int64) *client {
	if sh.other == nil {
		sh.other = newClient(netip.Addr{}, 0, t)
	}
	return sh.other
}

// evict makes room for one client by removing the one that was silent longest. The lock of held is held: a shard that
// is busy is skipped.
func (s *Queries) evict(held *shard, t int64) bool {
	when := s.makeRoom.Load()
	if t < when || !s.makeRoom.CompareAndSwap(when, t+makeRoomEvery) {
		return false
	}
	var oldest *client
	var home *shard
	last := t - idleAfter
	for i := range s.shards {
		sh := &s.shards[i]
		if sh != held && !sh.mu.TryLock() {
			continue
		}
		for _, c := range sh.clients.slots {
			if c != nil && c.last <= last {
				oldest, home, last = c, sh, c.last
			}
		}
		if sh != held {
			sh.mu.Unlock()
		}
	}
	if oldest == nil {
		return false
	}
	if home != held {
		if !home.mu.TryLock() {
			return false
		}
		defer home.mu.Unlock()
		if oldest.gone || oldest.last != last {
			return false
		}
	}
	home.fold(oldest, t)
	return true
}

// fold merges a client into the shard's overflow client.
func (sh *shard) fold(c *client, t int64) {
	other := sh.others(t)
	other.absorb(c, t)
	sh.recent.redirect(c, other)
	c.gone = true
	sh.clients.remove()
	sh.evictions++
}

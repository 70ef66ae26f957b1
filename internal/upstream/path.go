package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// standing is how far a path is trusted. Less is better.
type standing uint8

const (
	healthy standing = iota
	doubtful
	down
)

// String names the standing for the API.
func (s standing) String() string { return [...]string{"healthy", "doubtful", "down"}[s] }

// pool carries the calls of a path.
type pool interface {
	// submit takes c over: it ends c by finish, possibly before it returns.
	submit(c *call)
	// close ends all calls and sockets.
	close()
	// load is how many sockets are open and how many calls wait.
	load() (sockets, waiting int)
	// connections lists the sockets that are open.
	connections() []observe.Connection
	// silentTo reports whether nothing was heard since c began where its answer would come from.
	silentTo(c *call) bool
}

// path is one server over one transport, with its own sockets, estimate and health: UDP may be blocked
// where TCP passes, and the other way round.
type path struct {
	server *server
	proto  observe.Proto
	sink   observe.Sink
	pool   pool
	// datagrams is the pool where it is one of sockets.
	datagrams *datagramPool
	rtt       estimate

	lastAnswer atomic.Int64 // as sinceStart has it; 0: never
	lastWanted atomic.Int64
	standing   atomic.Uint32

	mu      sync.Mutex
	fails   int // in a row
	probing bool
}

// submit makes an attempt.
func (p *path) submit(c *call) {
	p.sink.Begin()
	p.pool.submit(c)
}

// carry makes the attempt in the calling goroutine, over UDP, and returns when it has ended or at until.
// Then the attempt goes on without the goroutine.
func (p *path) carry(c *call, until time.Time) {
	p.sink.Begin()
	p.datagrams.carry(c, until)
}

// answered takes note of any acceptable answer, the one to a probe included.
func (p *path) answered(now time.Time) {
	p.lastAnswer.Store(sinceStart(now))
	if standing(p.standing.Load()) == healthy {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails = 0
	p.standing.Store(uint32(healthy))
}

// failed takes note of a failure of the server. One failed connection is one failure, however many
// calls it carried.
func (p *path) failed(now time.Time) {
	limit := p.server.config.Health.MaxFails
	if limit == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails++
	to := doubtful
	if p.fails >= limit {
		to = down
	}
	p.lower(to, now)
}

// suspect puts a path in doubt that is silent, before the first of its calls has timed out.
func (p *path) suspect(now time.Time) {
	if p.server.config.Health.MaxFails == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lower(doubtful, now)
}

// lower runs with p.mu held.
func (p *path) lower(to standing, now time.Time) {
	if uint32(to) > p.standing.Load() {
		p.standing.Store(uint32(to))
	}
	p.lastWanted.Store(sinceStart(now))
	p.startProbing()
}

// silentSince reports whether nothing at all was heard from the path since at.
func (p *path) silentSince(at time.Time) bool { return p.lastAnswer.Load() < sinceStart(at) }

// trust returns the standing, and takes note that somebody cares.
func (p *path) trust(now time.Time) standing {
	s := standing(p.standing.Load())
	if s != healthy {
		p.lastWanted.Store(sinceStart(now))
		p.mu.Lock()
		p.startProbing()
		p.mu.Unlock()
	}
	return s
}

// inherit takes over what the path knew before its settings changed.
func (p *path) inherit(other *path) {
	p.rtt.inherit(&other.rtt)
	p.lastAnswer.Store(other.lastAnswer.Load())
	other.mu.Lock()
	fails := other.fails
	other.mu.Unlock()
	if limit := p.server.config.Health.MaxFails; limit > 0 {
		p.fails = fails
		p.standing.Store(other.standing.Load())
	}
}

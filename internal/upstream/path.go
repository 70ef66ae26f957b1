package upstream

import (
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// healthState is how far a path is trusted. Lower is better.
type healthState uint8

const (
	healthy healthState = iota
	doubtful
	down
)

// String returns the name of the state in the API.
func (s healthState) String() string { return [...]string{"healthy", "doubtful", "down"}[s] }

// pool carries the calls of a path.
type pool interface {
	// submit takes over c: it ends c with finish, possibly before it returns.
	submit(c *call)
	// close ends all calls and sockets.
	close()
	// load returns the numbers of open sockets and waiting calls.
	load() (sockets, waiting int)
	// connections lists the sockets that are open.
	connections() []observe.Connection
	// silentTo reports whether nothing was heard since c began where its answer would come from.
	silentTo(c *call) bool
}

// path is one server over one transport, with its own sockets, estimate and health: UDP may be blocked while TCP
// passes, and vice versa.
type path struct {
	server *server
	proto  observe.Proto
	sink   observe.Sink
	pool   pool
	// datagrams is the pool if it is a UDP one.
	datagrams *datagramPool
	rtt       estimate

	lastAnswer atomic.Int64 // as sinceStart has it; 0: never
	lastWanted atomic.Int64
	state      atomic.Uint32

	mu      sync.Mutex
	fails   int // in a row
	probing bool
}

// submit makes an attempt.
func (p *path) submit(c *call) {
	p.sink.Begin()
	p.pool.submit(c)
}

// carry makes the attempt over UDP in the calling goroutine, and returns when it has ended or at until; the attempt
// then continues without the goroutine.
func (p *path) carry(c *call, until time.Time) {
	p.sink.Begin()
	p.datagrams.carry(c, until)
}

// answered records an acceptable answer, also one to a probe.
func (p *path) answered(now time.Time) {
	p.lastAnswer.Store(sinceStart(now))
	if healthState(p.state.Load()) == healthy {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails = 0
	p.state.Store(uint32(healthy))
}

// failed records a failure of the server. One failed connection is one failure, however many calls it carried.
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
func (p *path) lower(to healthState, now time.Time) {
	if uint32(to) > p.state.Load() {
		p.state.Store(uint32(to))
	}
	p.lastWanted.Store(sinceStart(now))
	p.startProbing()
}

// silentSince reports whether nothing at all was heard from the path since at.
func (p *path) silentSince(at time.Time) bool { return p.lastAnswer.Load() < sinceStart(at) }

// trust returns the health state, and records that the path is needed.
func (p *path) trust(now time.Time) healthState {
	s := healthState(p.state.Load())
	if s != healthy {
		p.lastWanted.Store(sinceStart(now))
		p.mu.Lock()
		p.startProbing()
		p.mu.Unlock()
	}
	return s
}

// inherit takes over the state of the same path from before its settings changed.
func (p *path) inherit(other *path) {
	p.rtt.inherit(&other.rtt)
	p.lastAnswer.Store(other.lastAnswer.Load())
	other.mu.Lock()
	fails := other.fails
	other.mu.Unlock()
	if limit := p.server.config.Health.MaxFails; limit > 0 {
		p.fails = fails
		p.state.Store(other.state.Load())
	}
}

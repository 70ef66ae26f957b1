package upstream

import (
	"runtime"
	"slices"
	"sync"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const (
	// lateBase and lateFactor define when the oldest query on a connection is late: CoreDNS serves a connection
	// serially, so that a slow name delays all behind it. Below 5 ms another connection costs more than the wait.
	lateBase   = 5 * time.Millisecond
	lateFactor = 3
	// lateUnknown replaces both while no round trip is known.
	lateUnknown = 20 * time.Millisecond
	// streamQueries is the number of queries after which a connection takes no more. A busy connection reaches it in
	// seconds; an ordinary one is retired by age.
	streamQueries = 1 << 16
	// maxBurst is how many simultaneous queries go to one connection: they share a write, and their answers a read.
	// On a server that answers serially the last one waits for all look-ups before it, hence the limit.
	maxBurst = 16
	// yieldThreshold is the number of pending queries on a connection from which it pays to yield to the scheduler
	// before a write, so that others can add theirs. With fewer there are none to wait for.
	yieldThreshold = 4
)

// streamPool is the TCP or TLS side of a server: few connections with many calls on each (RFC 7766,
// section 6.2.1.1). One lock guards the pool and its connections; nothing blocks while it is held.
type streamPool struct {
	path *path
	dial Dialer

	mu     sync.Mutex
	closed bool
	conns  []*streamConn
	clock  clock
}

func newStreamPool(p *path, dial Dialer) *streamPool {
	pool := &streamPool{path: p, dial: dial}
	pool.clock.round = pool.round
	return pool
}

// submit puts c on a connection, which may be one that is still being opened.
func (p *streamPool) submit(c *call) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		c.finish(nil, observe.Reset, errPoolClosed, time.Now())
		return
	}
	conn := p.choose(c)
	if conn == nil {
		p.mu.Unlock()
		c.finish(nil, observe.Unreachable, errTooManyQueries, time.Now())
		return
	}
	conn.add(c)
	p.clock.wakeBy(c.expire)
	if conn.raw == nil || conn.flushing {
		// Either nothing is open yet, or it is TLS, whose writes may block, or another goroutine will write this too.
		first := !conn.flushing
		conn.flushing = true
		p.mu.Unlock()
		if first {
			conn.wakeWriter()
		}
		return
	}
	conn.flushing = true
	alone := conn.busy < yieldThreshold
	p.mu.Unlock()
	if !alone {
		// Let those run that are about to ask, too: their questions share the system call.
		runtime.Gosched()
	}
	conn.flush()
}

// choose returns the connection for c: the one with the fewest queries among those that are not late, else a late one
// whose answers have arrived, else a new one, and at the limit the one with the fewest queries. p.mu is held.
func (p *streamPool) choose(c *call) *streamConn {
	limit := p.path.server.config.MaxConns
	if c.probe {
		return p.openForProbe(c.start)
	}
	lateAfter := p.lateAfter()
	var prompt, any, late, last *streamConn
	joining := false // prompt has a burst to join
	open := 0
	for _, conn := range p.conns {
		if !conn.retired && (conn.tooOld(c.start) || conn.idleFor(c.start) >= p.path.server.config.Expire) {
			conn.retire()
		}
		if conn.retired {
			continue
		}
		open++
		if !conn.room() {
			continue
		}
		if conn.carries(c.before) {
			last = conn
			continue
		}
		if any == nil || conn.busy < any.busy {
			any = conn
		}
		if c.younger != nil && !conn.born.After(c.younger.born) {
			continue
		}
		if conn.late(c.start, lateAfter) {
			if late == nil || conn.busy < late.busy {
				late = conn
			}
			continue
		}
		switch joins := conn.unsent > 0 && conn.unsent < maxBurst; {
		case joining && !joins:
		case prompt == nil, joins && !joining, conn.busy < prompt.busy:
			prompt, joining = conn, joins
		}
	}
	p.sweep()
	// A server that closes a connection after few answers would make many that are asked again on one connection
	// wait for their turn to be the next few.
	apart := c.younger != nil && c.younger.answers < maxBurst && open < limit
	switch {
	case prompt != nil && (!apart || prompt.busy == 0):
		return prompt
	case late != nil && late.unread():
		// The answers have arrived, and this process was not scheduled: another connection would not be faster.
		return late
	case open < limit:
		if conn := p.open(c.start); conn != nil {
			return conn
		}
	}
	switch {
	case prompt != nil:
		return prompt
	case any != nil:
		return any
	}
	return last
}

// openForProbe starts a new connection even at the limit: a probe asks whether the server can be reached now, and the
// existing ones may all be stuck. A connection above the limit carries only the probe. p.mu is held.
func (p *streamPool) openForProbe(now time.Time) *streamConn {
	open := 0
	for _, conn := range p.conns {
		if !conn.retired {
			open++
		}
	}
	conn := p.open(now)
	if conn != nil && open >= p.path.server.config.MaxConns {
		conn.retire()
	}
	return conn
}

// lateAfter is the age of its oldest query from which a connection is late.
func (p *streamPool) lateAfter() time.Duration {
	base, known := p.path.rtt.base()
	if !known {
		return lateUnknown
	}
	return max(lateBase, lateFactor*base)
}

// open starts a new connection; it returns nil at the limit. p.mu is held.
func (p *streamPool) open(now time.Time) *streamConn {
	// Retired connections are on their way out, within the time of one call. Were they counted,
	// they would keep new ones from taking their place.
	if len(p.conns) > 2*p.path.server.config.MaxConns {
		return nil
	}
	conn := newStreamConn(p, now)
	if !p.path.server.run(conn.run) {
		return nil
	}
	p.conns = append(p.conns, conn)
	p.clock.wakeBy(conn.retireAt)
	return conn
}

// silentTo is about the connection of c, which may lead nowhere while others work.
func (p *streamPool) silentTo(c *call) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return c.conn != nil && c.conn.heard.Before(c.start)
}

// sweep closes connections that are retired and carry no call. p.mu is held.
func (p *streamPool) sweep() {
	for i := len(p.conns) - 1; i >= 0; i-- {
		if conn := p.conns[i]; conn.retired && conn.busy == 0 {
			conn.shut()
		}
	}
}

// trim closes an idle connection above MaxIdle. It runs with p.mu held.
func (p *streamPool) trim() {
	limit := p.path.server.config.MaxIdle
	if limit == 0 {
		return
	}
	var idlest *streamConn
	idle := 0
	for _, conn := range p.conns {
		if conn.busy == 0 && !conn.retired {
			idle++
			if idlest == nil || conn.idleSince.Before(idlest.idleSince) {
				idlest = conn
			}
		}
	}
	if idle > limit {
		idlest.shut()
	}
}

// round ends expired calls, and connections that are stuck, old or idle for too long.
func (p *streamPool) round(now time.Time) {
	var expired []*call
	var broken []brokenConn
	p.mu.Lock()
	next := time.Time{}
	for i := len(p.conns) - 1; i >= 0; i-- {
		conn := p.conns[i]
		overdue := conn.expired(now)
		expired = append(expired, overdue...)
		switch {
		case conn.silentTo(overdue):
			// Not a sound since: the other end is gone, or never was there.
			b := conn.broken(observe.Timeout, errSilent, nil)
			b.counted = true
			broken = append(broken, b)
			continue
		case conn.stuck(now):
			broken = append(broken, conn.broken(observe.Reset, errStuck, nil))
			continue
		case len(overdue) > 0, conn.tooOld(now):
			conn.retire()
		}
		if conn.busy == 0 && (conn.retired || now.Sub(conn.idleSince) >= p.path.server.config.Expire) {
			conn.shut()
			continue
		}
		next = earlierOf(next, conn.nextDue())
	}
	p.clock.rest(next, now)
	p.mu.Unlock()

	if slices.ContainsFunc(expired, func(c *call) bool { return p.path.silentSince(c.start) }) {
		p.path.failed(now)
	}
	for _, c := range expired {
		c.finish(nil, observe.Timeout, errSilent, now)
	}
	for _, b := range broken {
		b.finish(now)
	}
}

// close ends all connections with their calls.
func (p *streamPool) close() {
	p.mu.Lock()
	p.closed = true
	p.clock.stop()
	var broken []brokenConn
	for i := len(p.conns) - 1; i >= 0; i-- {
		broken = append(broken, p.conns[i].broken(observe.Reset, errPoolClosed, nil))
	}
	p.mu.Unlock()
	now := time.Now()
	for _, b := range broken {
		b.finish(now)
	}
}

func (p *streamPool) load() (conns, waiting int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		waiting += conn.busy
	}
	return len(p.conns), waiting
}

package upstream

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// attemptsMost is the most attempts of a question that GroupConfig.MaxAttempts may ask for.
const attemptsMost = 16

// Group answers questions with a set of servers. It is safe for concurrent use.
type Group struct {
	registry *Registry
	config   GroupConfig // with defaults
	servers  []*server
	hedges   *allowance    // for attempts that are late
	retries  *allowance    // for attempts that were given up on a path that answers others
	turn     atomic.Uint32 // of RoundRobin

	waiting atomic.Int64 // questions in Exchange
	spare   sync.Pool    // of *flight
	seed    maphash.Seed // of flights' hashes

	mu      sync.Mutex
	closed  bool
	users   int // Exchange calls and flights of their own
	flights map[uint64]*flight
}

func newGroup(r *Registry, c GroupConfig) *Group {
	c.Budget = cmp.Or(c.Budget, DefaultBudget)
	if c.MaxAttempts == 0 {
		c.MaxAttempts = max(2*len(c.Servers), 4)
	}
	c.MaxAttempts = min(c.MaxAttempts, attemptsMost)
	return &Group{
		registry: r, config: c, hedges: newAllowance(hedgeIncome), retries: newAllowance(retryIncome),
		seed: maphash.MakeSeed(), flights: make(map[uint64]*flight),
	}
}

// Exchange is ExchangeInto with a new Answer.
func (g *Group) Exchange(ctx context.Context, query Query) (a Answer, err error) {
	err = g.ExchangeInto(ctx, query, &a)
	return a, err
}

// ExchangeInto asks the group's servers and returns when there is an answer, the budget is used up or ctx ends. The
// error is an *Error, and answer is unchanged then. An Answer is large and the stacks of waiting goroutines are
// small, so it is not passed by value.
//
// Equal queries share a flight, unless the flight has used half of its budget: a new client would then not have a
// fair chance. A client that leaves ends the flight only if no other client waits for it.
func (g *Group) ExchangeInto(ctx context.Context, query Query, answer *Answer) error {
	start := time.Now()
	f := g.newFlight(query.Proto, start)
	if err := f.q.pack(query.Msg); err != nil {
		g.recycle(f)
		return &Error{Cause: CauseInvalid, Err: err}
	}
	if err := g.admit(); err != nil {
		g.recycle(f)
		return err
	}
	if f.q.shareable {
		f.key = f.q.key(f.key[:0])
		f.hash = maphash.Bytes(g.seed, f.key)
	}
	g.mu.Lock()
	if g.closed {
		g.mu.Unlock()
		g.dismiss()
		g.recycle(f)
		return &Error{Cause: CauseClosed, Err: ErrClosed}
	}
	g.users++
	leader := g.enlist(f)
	g.mu.Unlock()
	defer g.leave()
	if leader != nil {
		g.recycle(f)
		return g.follow(ctx, leader, query, answer)
	}
	return g.lead(ctx, f, query, answer)
}

// enlist registers f for later clients, or returns the flight to follow. g.mu is held.
func (g *Group) enlist(f *flight) *flight {
	if !f.q.shareable {
		return nil
	}
	other := g.flights[f.hash]
	switch {
	case other == nil:
	case !bytes.Equal(other.key, f.key):
		return nil // two questions with one hash: the second stays unknown
	case f.start.Before(other.closes):
		other.followers++
		if other.done == nil {
			other.done = make(chan struct{})
		}
		return other
	default:
		other.listed = false
	}
	g.flights[f.hash] = f
	f.listed = true
	return nil
}

// lead performs the exchange and shares the answer with coalesced queries.
func (g *Group) lead(ctx context.Context, f *flight, query Query, answer *Answer) error {
	f.begin(ctx.Done() == nil)
	if f.run(ctx) {
		err := f.answerFor(query, false, answer)
		if f.private {
			g.recycle(f)
		}
		return err
	}
	start := f.start
	g.mu.Lock()
	if f.followers > 0 {
		g.users++
		go func() {
			defer g.leaveQuietly()
			f.run(context.Background())
		}()
		g.mu.Unlock()
	} else {
		g.forget(f)
		g.mu.Unlock()
		abandonAll(f.calls, f.results)
	}
	return &Error{Cause: CauseCanceled, Err: context.Cause(ctx), Elapsed: time.Since(start)}
}

// follow waits for the flight that another client leads.
func (g *Group) follow(ctx context.Context, f *flight, query Query, answer *Answer) error {
	start := time.Now()
	// A leader that panics (CoreDNS recovers from it) never reports a result.
	patience := time.NewTimer(g.config.Budget + recheck)
	defer patience.Stop()
	cause, err := CauseTimeout, error(nil)
	select {
	case <-f.done:
		return f.answerFor(query, true, answer)
	case <-patience.C:
	case <-ctx.Done():
		cause, err = CauseCanceled, context.Cause(ctx)
	}
	g.mu.Lock()
	f.followers--
	g.mu.Unlock()
	return &Error{Cause: cause, Err: err, Elapsed: time.Since(start), Report: Report{Shared: true}}
}

// forget removes f, so that no later client joins it. g.mu is held.
func (g *Group) forget(f *flight) {
	if f.listed {
		f.listed = false
		delete(g.flights, f.hash)
	}
}

// admit counts a client's question in, as far as the limits go.
func (g *Group) admit() error {
	if n := g.registry.queries.Add(1); n > int64(g.registry.limits.Queries) {
		g.registry.queries.Add(-1)
		return &Error{Cause: CauseOverloaded, Err: fmt.Errorf("%w: %d are allowed", ErrOverloaded, g.registry.limits.Queries)}
	}
	if n := g.waiting.Add(1); g.config.MaxConcurrent > 0 && n > int64(g.config.MaxConcurrent) {
		g.waiting.Add(-1)
		g.registry.queries.Add(-1)
		return &Error{Cause: CauseOverloaded, Err: fmt.Errorf("%w: %d are allowed", ErrOverloaded, g.config.MaxConcurrent)}
	}
	return nil
}

// dismiss reverts the count of admit.
func (g *Group) dismiss() {
	g.waiting.Add(-1)
	g.registry.queries.Add(-1)
}

func (g *Group) leave() {
	g.dismiss()
	g.leaveQuietly()
}

func (g *Group) leaveQuietly() {
	g.mu.Lock()
	g.users--
	last := g.closed && g.users == 0
	g.mu.Unlock()
	if last {
		g.letGo()
	}
}

// Close refuses new questions and returns. When the last of those under way has ended, within the
// budget, the servers are let go; those that no other group has are closed. Registry.Wait waits for it
// once no Exchange is under way.
func (g *Group) Close() {
	g.mu.Lock()
	last := !g.closed && g.users == 0
	g.closed = true
	g.mu.Unlock()
	if last {
		g.letGo()
	}
}

func (g *Group) letGo() {
	g.registry.mu.Lock()
	defer g.registry.mu.Unlock()
	g.registry.release(g.servers)
}

// order returns the paths for a query that arrived over proto, best first: by health, then by policy; among unhealthy
// ones the path with the latest answer first.
func (g *Group) order(paths []*path, proto observe.Proto, now time.Time) (list []*path, allDown bool) {
	n := len(g.servers)
	first := 0
	if n > 1 && g.config.Policy == RoundRobin {
		first = int(g.turn.Add(1)-1) % n
	}
	allDown = true
	troubled := false
	for i := range n {
		p := g.pathOf(g.servers[(first+i)%n], proto)
		s := p.trust(now)
		allDown = allDown && s == down
		troubled = troubled || s != healthy
		paths = append(paths, p)
	}
	if n > 1 && g.config.Policy == Random {
		rand.Shuffle(n, func(i, j int) { paths[i], paths[j] = paths[j], paths[i] })
	}
	if n > 1 && troubled {
		slices.SortStableFunc(paths, func(a, b *path) int {
			sa, sb := a.state.Load(), b.state.Load()
			if sa != sb || healthState(sa) == healthy {
				return cmp.Compare(sa, sb)
			}
			return cmp.Compare(b.lastAnswer.Load(), a.lastAnswer.Load())
		})
	}
	return paths, allDown
}

func (g *Group) pathOf(s *server, client observe.Proto) *path {
	datagram := client == observe.UDP
	switch {
	case s.datagram == nil || g.config.ForceTCP:
		datagram = false
	case g.config.PreferUDP:
		datagram = true
	}
	if datagram {
		return s.datagram
	}
	return s.stream
}

// ServerStatus is the state of one path, for the API and for metrics.
type ServerStatus struct {
	Upstream    string
	Proto       observe.Proto
	Standing    string        // healthy, doubtful or down
	Smoothed    time.Duration // round-trip time; 0: unknown
	Late        time.Duration // after which an attempt counts as late
	LastAnswer  time.Time     // zero: never
	Connections int           // or sockets
	Waiting     int           // exchanges
}

// Status lists the paths that this group uses for clients, in order of configuration.
func (g *Group) Status() []ServerStatus {
	var list []ServerStatus
	for _, s := range g.servers {
		for _, p := range s.paths() {
			status := ServerStatus{
				Upstream: s.name, Proto: p.proto, Standing: healthState(p.state.Load()).String(),
				Smoothed: p.rtt.smoothed(), Late: p.rtt.late(),
			}
			if at := p.lastAnswer.Load(); at != 0 {
				status.LastAnswer = processStart.Add(time.Duration(at))
			}
			status.Connections, status.Waiting = p.pool.load()
			list = append(list, status)
		}
	}
	return list
}

package upstream

import (
	"cmp"
	"context"
	"fmt"
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
	hedges   *allowance
	turn     atomic.Uint32 // of RoundRobin

	waiting atomic.Int64 // questions in Exchange
	timers  sync.Pool    // of stopped *time.Timer

	mu      sync.Mutex
	closed  bool
	users   int // Exchange calls and flights of their own
	flights map[string]*flight
}

func newGroup(r *Registry, c GroupConfig) *Group {
	c.Budget = cmp.Or(c.Budget, DefaultBudget)
	if c.MaxAttempts == 0 {
		c.MaxAttempts = max(2*len(c.Servers), 4)
	}
	c.MaxAttempts = min(c.MaxAttempts, attemptsMost)
	g := &Group{registry: r, config: c, hedges: newAllowance(), flights: make(map[string]*flight)}
	g.timers.New = func() any {
		t := time.NewTimer(time.Hour)
		t.Stop()
		return t
	}
	return g
}

// Exchange asks the group's servers and returns when there is an answer, the budget is used up or ctx
// ends. The error is an *Error.
//
// Questions that are equal share a flight, but for one that has used half of its budget: who comes
// then would not have a fair chance. A client that leaves takes the flight with it only when nobody
// else waits.
func (g *Group) Exchange(ctx context.Context, query Query) (Answer, error) {
	start := time.Now()
	q, err := newQuestion(query.Msg)
	if err != nil {
		return Answer{}, &Error{Cause: CauseInvalid, Err: err}
	}
	if err := g.enter(); err != nil {
		return Answer{}, err
	}
	defer g.leave()

	var f *flight
	g.mu.Lock()
	if q.shareable {
		var room [128]byte
		key := q.key(room[:0])
		if f = g.flights[string(key)]; f != nil && start.Before(f.closes) {
			f.followers++
			if f.done == nil {
				f.done = make(chan struct{})
			}
			g.mu.Unlock()
			return g.follow(ctx, f, query, start)
		}
		f = newFlight(g, q, query.Proto, start)
		f.key = string(key)
		g.flights[f.key] = f
	} else {
		f = newFlight(g, q, query.Proto, start)
	}
	g.mu.Unlock()
	return g.lead(ctx, f, query, start)
}

// lead makes the exchange for everybody who asks the same.
func (g *Group) lead(ctx context.Context, f *flight, query Query, start time.Time) (Answer, error) {
	f.begin(start)
	if f.run(ctx) {
		return f.answerFor(query, f.msg, false)
	}
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
		f.abandon()
	}
	return Answer{}, &Error{Cause: CauseCanceled, Err: context.Cause(ctx), Elapsed: time.Since(start)}
}

// follow waits for the flight that another client leads.
func (g *Group) follow(ctx context.Context, f *flight, query Query, start time.Time) (Answer, error) {
	select {
	case <-f.done:
		return f.answerFor(query, nil, true)
	case <-ctx.Done():
	}
	g.mu.Lock()
	f.followers--
	g.mu.Unlock()
	return Answer{}, &Error{Cause: CauseCanceled, Err: context.Cause(ctx), Elapsed: time.Since(start), Report: Report{Shared: true}}
}

// forget makes f unknown to those who come later. It runs with g.mu held.
func (g *Group) forget(f *flight) {
	if f.key != "" && g.flights[f.key] == f {
		delete(g.flights, f.key)
	}
}

// enter admits a client's question.
func (g *Group) enter() error {
	if n := g.registry.queries.Add(1); n > int64(g.registry.limits.Queries) {
		g.registry.queries.Add(-1)
		return &Error{Cause: CauseOverloaded, Err: fmt.Errorf("%w: %d are allowed", ErrOverloaded, g.registry.limits.Queries)}
	}
	if n := g.waiting.Add(1); g.config.MaxConcurrent > 0 && n > int64(g.config.MaxConcurrent) {
		g.waiting.Add(-1)
		g.registry.queries.Add(-1)
		return &Error{Cause: CauseOverloaded, Err: fmt.Errorf("%w: %d are allowed", ErrOverloaded, g.config.MaxConcurrent)}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		g.waiting.Add(-1)
		g.registry.queries.Add(-1)
		return &Error{Cause: CauseClosed, Err: ErrClosed}
	}
	g.users++
	return nil
}

func (g *Group) leave() {
	g.waiting.Add(-1)
	g.registry.queries.Add(-1)
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

// order lists the paths for a question of a client that uses proto, best first: by standing, then by
// policy; among those in trouble by hope, which is who answered last.
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
			sa, sb := a.standing.Load(), b.standing.Load()
			if sa != sb || standing(sa) == healthy {
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
	Smoothed    time.Duration // round-trip time; 0: none known
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
				Upstream: s.name, Proto: p.proto, Standing: standing(p.standing.Load()).String(),
				Smoothed: p.rtt.smoothed(), Late: p.rtt.late(),
			}
			if at := p.lastAnswer.Load(); at != 0 {
				status.LastAnswer = time.Unix(0, at)
			}
			status.Connections, status.Waiting = p.pool.load()
			list = append(list, status)
		}
	}
	return list
}

package upstream

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"localcache.dev/localcache/internal/observe"
)

// DefaultQueries is the default of Limits.Queries.
const DefaultQueries = 8192

// Limits bounds what all groups of a Registry, and each of its servers, may use.
type Limits struct {
	// Queries is how many clients' queries may wait at once, coalesced ones included. One costs about 4 KiB, stack
	// and messages together. 0 means DefaultQueries.
	Queries int
	// Sockets is how many UDP sockets one server may have; beyond it, attempts fail. 0 means 1024.
	Sockets int
}

// Registry owns the servers of a process. It is made once and handed from one configuration to the
// next.
type Registry struct {
	limits   Limits
	recorder observe.Recorder
	dial     Dialer
	queries  atomic.Int64

	mu      sync.Mutex
	servers map[ServerConfig]*server // the key has no TLS: TLSName stands for it
	closing sync.WaitGroup
}

// NewRegistry returns a Registry without servers, with the real Dialer. recorder may be nil.
func NewRegistry(limits Limits, recorder observe.Recorder) *Registry {
	return NewRegistryWithDialer(limits, recorder, NewDialer())
}

// NewRegistryWithDialer is NewRegistry with another way to open sockets.
func NewRegistryWithDialer(limits Limits, recorder observe.Recorder, dial Dialer) *Registry {
	limits.Queries = cmp.Or(limits.Queries, DefaultQueries)
	limits.Sockets = cmp.Or(limits.Sockets, 1024)
	return &Registry{
		limits:   limits,
		recorder: observe.Tee(recorder),
		dial:     dial,
		servers:  make(map[ServerConfig]*server),
	}
}

// Open returns a Group for c. It shares servers that another group has open, with their connections; an address known
// with other settings passes on its estimates and health. So at a reload, open the new group before closing the old
// one.
func (r *Registry) Open(c GroupConfig) (*Group, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	g := newGroup(r, c)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, config := range c.Servers {
		s, err := r.acquire(config.withDefaults())
		if err != nil {
			r.release(g.servers)
			return nil, fmt.Errorf("upstream %s: %w", config.Addr, err)
		}
		g.servers = append(g.servers, s)
	}
	return g, nil
}

// acquire runs with r.mu held.
func (r *Registry) acquire(config ServerConfig) (*server, error) {
	key := config
	key.TLS = nil
	s := r.servers[key]
	if s == nil {
		var err error
		if s, err = newServer(config, r.limits, r.recorder, r.dial); err != nil {
			return nil, err
		}
		for _, other := range r.servers {
			if other.config.Addr == config.Addr && other.config.TLSName == config.TLSName && other.config.Source == config.Source {
				s.inherit(other)
				break
			}
		}
		r.servers[key] = s
	}
	s.refs++
	return s, nil
}

// release drops references to servers and closes unused ones. r.mu is held.
func (r *Registry) release(servers []*server) {
	for _, s := range servers {
		if s.refs--; s.refs == 0 {
			key := s.config
			key.TLS = nil
			delete(r.servers, key)
			r.closing.Go(s.close)
		}
	}
}

// Wait returns when all unused servers are closed and their goroutines have ended.
func (r *Registry) Wait() { r.closing.Wait() }

// Validate returns everything that is wrong with c, joined.
func (c GroupConfig) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if n := len(c.Servers); n == 0 || n > 64 {
		fail("%d upstreams: 1 to 64 are allowed", n)
	}
	for i, s := range c.Servers {
		errs = append(errs, s.Validate())
		if slices.ContainsFunc(c.Servers[:i], func(o ServerConfig) bool { return o.Addr == s.Addr && o.TLSName == s.TLSName }) {
			fail("upstream %s is named twice", s.Addr)
		}
	}
	if c.Policy > Sequential {
		fail("policy %d is not known", c.Policy)
	}
	if c.Budget < 0 {
		fail("budget %s is negative", c.Budget)
	}
	if c.MaxConcurrent < 0 || c.MaxAttempts < 0 {
		fail("a negative limit")
	}
	if slices.Contains(c.Failover, 0) {
		fail("failover on NOERROR would ask on after every answer")
	}
	return errors.Join(errs...)
}

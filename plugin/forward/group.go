package forward

import (
	"time"

	"localcache.dev/localcache/internal/upstream"
)

const (
	// noLimit stands for "never" where a stanza asks for it and the engine wants a duration.
	noLimit = 365 * 24 * time.Hour
	// atOnce stands for expire 0: a connection without a query in flight is not kept.
	atOnce = time.Millisecond
	// allAttempts is as many as the engine makes for one question: max_connect_attempts 0.
	allAttempts = 16
)

var policies = map[Policy]upstream.Policy{
	PolicyRandom:     upstream.Random,
	PolicyRoundRobin: upstream.RoundRobin,
	PolicySequential: upstream.Sequential,
}

// group is the stanza in the engine's terms.
func (c *Config) group() upstream.GroupConfig {
	g := upstream.GroupConfig{
		Policy:        policies[c.Policy],
		ForceTCP:      c.ForceTCP,
		PreferUDP:     c.PreferUDP,
		Budget:        c.Budget(),
		MaxConcurrent: int(c.MaxConcurrent),
		FailFast:      c.FailFast,
		Failover:      c.Failover,
	}
	if n := c.MaxConnectAttempts; n != nil {
		if g.MaxAttempts = int(min(*n, allAttempts)); g.MaxAttempts == 0 {
			g.MaxAttempts = allAttempts
		}
	}
	for _, u := range c.Upstreams {
		g.Servers = append(g.Servers, c.server(u))
	}
	return g
}

func (c *Config) server(u Upstream) upstream.ServerConfig {
	s := upstream.ServerConfig{
		Addr:        u.Addr,
		Source:      c.SourceFor(u),
		Expire:      c.Expire,
		MaxIdle:     c.MaxIdleConns,
		ReadTimeout: c.ReadTimeout,
		Health: upstream.Health{
			MaxFails:    int(c.MaxFails),
			Interval:    c.HealthCheck,
			Domain:      c.ProbeName,
			NoRecursion: c.NoRecursion,
		},
	}
	if s.Expire == 0 {
		s.Expire = atOnce
	}
	switch {
	case c.MaxAge == nil:
		// A connection that may idle for longer than the default is meant to live as long.
		s.MaxAge = max(upstream.DefaultMaxAge, c.Expire)
	case *c.MaxAge == 0:
		s.MaxAge = noLimit
	default:
		s.MaxAge = *c.MaxAge
	}
	if t := c.TLSFor(u); t != nil {
		s.TLS = t
		s.TLSName = t.ServerName + " " + c.TLSDigest
	}
	return s
}

// Budget is the time for one question. A read_timeout above the default says that upstreams are slow and
// that clients wait: it extends the budget, so that the last attempt is not cut off.
func (c *Config) Budget() time.Duration { return max(upstream.DefaultBudget, c.ReadTimeout) }

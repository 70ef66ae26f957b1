// Package upstream exchanges DNS messages with the servers behind the cache.
//
// A Registry owns the servers of a process, one for each distinct ServerConfig, however many forward blocks name it:
// the blocks share its connections, round-trip estimates and health, and a reload that names it again keeps all
// three. A Group is the view of one block: some servers, a policy, a budget.
//
// One question makes one flight, however many clients ask it meanwhile (flight.go). A flight makes attempts. Each is
// a call on one path, and a path is one server over one transport: a pool of connected UDP sockets (datagram.go) or
// of pipelined TCP or TLS connections (stream.go). A call ends exactly once, with an answer, a failure, or the end of
// its wait, and is then reported, even if the flight already has its answer from another call.
//
// There are three time scales. After the path's estimate (in the style of RFC 6298) an attempt is late: another
// server, or another connection to the only one, is asked as well, as far as the hedge allowance permits or if the
// silent path is in doubt. After a multiple of the estimate the attempt is given up: the next one needs no allowance.
// The flight ends with the budget. Until then an answer to any attempt counts.
//
// A path that fails, or owes an answer and stays silent, is in doubt: other paths are preferred, and probes find out
// whether it is back. If all are in doubt, the one with the latest answer is tried first.
//
// Everything is bounded (Limits): queries in flight, attempts for a question, queries on a connection, connections
// and sockets of a server, octets of a partial answer and the time that it may take.
package upstream

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// Defaults of a ServerConfig and of GroupConfig.
const (
	// DefaultExpire is how long an idle connection is kept (CoreDNS's default for expire).
	DefaultExpire = 10 * time.Second
	// DefaultMaxAge is the age at which a connection takes no more queries, so that load moves to new replicas of
	// kube-dns. Each connection gets up to a quarter less, at random, so that they do not all end at once.
	DefaultMaxAge = 30 * time.Second
	// DefaultReadTimeout is how long one attempt waits for its answer before it counts as a timeout.
	DefaultReadTimeout = 2 * time.Second
	// DefaultBudget is the time for one query with all its attempts. musl gives up on a server after 2.5 s, glibc and
	// Go after 5 s: an answer, even SERVFAIL, must arrive before that. 200 ms remain for the rest of the way.
	DefaultBudget = 2300 * time.Millisecond
	// DefaultHealthInterval is the time between two probes of a path in doubt.
	DefaultHealthInterval = 500 * time.Millisecond
	// DefaultMaxFails is the number of consecutive failures after which a path is down.
	DefaultMaxFails = 2
	// DefaultMaxConns is how many stream connections one server gets. CoreDNS serves a TCP connection serially, so
	// this is also how many slow names it can look up at once.
	DefaultMaxConns = 16
)

// ServerConfig says how one upstream is reached and judged. Equal configurations, TLS aside, share one server of the
// Registry.
type ServerConfig struct {
	// Addr is the server's address; a zone is allowed.
	Addr netip.AddrPort
	// TLS, if set, makes the server speak DNS over TLS (RFC 7858) only. ServerName must be set. Configurations with
	// the same TLSName count as equal.
	TLS *tls.Config
	// TLSName identifies TLS: server name and the files that made it. Required with TLS.
	TLSName string
	// Source is the local address to use; the kernel chooses if it is invalid.
	Source netip.Addr
	// Expire closes connections after this idle time. 0 means DefaultExpire.
	Expire time.Duration
	// MaxAge is the longest time for which a connection takes queries. 0 means DefaultMaxAge.
	MaxAge time.Duration
	// MaxIdle is how many idle connections and how many idle sockets are kept. 0: all, within MaxConns.
	MaxIdle int
	// MaxConns is how many stream connections may be open. 0 means DefaultMaxConns; at most 64.
	MaxConns int
	// ReadTimeout is how long one attempt waits for its answer. 0 means DefaultReadTimeout.
	ReadTimeout time.Duration
	// Health says how the server is judged.
	Health Health
}

// Health says when a server is down and how it is probed.
type Health struct {
	// MaxFails is the number of consecutive failures after which a path is down. 0: never in doubt, never probed, as
	// max_fails 0 in CoreDNS. NewHealth sets the default.
	MaxFails int
	// Interval is the time between two probes of a path in doubt. 0 means DefaultHealthInterval.
	Interval time.Duration
	// Domain is the name that a probe asks for, with type NS. "" means the root.
	Domain string
	// NoRecursion clears the RD bit of probes.
	NoRecursion bool
}

// NewHealth returns the default judgement.
func NewHealth() Health {
	return Health{MaxFails: DefaultMaxFails, Interval: DefaultHealthInterval, Domain: "."}
}

// Validate returns everything that is wrong with c, joined.
func (c ServerConfig) Validate() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !c.Addr.IsValid() || c.Addr.Port() == 0 || c.Addr.Addr().IsUnspecified() || c.Addr.Addr().IsMulticast() {
		fail("upstream %s is not the address of a server", c.Addr)
	}
	if c.TLS != nil && c.TLSName == "" {
		fail("upstream %s: a TLS configuration needs a name that identifies it", c.Addr)
	}
	if c.TLS == nil && c.TLSName != "" {
		fail("upstream %s: TLS %q without a configuration", c.Addr, c.TLSName)
	}
	if c.Source.IsValid() && c.Addr.IsValid() && c.Source.Unmap().Is4() != c.Addr.Addr().Unmap().Is4() {
		fail("upstream %s cannot be reached from source address %s: IPv4 and IPv6", c.Addr, c.Source)
	}
	if c.Expire < 0 || c.MaxAge < 0 || c.ReadTimeout < 0 || c.Health.Interval < 0 {
		fail("upstream %s: a negative duration", c.Addr)
	}
	if c.MaxIdle < 0 || c.MaxConns < 0 || c.Health.MaxFails < 0 {
		fail("upstream %s: a negative limit", c.Addr)
	}
	if c.MaxConns > 64 {
		fail("upstream %s: %d connections, at most 64 are allowed", c.Addr, c.MaxConns)
	}
	if !c.Health.validDomain() {
		fail("upstream %s: health check domain %q is not a domain name", c.Addr, c.Health.Domain)
	}
	return errors.Join(errs...)
}

// withDefaults replaces zero values by the defaults. The result, without TLS, is the key of a server.
func (c ServerConfig) withDefaults() ServerConfig {
	if c.Expire == 0 {
		c.Expire = DefaultExpire
	}
	if c.MaxAge == 0 {
		c.MaxAge = DefaultMaxAge
	}
	if c.ReadTimeout == 0 {
		c.ReadTimeout = DefaultReadTimeout
	}
	if c.MaxConns == 0 {
		c.MaxConns = DefaultMaxConns
	}
	if c.Health.Interval == 0 {
		c.Health.Interval = DefaultHealthInterval
	}
	if c.Health.Domain == "" {
		c.Health.Domain = "."
	}
	c.Health.Domain = strings.ToLower(c.Health.Domain)
	return c
}

// Policy is the order in which healthy servers are tried.
type Policy uint8

// The policies, as CoreDNS names them.
const (
	Random Policy = iota
	RoundRobin
	Sequential
)

// GroupConfig is one forward block's use of servers.
type GroupConfig struct {
	Servers []ServerConfig // 1 to 64
	Policy  Policy
	// ForceTCP asks over TCP whatever the client used; PreferUDP over UDP. ForceTCP wins. Without both, the client's
	// transport is used. A server with TLS is always asked over TLS.
	ForceTCP, PreferUDP bool
	// Budget is the time for one query. 0 means DefaultBudget.
	Budget time.Duration
	// MaxConcurrent is how many clients' queries may wait at once; 0: only Limits.Queries applies.
	MaxConcurrent int
	// MaxAttempts is how many attempts one query gets. 0 means twice the number of servers, at least 4; never more
	// than 16. Attempts that the protocol requires come in addition: TCP after a truncated answer, no EDNS after
	// FORMERR, a new connection after a stale one.
	MaxAttempts int
	// FailFast fails a question at once when all servers are down.
	FailFast bool
	// Failover lists RCODEs after which the next server is asked. The last such answer is returned if all servers
	// gave one.
	Failover []int
}

// Query is what a client asked.
type Query struct {
	// Msg is the query as received. It is neither changed nor kept.
	Msg *dns.Msg
	// Proto is the client's transport.
	Proto observe.Proto
}

// Answer is an upstream's answer made out for one client.
type Answer struct {
	// Msg belongs to the caller: ID and question are the client's, to the case of its letters, and
	// there is an OPT record only if the query had one.
	Msg *dns.Msg
	// Exchange is the attempt that brought it.
	Exchange observe.Exchange
	Report
}

// Report describes how a query was handled.
type Report struct {
	// Attempts lists all attempts, the one that answered included, in order of their start; it is
	// nil where the first attempt answered. All clients of a flight share it: read only.
	Attempts []Attempt
	// Shared is true for a client that joined the exchange of another.
	Shared bool
	// AllDown is true if every server was down when the query arrived.
	AllDown bool
}

// Attempt is one exchange from the flight's point of view.
type Attempt struct {
	Start    time.Time
	Upstream string
	Proto    observe.Proto
	Outcome  observe.Outcome // Timeout also where no answer had come when the flight ended
	// Overtaken is true if the attempt was still under way when another one answered.
	Overtaken bool
	Rcode     int
	Duration  time.Duration
	Hedge     bool
	Reused    bool
	Err       string
}

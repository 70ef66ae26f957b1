// Package upstream exchanges DNS messages with the servers behind the cache.
//
// A Registry owns the servers of a process, one for each distinct ServerConfig, however many forward
// blocks name it: they share its connections, its round-trip estimates and its health, and a reload
// that names it again keeps all three. A Group is one block's view: some servers, a policy, a budget.
//
// One question makes one flight, whoever asks it in the meantime (flight.go). A flight makes attempts,
// each a call on one path, and a path is one server over one transport: a pool of connected UDP
// sockets (datagram.go) or of pipelined TCP or TLS connections (stream.go). A call ends exactly once:
// with an answer, a failure, or the end of its wait, and then it is reported, also when the flight has
// its answer from elsewhere and nobody waits for the call any more.
//
// Time runs on three scales. After the path's estimate (RFC 6298 style) an attempt is late: another
// server, or another connection of the only one, is asked as well, as far as the hedge allowance goes
// or the silent path is in doubt. After a few times the estimate the attempt is given up: the next one
// is made without asking the allowance. The whole ends with the budget. An answer to any attempt
// counts until then.
//
// A path that fails, or stays silent while it owes an answer, is in doubt: others are preferred, and
// probes ask whether it is back. When all are in doubt they are tried in order of hope.
//
// Everything is bounded (Limits): questions in flight, attempts a question, queries on a connection,
// connections and sockets a server, bytes of a partial answer and the time it may take.
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
	// DefaultMaxAge is after what time a connection takes no more questions, so that load follows
	// kube-dns when it gains replicas. Each connection gets up to a quarter less, at random, so
	// that they do not all go at once.
	DefaultMaxAge = 30 * time.Second
	// DefaultReadTimeout is how long one attempt waits for its answer before it counts as a timeout.
	DefaultReadTimeout = 2 * time.Second
	// DefaultBudget is the time for one question with all its attempts. musl gives up on a server
	// after 2.5 s, glibc and Go after 5 s: an answer, be it SERVFAIL, has to come before. 200 ms
	// remain for the rest of the way.
	DefaultBudget = 2300 * time.Millisecond
	// DefaultHealthInterval is the time between two probes of a path in doubt.
	DefaultHealthInterval = 500 * time.Millisecond
	// DefaultMaxFails is after how many failures in a row a path is down.
	DefaultMaxFails = 2
	// DefaultMaxConns is how many stream connections one server gets. CoreDNS serves a TCP
	// connection serially, so it is also how many slow names may be looked up there at once.
	DefaultMaxConns = 16
)

// ServerConfig says how one upstream is reached and judged. Equal configurations, but for TLS, share
// one server of the Registry.
type ServerConfig struct {
	// Addr is the server's address; a zone is allowed.
	Addr netip.AddrPort
	// TLS, where set, makes the server speak DNS over TLS (RFC 7858) and nothing else. It has
	// ServerName set. Configurations with the same TLSName are taken for the same.
	TLS *tls.Config
	// TLSName identifies TLS: server name and the files that made it. Required with TLS.
	TLSName string
	// Source is the local address to use; the kernel's choice where it is not valid.
	Source netip.Addr
	// Expire closes connections that were idle for so long. 0 stands for DefaultExpire.
	Expire time.Duration
	// MaxAge is the longest time for which a connection takes questions. 0 stands for DefaultMaxAge.
	MaxAge time.Duration
	// MaxIdle is how many idle connections and how many idle sockets are kept. 0: as many as came
	// about, within MaxConns.
	MaxIdle int
	// MaxConns is how many stream connections may be open. 0 stands for DefaultMaxConns; at most 64.
	MaxConns int
	// ReadTimeout is how long one attempt waits for its answer. 0 stands for DefaultReadTimeout.
	ReadTimeout time.Duration
	// Health says how the server is judged.
	Health Health
}

// Health says when a server is down and how it is probed.
type Health struct {
	// MaxFails is after how many failures in a row a path is down. 0: never in doubt, never probed,
	// as with max_fails 0 in CoreDNS. NewHealth has the default.
	MaxFails int
	// Interval is the time between two probes of a path in doubt. 0 stands for DefaultHealthInterval.
	Interval time.Duration
	// Domain is the name a probe asks for, with type NS. "" stands for the root.
	Domain string
	// NoRecursion clears the RD bit of probes.
	NoRecursion bool
}

// NewHealth returns the default judgement.
func NewHealth() Health {
	return Health{MaxFails: DefaultMaxFails, Interval: DefaultHealthInterval, Domain: "."}
}

// Validate says what is wrong with c, all of it at once.
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

// withDefaults fills what is zero. The result is the key of a server, less TLS.
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
	// ForceTCP asks over TCP whatever the client used; PreferUDP over UDP. ForceTCP wins. Without
	// both the client's transport is used. A server with TLS is always asked over TLS.
	ForceTCP, PreferUDP bool
	// Budget is the time for one question. 0 stands for DefaultBudget.
	Budget time.Duration
	// MaxConcurrent is how many questions of clients may wait at once; 0: only Limits.Queries.
	MaxConcurrent int
	// MaxAttempts is how many attempts one question gets. 0 stands for twice the number of servers,
	// at least 4; at most 16 in any case. Attempts that the protocol asks for come on top: TCP after
	// a truncated answer, no EDNS after FORMERR, a fresh connection after a stale one.
	MaxAttempts int
	// FailFast fails a question at once when all servers are down.
	FailFast bool
	// Failover lists RCODEs after which the next server is asked. The last such answer is returned
	// when all servers gave one.
	Failover []int
}

// Query is what a client asked.
type Query struct {
	// Msg is the query as it came. It is neither changed nor kept.
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

// Report is how a question fared.
type Report struct {
	// Attempts lists all attempts, the one that answered included, in order of their start; it is
	// nil where the first attempt answered. All clients of a flight share it: read only.
	Attempts []Attempt
	// Shared is true for a client that joined the exchange of another.
	Shared bool
	// AllDown is true where every server was down when the question came.
	AllDown bool
}

// Attempt is one exchange as its flight saw it.
type Attempt struct {
	Start    time.Time
	Upstream string
	Proto    observe.Proto
	Outcome  observe.Outcome // Timeout also where no answer had come when the flight ended
	// Overtaken is true where it was still under way when another attempt answered.
	Overtaken bool
	Rcode     int
	Duration  time.Duration
	Hedge     bool
	Reused    bool
	Err       string
}

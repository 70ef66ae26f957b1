package forward

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// What holds where a stanza says nothing. They are CoreDNS v1.15's.
const (
	DefaultExpire      = 10 * time.Second
	DefaultMaxFails    = 2
	DefaultReadTimeout = 2 * time.Second
	DefaultHealthCheck = 500 * time.Millisecond
	DefaultProbeName   = "."
)

// MaxUpstreams is the most TO arguments of one stanza. A file or a host name counts as one, whatever it
// expands to.
const MaxUpstreams = 15

// sessionTickets is how many TLS sessions are kept for one upstream.
const sessionTickets = 4

// Policy is the order in which upstreams are preferred. It names the first choice only: an upstream that
// is late is hedged, and one that fails is followed by another, under every policy.
type Policy string

// The policies of the policy property.
const (
	PolicyRandom     Policy = "random"      // a new order for each question
	PolicyRoundRobin Policy = "round_robin" // each upstream in turn
	PolicySequential Policy = "sequential"  // as written
)

// Transport is the protocol that a TO asks for by its scheme.
type Transport string

// The transports that can be spoken. CoreDNS documents https:// and quic:// as well; see parseTo.
const (
	TransportDNS Transport = "dns" // UDP or TCP
	TransportTLS Transport = "tls" // RFC 7858
)

// Upstream is one address that a stanza forwards to.
type Upstream struct {
	Addr       netip.AddrPort
	Transport  Transport
	ServerName string // from tls://IP%NAME; empty: the stanza's tls_servername, or else the address
}

// String is the upstream as metrics, metadata and messages name it: the address without its scheme, as
// CoreDNS does.
func (u Upstream) String() string { return u.Addr.String() }

// Config is one forward stanza. The zero value of a property that was left out is never its default;
// defaults come from newConfig.
type Config struct {
	Where string // file:line of the stanza, for messages

	From   string   // lower case, fully qualified
	Except []string // likewise

	To        []string   // the arguments as written, in their order
	Upstreams []Upstream // what they came out as, each once
	Resolvers []netip.AddrPort

	ForceTCP  bool // wins over PreferUDP
	PreferUDP bool
	Policy    Policy

	Expire             time.Duration  // an idle connection is closed after it; 0 keeps none
	MaxAge             *time.Duration // a connection is replaced after it; 0 sets no limit, nil leaves it to the engine
	MaxIdleConns       int            // 0 sets no limit of its own
	ReadTimeout        time.Duration  // the longest that one attempt waits
	MaxConnectAttempts *uint32        // nil leaves it to the engine; 0 sets no limit
	MaxConcurrent      int64          // 0 sets no limit

	MaxFails    uint32 // 0: never down, never probed
	HealthCheck time.Duration
	NoRecursion bool   // of the probe
	ProbeName   string // of the probe, fully qualified
	FailFast    bool

	Next         []int // rcodes
	NextOnNodata bool
	Failover     []int // rcodes

	TLS           *tls.Config // nil where the stanza has no tls property
	TLSDigest     string      // of the files of the tls property: it changes when their content does
	TLSServerName string

	Source netip.Addr // the zero Addr leaves the choice to the kernel
}

func newConfig(where string) *Config {
	return &Config{
		Where:       where,
		From:        ".",
		Policy:      PolicyRandom,
		Expire:      DefaultExpire,
		MaxFails:    DefaultMaxFails,
		ReadTimeout: DefaultReadTimeout,
		HealthCheck: DefaultHealthCheck,
		ProbeName:   DefaultProbeName,
	}
}

// Validate says what is wrong with properties that are right by themselves but not together. Upstreams
// have to be known.
func (c *Config) Validate() error {
	if len(c.To) > MaxUpstreams {
		return fmt.Errorf("more than %d TOs configured: %d", MaxUpstreams, len(c.To))
	}
	if c.MaxAge != nil && *c.MaxAge > 0 && *c.MaxAge < c.Expire {
		return fmt.Errorf("max_age (%s) must not be less than expire (%s)", *c.MaxAge, c.Expire)
	}
	if len(c.Upstreams) == 0 {
		return errors.New("no valid upstream addresses found: the files named as TO list no nameserver")
	}
	for _, u := range c.Upstreams {
		if u.ServerName != "" && c.TLSServerName != "" {
			return fmt.Errorf("both forward ('%s') and proxy level ('%s') TLS servernames are set for upstream proxy '%s://%s': remove tls_servername or the %%%s",
				c.TLSServerName, u.ServerName, u.Transport, u.Addr, u.ServerName)
		}
	}
	return nil
}

// Warnings are what a Config that is valid will hardly have been meant to say.
func (c *Config) Warnings() []string {
	var w []string
	for _, u := range c.Upstreams {
		if c.Source.IsValid() && !c.SourceFor(u).IsValid() {
			w = append(w, fmt.Sprintf("source_address %s is not used for the upstream %s: one is IPv4, the other IPv6", c.Source, u))
		}
	}
	return w
}

// SourceFor is the local address for connections to u; the zero Addr leaves it to the kernel.
func (c *Config) SourceFor(u Upstream) netip.Addr {
	if c.Source.Is4() != u.Addr.Addr().Is4() {
		return netip.Addr{}
	}
	return c.Source
}

// serverName is what the certificate of u has to name: without a name from the stanza, the address. It is empty
// where u does not speak TLS.
func (c *Config) serverName(u Upstream) string {
	switch {
	case u.Transport != TransportTLS:
		return ""
	case u.ServerName != "":
		return u.ServerName
	case c.TLSServerName != "":
		return c.TLSServerName
	}
	return u.Addr.Addr().WithZone("").String()
}

// TLSFor is the client configuration for u, nil where u does not speak TLS.
func (c *Config) TLSFor(u Upstream) *tls.Config {
	if u.Transport != TransportTLS {
		return nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.TLS != nil {
		t = c.TLS.Clone()
	}
	t.ServerName = c.serverName(u)
	// A resumed session saves the handshake's expensive half. More than one ticket is kept because TLS 1.3
	// tickets are for single use.
	t.ClientSessionCache = tls.NewLRUClientSessionCache(sessionTickets)
	return t
}

package setup

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet"
)

// Default interface names: node-cache's, so that a node which is migrated keeps its link, and our own
// where a Corefile alone asks for an interface.
const (
	DefaultInterface          = "localcache"
	DefaultNodeCacheInterface = "nodelocaldns"
)

// Flags are the flags that affect the Spec, in node-cache's terms. A nil pointer is a flag that was not given, which
// matters if a directive sets the same.
type Flags struct {
	LocalIPs       []netip.Addr
	Interface      *string
	SetupInterface bool
	SetupIPTables  bool
	SkipTeardown   *bool
	SyncInterval   *time.Duration
	HealthPort     *uint16
	Port           uint16 // -dns.port
}

// Config is one setup directive. Zero values are properties that were left out.
type Config struct {
	Where     string // file:line, for messages
	Interface string
	Addresses []netip.Addr
	Notrack   nodenet.Choice
	Fallback  []netip.AddrPort
	// Follow is the Service whose endpoints are the fallback. The servers of Fallback are used until the API server
	// has named an endpoint.
	Follow kube.Service
	Check  time.Duration
	OnExit nodenet.ExitPolicy
}

func (c *Config) hasFallback() bool { return len(c.Fallback) > 0 || c.Follow != kube.Service{} }

// errNothing says that neither flags nor Corefile ask for the node's network to be set up.
var errNothing = errors.New("nothing to set up")

// specOf makes the Spec from the flags, the directive (nil without one) and the rest of the Corefile. The directive
// wins over the flags, because it is more specific, except for -skipteardown, which an operator gives to override it.
func specOf(f Flags, c *Config, listen listening, linkOf func(netip.Addr) string) (nodenet.Spec, error) {
	if c == nil && len(f.LocalIPs) == 0 {
		return nodenet.Spec{}, errNothing
	}
	if c == nil {
		c = &Config{}
	}
	s := nodenet.Spec{
		Interface:       DefaultInterface,
		ManageInterface: f.SetupInterface,
		Addresses:       slices.Clone(f.LocalIPs),
		Port:            f.Port,
		Health:          slices.Clone(listen.health),
		Notrack:         nodenet.ChoiceAuto,
		Fallback:        c.Fallback,
		Check:           nodenet.DefaultCheck,
		OnExit:          nodenet.ExitRemove,
	}
	if len(f.LocalIPs) > 0 {
		s.Interface = DefaultNodeCacheInterface
	}
	if f.Interface != nil {
		s.Interface = *f.Interface
	}
	if c.Interface != "" {
		s.Interface = c.Interface
	}
	for _, a := range c.Addresses {
		if !slices.Contains(s.Addresses, a) {
			s.Addresses = append(s.Addresses, a)
		}
	}
	if len(s.Addresses) == 0 {
		for _, a := range listen.bound {
			if l := linkOf(a); l == "" || l == s.Interface {
				s.Addresses = append(s.Addresses, a)
			}
		}
	}
	if f.HealthPort != nil {
		s.Health = append(s.Health, netip.AddrPortFrom(netip.IPv4Unspecified(), *f.HealthPort))
	}
	if c.Notrack != "" {
		s.Notrack = c.Notrack
	}
	if !f.SetupIPTables {
		s.Notrack = nodenet.ChoiceOff
		if c.hasFallback() {
			return s, fmt.Errorf("%s: fallback needs rules, but -setupiptables=false forbids them", c.Where)
		}
	}
	if f.SyncInterval != nil {
		s.Check = *f.SyncInterval
	}
	if c.Check != 0 {
		s.Check = c.Check
	}
	if c.hasFallback() {
		if s.Notrack == nodenet.ChoiceOff {
			return s, fmt.Errorf("%s: fallback needs rules: it cannot go with notrack off", c.Where)
		}
		s.OnExit = nodenet.ExitKeep
	}
	if c.OnExit != "" {
		s.OnExit = c.OnExit
	}
	if f.SkipTeardown != nil {
		s.OnExit = nodenet.ExitRemove
		if *f.SkipTeardown {
			s.OnExit = nodenet.ExitKeep
		}
	}
	s.Wildcard = listen.wildcard
	if err := s.Validate(); err != nil {
		if c.Where != "" {
			return s, fmt.Errorf("%s: setup: %w", c.Where, err)
		}
		return s, err
	}
	return s, nil
}

package diag

import (
	"errors"
	"fmt"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/observe"
)

const (
	defaultClients = 1024
	// maxClients takes 30 MB, 7 KB each.
	maxClients = 4096
	minSlow    = time.Millisecond
	maxSlow    = time.Minute
	maxListen  = 8
)

// Config holds the directive of one block, or of all together. A property that was not given is zero.
type Config struct {
	Listen    []string // IP:port
	Access    string   // accessToken, accessKubernetes, accessOpen
	TokenFile string
	Slow      time.Duration
	Clients   int
	Redact    *api.Redaction
	Pods      string // podsAutoWord, podsOffWord
	// PodSeries is how many pods have metrics series; 0 for none.
	PodSeries int

	where map[string]string // file:line of each property
}

const (
	accessToken      = "token"
	accessKubernetes = "kubernetes"
	accessOpen       = "open"

	podsAutoWord = "auto"
	podsOffWord  = "off"
)

// Validate checks that the properties fit together.
func (c *Config) Validate() error {
	switch {
	case len(c.Listen) > 0 && c.Access == "":
		return fmt.Errorf("%s: listen needs an access rule: add 'access token FILE', 'access kubernetes', or 'access open' to allow everybody who can reach the address", c.where["listen"])
	case len(c.Listen) == 0 && c.Access != "":
		return fmt.Errorf("%s: access is for an address: add 'listen ADDRESS'. The unix socket is guarded by its mode", c.where["access"])
	case c.PodSeries > 0 && c.Pods == podsOffWord:
		return fmt.Errorf("%s: metrics pods needs to know which pods there are, and 'pods off' at %s forbids that", c.where["metrics"], c.where["pods"])
	case c.PodSeries > 0 && c.redaction() == api.RedactClients:
		return fmt.Errorf("%s: metrics pods shows the names of pods, and 'redact clients' at %s forbids that", c.where["metrics"], c.where["redact"])
	}
	return nil
}

// merge adds the properties of another block.
func (c *Config) merge(o *Config) error {
	var errs []error
	if c.where == nil {
		c.where = map[string]string{}
	}
	take := func(name string, set func(), same bool) {
		at, given := o.where[name]
		if !given {
			return
		}
		if first, twice := c.where[name]; twice {
			if !same {
				errs = append(errs, fmt.Errorf("%s: %s differs from the one at %s: the statistics are those of the node, so the properties of all blocks count together", at, name, first))
			}
			return
		}
		c.where[name] = at
		set()
	}
	take("listen", func() { c.Listen = o.Listen }, equal(c.Listen, o.Listen))
	take("access", func() { c.Access, c.TokenFile = o.Access, o.TokenFile }, c.Access == o.Access && c.TokenFile == o.TokenFile)
	take("slow", func() { c.Slow = o.Slow }, c.Slow == o.Slow)
	take("clients", func() { c.Clients = o.Clients }, c.Clients == o.Clients)
	take("redact", func() { c.Redact = o.Redact }, c.Redact != nil && o.Redact != nil && *c.Redact == *o.Redact)
	take("pods", func() { c.Pods = o.Pods }, c.Pods == o.Pods)
	take("metrics", func() { c.PodSeries = o.PodSeries }, c.PodSeries == o.PodSeries)
	return errors.Join(errs...)
}

func equal(a, b []string) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}

// bounds of the statistics.
func (c *Config) bounds() observe.QueriesOptions {
	o := observe.QueriesOptions{Clients: c.Clients, Slow: c.Slow}
	if o.Clients == 0 {
		o.Clients = defaultClients
	}
	return o
}

func (c *Config) redaction() api.Redaction {
	if c.Redact == nil {
		return api.RedactNone
	}
	return *c.Redact
}

package diag

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"localcache.dev/localcache/internal/api"
)

// setup reads the directive of one block, which gets the handler when all directives are read.
func (p *Plugin) setup(c *caddy.Controller) error {
	cfg, err := parse(c, p.cluster)
	if err != nil {
		return plugin.Error(directive, err)
	}
	in := p.instanceOf(c)
	if err := in.config.merge(cfg); err != nil {
		return plugin.Error(directive, err)
	}
	p.attach(c)
	return nil
}

// Attach gives the block of c the directive without properties, whether it has one or not. It serves the setup of
// another directive of the block, in a program that wants diag in every such block.
func (p *Plugin) Attach(c *caddy.Controller) error {
	p.instanceOf(c)
	p.attach(c)
	return nil
}

func (p *Plugin) attach(c *caddy.Controller) {
	if p.options.Off {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading.context != c.Context() { // of another Corefile, which turned out to be wrong
		p.reading = reading{context: c.Context(), blocks: map[*dnsserver.Config]bool{}}
	}
	p.reading.blocks[dnsserver.GetConfig(c)] = true
}

// reading is the state of parsing one Corefile: its configuration and the blocks that get the handler.
type reading struct {
	context caddy.Context
	blocks  map[*dnsserver.Config]bool
}

// read is called when all directives of a Corefile have been read.
func (p *Plugin) read(context caddy.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading.context != context {
		return nil
	}
	for block := range p.reading.blocks {
		surround(p, block)
	}
	p.reading = reading{}
	return nil
}

// parse reads the directive of one block. It may occur twice, because a start with -localip adds it if it does not
// see it, for example in an imported file.
func parse(c *caddy.Controller, cluster cluster) (*Config, error) {
	all := &Config{}
	for c.Next() {
		cfg := &Config{where: map[string]string{}}
		if args := c.RemainingArgs(); len(args) > 0 {
			return nil, c.Errf("diag takes no arguments, found %q: its properties stand in braces", args[0])
		}
		for c.NextBlock() {
			if err := parseProperty(c, cfg, cluster); err != nil {
				return nil, err
			}
		}
		if err := all.merge(cfg); err != nil {
			return nil, err
		}
	}
	return all, nil
}

func parseProperty(c *caddy.Controller, cfg *Config, cluster cluster) error {
	name := c.Val()
	at := fmt.Sprintf("%s:%d", c.File(), c.Line())
	args := c.RemainingArgs()
	if first, twice := cfg.where[name]; twice {
		return c.Errf("%s is there twice, first at %s", name, first)
	}
	one := func() (string, error) {
		if len(args) != 1 {
			return "", c.Errf("%s takes one argument, found %d", name, len(args))
		}
		return args[0], nil
	}
	switch name {
	case "listen":
		if len(args) == 0 || len(args) > maxListen {
			return c.Errf("listen takes 1 to %d addresses, such as 127.0.0.1:9257, found %d", maxListen, len(args))
		}
		for _, a := range args {
			addr, err := parseListen(a)
			if err != nil {
				return c.Errf("listen %q: %v", a, err)
			}
			if !slices.Contains(cfg.Listen, addr) {
				cfg.Listen = append(cfg.Listen, addr)
			}
		}
	case "access":
		if err := parseAccess(c, cfg, cluster, args); err != nil {
			return err
		}
	case "slow":
		v, err := one()
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(v)
		if err != nil || d < minSlow || d > maxSlow {
			return c.Errf("slow %q: accepted are durations from %v to %v, such as 100ms", v, minSlow, maxSlow)
		}
		cfg.Slow = d
	case "clients":
		v, err := one()
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > maxClients {
			return c.Errf("clients %q: accepted are numbers from 1 to %d", v, maxClients)
		}
		cfg.Clients = n
	case "redact":
		v, err := one()
		if err != nil {
			return err
		}
		r, ok := api.ParseRedaction(v)
		if !ok {
			return c.Errf("redact %q: accepted are none, names and clients, which includes names", v)
		}
		cfg.Redact = &r
	case "pods":
		v, err := one()
		if err != nil {
			return err
		}
		if v != podsAutoWord && v != podsOffWord {
			return c.Errf("pods %q: accepted are auto and off", v)
		}
		cfg.Pods = v
	case "metrics":
		n := strconv.Itoa(defaultPodSeries)
		if len(args) == 2 {
			n = args[1]
		}
		most, err := strconv.Atoi(n)
		if len(args) == 0 || len(args) > 2 || args[0] != "pods" || err != nil || most < 1 || most > maxPodSeries {
			return c.Errf("metrics %s: accepted are 'metrics pods' and 'metrics pods MAX', with up to %d pods", strings.Join(args, " "), maxPodSeries)
		}
		cfg.PodSeries = most
	default:
		return c.Errf("unknown property %q: there are listen, access, slow, clients, redact, pods and metrics", name)
	}
	cfg.where[name] = at
	return nil
}

// parseListen reads an address. Listening on all addresses must be written out, because it is the exception.
func parseListen(s string) (string, error) {
	host, port, found := cutPort(s)
	addr, err := netip.ParseAddr(host)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if !found || err != nil || portErr != nil || n == 0 {
		return "", fmt.Errorf("accepted are an IP address and a port, such as 127.0.0.1:9257, [::1]:9257, or 0.0.0.0:9257 for all addresses")
	}
	return netip.AddrPortFrom(addr, uint16(n)).String(), nil
}

func cutPort(s string) (host, port string, found bool) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return s, "", false
	}
	return strings.TrimSuffix(strings.TrimPrefix(s[:i], "["), "]"), s[i+1:], true
}

// parseAccess reads the access rule. The token file, or the API server's address, must exist now, so that a mistyped
// path is reported and does not lock everyone out.
func parseAccess(c *caddy.Controller, cfg *Config, cluster cluster, args []string) error {
	switch {
	case len(args) == 2 && args[0] == accessToken:
		file := args[1]
		if !filepath.IsAbs(file) {
			return c.Errf("access token %q: the path must be absolute", file)
		}
		if _, err := api.ReadToken(file); err != nil {
			return c.Errf("access token: %v", err)
		}
		cfg.Access, cfg.TokenFile = accessToken, file
	case len(args) == 1 && args[0] == accessKubernetes:
		config, err := cluster()
		if err == nil {
			err = config.Check()
		}
		if err != nil {
			return c.Errf("access kubernetes: %v. It works in a pod only, because it asks the cluster's API server; elsewhere use 'access token FILE'", err)
		}
		cfg.Access = accessKubernetes
	case len(args) == 1 && args[0] == accessOpen:
		cfg.Access = accessOpen
	default:
		return c.Errf("access %s: accepted are 'access token FILE', 'access kubernetes' and 'access open'", strings.Join(args, " "))
	}
	return nil
}

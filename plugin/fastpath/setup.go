package fastpath

import (
	"fmt"
	"strconv"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

const (
	// defaultEntries is some more than the 9,984 that cache keeps of each kind by default: a name that is asked
	// with several flags and buffer sizes is one entry there and several here.
	defaultEntries = 16384
	// maxEntries bounds what a slip of the keyboard can take: with entryBytes 1 GiB.
	maxEntries = 1 << 20
	// entryBytes is the share of an entry in the bound of octets. A typical entry takes 400, so that
	// the number of entries is the bound unless answers are very long.
	entryBytes = 1024
)

// config is the directive of one block.
type config struct {
	where   string // file:line
	entries int
	off     bool
}

// parse reads the directive of one block. It may stand there twice, because a start with -localip adds it
// where it does not see it, as in an imported file: the last one holds.
func parse(c *caddy.Controller) (config, error) {
	var cfg config
	for c.Next() {
		cfg = config{where: fmt.Sprintf("%s:%d", c.File(), c.Line()), entries: defaultEntries}
		args := c.RemainingArgs()
		switch {
		case len(args) == 0:
		case len(args) > 1:
			return cfg, c.Errf("fastpath takes one argument at most, found %d: the number of answers to keep, or off", len(args))
		case args[0] == "off":
			cfg.off = true
		default:
			n, err := strconv.Atoi(args[0])
			if err != nil || n < 1 || n > maxEntries {
				return cfg, c.Errf("fastpath %q: accepted are a number of answers from 1 to %d, and off", args[0], maxEntries)
			}
			cfg.entries = n
		}
		if c.NextBlock() {
			return cfg, c.Errf("fastpath has no properties, found %q", c.Val())
		}
	}
	return cfg, nil
}

type instanceKey struct{}

// instanceOf is the state of the instance that c sets up.
func (p *Plugin) instanceOf(c *caddy.Controller) *instance {
	if in, ok := c.Get(instanceKey{}).(*instance); ok {
		return in
	}
	in := newInstance(p)
	c.Set(instanceKey{}, in)
	c.OnStartup(in.start)
	c.OnShutdown(in.shutdown)
	return in
}

// setup puts our handlers around the block's cache, if that is the last of its plugins, and hooks into
// each server that will serve the block.
func (p *Plugin) setup(c *caddy.Controller) error {
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	if p.options.Off || cfg.off {
		return nil
	}
	in := p.instanceOf(c)
	site := dnsserver.GetConfig(c)
	b := &block{config: cfg, site: site, order: len(in.blocks), decorate: site.UDPDecorateWriterFunc}
	b.surround(site.Plugin)
	hook := func(s *dnsserver.Server) dns.DecorateWriter { return in.adopt(s) }
	site.UDPDecorateWriterFunc = hook
	in.add(b, hook)
	return nil
}

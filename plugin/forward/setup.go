package forward

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	pkgtls "github.com/coredns/coredns/plugin/pkg/tls"
	"github.com/miekg/dns"
)

// setup reads the stanzas of one block and puts a handler for each in its chain, in their order.
func (p *Plugin) setup(c *caddy.Controller) error {
	configs, err := p.parse(c)
	if err != nil {
		return plugin.Error(directive, err)
	}
	for _, cfg := range configs {
		p.hook(c, &forward{plugin: p, config: cfg})
	}
	explainFailures(dnsserver.GetConfig(c))
	return nil
}

// parse reads every stanza of one block.
func (p *Plugin) parse(c *caddy.Controller) ([]*Config, error) {
	var configs []*Config
	for c.Next() {
		cfg, err := p.parseStanza(c)
		if err != nil {
			return nil, err
		}
		configs = append(configs, cfg)
	}
	return configs, nil
}

func (p *Plugin) parseStanza(c *caddy.Controller) (*Config, error) {
	line := c.Line()
	cfg := newConfig(fmt.Sprintf("%s:%d", c.File(), line))
	// A stanza's own lines are read by now when something turns out wrong with the whole of it.
	wrong := func(err error) error { return fmt.Errorf("%s:%d - Error during parsing: %w", c.File(), line, err) }

	if !c.NextArg() {
		return nil, c.ArgErr()
	}
	zones := plugin.Host(c.Val()).NormalizeExact()
	if len(zones) == 0 {
		return nil, c.Errf("unable to normalize '%s': FROM is a domain name or a network in CIDR notation", c.Val())
	}
	cfg.From = zones[0]
	if len(zones) > 1 {
		p.log.Warningf("%s: Unsupported CIDR notation: '%s' expands to multiple zones. Using only '%s'.", cfg.Where, c.Val(), cfg.From)
	}
	if cfg.To = c.RemainingArgs(); len(cfg.To) == 0 {
		return nil, c.ArgErr()
	}
	for c.NextBlock() {
		if err := parseProperty(c, cfg); err != nil {
			return nil, err
		}
	}
	// After the block, which may name the resolvers.
	if len(cfg.To) <= MaxUpstreams {
		var err error
		if cfg.Upstreams, err = p.expand(cfg.To, cfg.Resolvers); err != nil {
			return nil, wrong(err)
		}
	}
	if err := cfg.Validate(); err != nil {
		return nil, wrong(err)
	}
	cfg.Upstreams = cfg.distinct()
	for _, w := range cfg.Warnings() {
		p.log.Warningf("%s: %s", cfg.Where, w)
	}
	return cfg, nil
}

// properties are the words that a stanza's block may hold.
const properties = "except, force_tcp, prefer_udp, expire, max_age, max_idle_conns, read_timeout, max_fails, " +
	"max_connect_attempts, doh_method, tls, tls_servername, policy, health_check, max_concurrent, next, " +
	"next_on_nodata, failfast_all_unhealthy_upstreams, failover, source_address, resolver"

func parseProperty(c *caddy.Controller, cfg *Config) error {
	name := c.Val()
	args := c.RemainingArgs()
	var err error
	switch name {
	case "except":
		for _, a := range args {
			cfg.Except = append(cfg.Except, plugin.Host(a).NormalizeExact()...)
		}
		return atLeastOne(c, name, args)
	case "force_tcp":
		cfg.ForceTCP, err = flag(c, name, args)
	case "prefer_udp":
		cfg.PreferUDP, err = flag(c, name, args)
	case "next_on_nodata":
		cfg.NextOnNodata, err = flag(c, name, args)
	case "failfast_all_unhealthy_upstreams":
		cfg.FailFast, err = flag(c, name, args)
	case "expire":
		cfg.Expire, err = duration(c, name, args)
	case "max_age":
		var d time.Duration
		d, err = duration(c, name, args)
		cfg.MaxAge = &d
	case "read_timeout":
		cfg.ReadTimeout, err = positive(c, name, args)
	case "max_idle_conns":
		var n int64
		n, err = count(c, name, args)
		cfg.MaxIdleConns = int(n)
	case "max_concurrent":
		cfg.MaxConcurrent, err = count(c, name, args)
	case "max_fails":
		cfg.MaxFails, err = count32(c, name, args)
	case "max_connect_attempts":
		var n uint32
		n, err = count32(c, name, args)
		cfg.MaxConnectAttempts = &n
	case "doh_method":
		// It is read for the sake of a Corefile that has it; no upstream here speaks HTTPS.
		err = oneOf(c, name, args, "POST", "GET")
	case "policy":
		if err = oneOf(c, name, args, string(PolicyRandom), string(PolicyRoundRobin), string(PolicySequential)); err == nil {
			cfg.Policy = Policy(args[0])
		}
	case "health_check":
		err = parseHealthCheck(c, cfg, args)
	case "next":
		cfg.Next, err = rcodes(c, name, args, cfg.Next)
	case "failover":
		cfg.Failover, err = rcodes(c, name, args, cfg.Failover)
		if err == nil && slices.Contains(cfg.Failover, dns.RcodeSuccess) {
			err = c.Errf("NoError cannot be used in failover: it is no failure; next_on_nodata acts on empty answers")
		}
	case "tls":
		err = parseTLS(c, cfg, args)
	case "tls_servername":
		cfg.TLSServerName, err = one(c, name, args)
	case "resolver":
		return parseResolvers(c, cfg, args)
	case "source_address":
		var a string
		if a, err = one(c, name, args); err != nil {
			return err
		}
		if cfg.Source, err = netip.ParseAddr(a); err != nil {
			return c.Errf("invalid IP address: %s", a)
		}
		cfg.Source = cfg.Source.Unmap()
	default:
		return c.Errf("unknown property '%s' of forward: accepted are %s", name, properties)
	}
	return err
}

func parseHealthCheck(c *caddy.Controller, cfg *Config, args []string) error {
	if len(args) == 0 {
		return argErr(c, "health_check")
	}
	var err error
	if cfg.HealthCheck, err = duration(c, "health_check", args[:1]); err != nil {
		return err
	}
	cfg.ProbeName = DefaultProbeName
	for i := 1; i < len(args); i++ {
		switch args[i] {
		case "no_rec":
			cfg.NoRecursion = true
		case "domain":
			if i++; i == len(args) {
				return argErr(c, "domain")
			}
			if _, ok := dns.IsDomainName(args[i]); !ok {
				return c.Errf("health_check: invalid domain name %s", args[i])
			}
			cfg.ProbeName = plugin.Name(args[i]).Normalize()
		default:
			return c.Errf("health_check: unknown option %s: accepted are no_rec and domain FQDN", args[i])
		}
	}
	return nil
}

func parseTLS(c *caddy.Controller, cfg *Config, args []string) error {
	if len(args) > 3 {
		return argErr(c, "tls")
	}
	files := slices.Clone(args)
	if root := dnsserver.GetConfig(c).Root; root != "" {
		for i, f := range files {
			if !filepath.IsAbs(f) {
				files[i] = filepath.Join(root, f)
			}
		}
	}
	var err error
	if cfg.TLS, err = pkgtls.NewTLSConfigFromArgs(files...); err != nil {
		return c.Errf("tls %s: %v", strings.Join(files, " "), err)
	}
	digest := sha256.New()
	for _, f := range files {
		content, err := os.ReadFile(f)
		if err != nil {
			return c.Errf("tls: %v", err)
		}
		digest.Write(binary.AppendUvarint(nil, uint64(len(content))))
		digest.Write(content)
	}
	cfg.TLSDigest = hex.EncodeToString(digest.Sum(nil))
	return nil
}

func parseResolvers(c *caddy.Controller, cfg *Config, args []string) error {
	cfg.Resolvers = nil
	for _, a := range args {
		r, err := netip.ParseAddrPort(a)
		if err != nil {
			ip, ipErr := netip.ParseAddr(strings.Trim(a, "[]"))
			if ipErr != nil {
				return c.Errf("resolver must be an IP address or IP:port: %q", a)
			}
			r = netip.AddrPortFrom(ip, 53)
		}
		cfg.Resolvers = append(cfg.Resolvers, r)
	}
	return atLeastOne(c, "resolver", args)
}

// argErr is caddy's error for a wrong number of arguments, with the word it is about: by the time it is
// known caddy's own would name the last argument.
func argErr(c *caddy.Controller, word string) error {
	return c.Errf("Wrong argument count or unexpected line ending after '%s'", word)
}

func atLeastOne(c *caddy.Controller, name string, args []string) error {
	if len(args) == 0 {
		return argErr(c, name)
	}
	return nil
}

func one(c *caddy.Controller, name string, args []string) (string, error) {
	if len(args) != 1 {
		return "", argErr(c, name)
	}
	return args[0], nil
}

func flag(c *caddy.Controller, name string, args []string) (bool, error) {
	if len(args) != 0 {
		return false, argErr(c, name)
	}
	return true, nil
}

func oneOf(c *caddy.Controller, name string, args []string, accepted ...string) error {
	a, err := one(c, name, args)
	if err == nil && !slices.Contains(accepted, a) {
		err = c.Errf("unknown %s '%s': accepted are %s", name, a, strings.Join(accepted, ", "))
	}
	return err
}

func positive(c *caddy.Controller, name string, args []string) (time.Duration, error) {
	d, err := anyDuration(c, name, args)
	if err == nil && d <= 0 {
		err = c.Errf("%s must be positive: %s", name, d)
	}
	return d, err
}

func duration(c *caddy.Controller, name string, args []string) (time.Duration, error) {
	d, err := anyDuration(c, name, args)
	if err == nil && d < 0 {
		err = c.Errf("%s can't be negative: %s", name, d)
	}
	return d, err
}

func anyDuration(c *caddy.Controller, name string, args []string) (time.Duration, error) {
	a, err := one(c, name, args)
	if err != nil {
		return 0, err
	}
	d, err := time.ParseDuration(a)
	if err != nil {
		return 0, c.Errf("%s: %v; accepted are durations such as 500ms or 10s", name, err)
	}
	return d, nil
}

// count reads a number that is not negative and says so in CoreDNS's terms.
func count(c *caddy.Controller, name string, args []string) (int64, error) {
	a, err := one(c, name, args)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(a, 10, 64)
	if err != nil {
		return 0, c.Errf("%s: %v", name, numberError(err))
	}
	if n < 0 {
		return 0, c.Errf("%s can't be negative: %d", name, n)
	}
	return n, nil
}

func count32(c *caddy.Controller, name string, args []string) (uint32, error) {
	a, err := one(c, name, args)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(a, 10, 32)
	if err != nil {
		return 0, c.Errf("%s: %v", name, numberError(err))
	}
	return uint32(n), nil
}

// numberError leaves out the name of the function that strconv puts in front.
func numberError(err error) error {
	var n *strconv.NumError
	if errors.As(err, &n) {
		return fmt.Errorf("invalid number %q: %w", n.Num, n.Err)
	}
	return err
}

func rcodes(c *caddy.Controller, name string, args []string, to []int) ([]int, error) {
	for _, a := range args {
		rc, ok := dns.StringToRcode[strings.ToUpper(a)]
		if !ok {
			return nil, c.Errf("%s: %s is not a valid rcode, such as SERVFAIL, REFUSED or NXDOMAIN", name, a)
		}
		to = append(to, rc)
	}
	return to, atLeastOne(c, name, args)
}

package cache

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
)

// parse reads the one stanza of a block.
func parse(c *caddy.Controller) (*Config, error) {
	cfg := newConfig()
	for n := 0; c.Next(); n++ {
		if n > 0 {
			return nil, c.Errf("%v", plugin.ErrOnce)
		}
		if err := cfg.head(c); err != nil {
			return nil, err
		}
		seen := map[string]int{}
		for c.NextBlock() {
			property, line := c.Val(), c.Line()
			read := properties[property]
			if read == nil {
				return nil, c.Errf("unknown property %q; known are: %s", property, known)
			}
			if err := read(cfg, c, c.RemainingArgs()); err != nil {
				return nil, err
			}
			if seen[property] == 0 {
				seen[property] = line
			} else if property == "serve_stale_policy" {
				return nil, c.Errf("%s can only be specified once; it is in line %d too", property, seen[property])
			}
		}
		if seen["serve_stale_policy"] > 0 && seen["serve_stale"] == 0 {
			return nil, c.Errf("serve_stale_policy requires serve_stale")
		}
	}
	return cfg, nil
}

// head reads what stands behind the directive: a TTL, and zones.
func (cfg *Config) head(c *caddy.Controller) error {
	args := c.RemainingArgs()
	if len(args) > 0 {
		if ttl, err := strconv.Atoi(args[0]); err == nil {
			cfg.Success.MaxTTL, cfg.Denial.MaxTTL = seconds(ttl), seconds(ttl)
			if err := cfg.Success.Validate(); err != nil {
				return c.Errf("%v", err)
			}
			args = args[1:]
		}
	}
	cfg.Zones = plugin.OriginsFromArgsOrServerBlock(args, c.ServerBlockKeys)
	return nil
}

const known = "success, denial, prefetch, serve_stale, serve_stale_policy, servfail, disable, keepttl"

var properties = map[string]func(*Config, *caddy.Controller, []string) error{
	"success":            func(cfg *Config, c *caddy.Controller, args []string) error { return cfg.Success.read(c, args) },
	"denial":             func(cfg *Config, c *caddy.Controller, args []string) error { return cfg.Denial.read(c, args) },
	"prefetch":           func(cfg *Config, c *caddy.Controller, args []string) error { return cfg.Prefetch.read(c, args) },
	"serve_stale":        func(cfg *Config, c *caddy.Controller, args []string) error { return cfg.Stale.read(c, args) },
	"serve_stale_policy": func(cfg *Config, c *caddy.Controller, args []string) error { return cfg.Stale.readPolicy(c, args) },
	"servfail":           (*Config).readServFail,
	"disable":            (*Config).readDisable,
	"keepttl":            (*Config).readKeepTTL,
}

// seconds is n s. More than fit are a very long time, and less are a negative one.
func seconds(n int) time.Duration {
	const most = math.MaxInt64 / int64(time.Second)
	return time.Duration(max(min(int64(n), most), -most)) * time.Second
}

// count checks that there are so many arguments.
func count(c *caddy.Controller, args []string, least, most int) error {
	if len(args) < least || len(args) > most {
		return c.ArgErr()
	}
	return nil
}

// read reads CAPACITY [TTL] [MINTTL].
func (k *Kept) read(c *caddy.Controller, args []string) error {
	if err := count(c, args, 1, 3); err != nil {
		return err
	}
	var numbers [3]int
	for i, a := range args {
		n, err := strconv.Atoi(a)
		if err != nil {
			return c.Errf("%q is not a number: a capacity in answers, and TTLs in seconds, are", a)
		}
		numbers[i] = n
	}
	k.Capacity = numbers[0]
	if len(args) > 1 {
		k.MaxTTL = seconds(numbers[1])
	}
	if len(args) > 2 {
		k.MinTTL = seconds(numbers[2])
	}
	return located(c, k.Validate())
}

// located adds file and line to an error.
func located(c *caddy.Controller, err error) error {
	if err != nil {
		return c.Errf("%v", err)
	}
	return nil
}

func duration(c *caddy.Controller, what, value string) (time.Duration, error) {
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, c.Errf("invalid %s: %v; 300ms, 30s and 1h are durations", what, err)
	}
	return d, nil
}

// read reads AMOUNT [DURATION] [PERCENTAGE%].
func (p *Prefetch) read(c *caddy.Controller, args []string) error {
	if err := count(c, args, 1, 3); err != nil {
		return err
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return c.Errf("prefetch amount is not a number: %q", args[0])
	}
	p.Amount = n
	if len(args) > 1 {
		if p.Gap, err = duration(c, "prefetch duration", args[1]); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		number, ok := strings.CutSuffix(args[2], "%")
		if !ok {
			return c.Errf("last character of percentage should be `%%`, but is: %q", args[2])
		}
		if p.Percentage, err = strconv.Atoi(number); err != nil {
			return c.Errf("percentage is not a number: %q", args[2])
		}
	}
	return located(c, p.Validate())
}

type argument struct {
	what string
	to   *time.Duration
}

// read reads [DURATION] [immediate [TTL [RECHECK]] | verify [TIMEOUT [TTL [RECHECK]]]].
func (s *Stale) read(c *caddy.Controller, args []string) error {
	if err := count(c, args, 0, 5); err != nil {
		return err
	}
	*s = Stale{For: defaultStale, PreferPositive: s.PreferPositive}
	rest := []argument{{"serve_stale response TTL", &s.TTL}, {"serve_stale failure recheck", &s.Recheck}}
	var err error
	if len(args) > 0 {
		if s.For, err = duration(c, "serve_stale duration", args[0]); err != nil {
			return err
		}
	}
	if len(args) > 1 {
		switch strings.ToLower(args[1]) {
		case "immediate":
		case "verify":
			s.Verify = true
			rest = slices.Insert(rest, 0, argument{"serve_stale verify timeout", &s.VerifyTimeout})
		default:
			return c.Errf("invalid value for serve_stale refresh mode: %s; immediate and verify are modes", args[1])
		}
	}
	for i, a := range args[min(2, len(args)):] {
		if i == len(rest) {
			return c.ArgErr()
		}
		if *rest[i].to, err = duration(c, rest[i].what, a); err != nil {
			return err
		}
	}
	return located(c, s.Validate())
}

func (s *Stale) readPolicy(c *caddy.Controller, args []string) error {
	if err := count(c, args, 1, 1); err != nil {
		return err
	}
	if !strings.EqualFold(args[0], "prefer_positive") {
		return c.Errf("invalid serve_stale_policy: %s; prefer_positive is one", args[0])
	}
	s.PreferPositive = true
	return nil
}

func (cfg *Config) readServFail(c *caddy.Controller, args []string) error {
	if err := count(c, args, 1, 1); err != nil {
		return err
	}
	d, err := duration(c, "servfail duration", args[0])
	switch {
	case err != nil:
		return err
	case d < 0:
		return c.Errf("invalid negative ttl for servfail")
	case d > maxServFail:
		return c.Errf("caching SERVFAIL responses over 5 minutes is not permitted")
	}
	cfg.ServFail = d
	return nil
}

// readDisable reads success|denial [ZONES...].
func (cfg *Config) readDisable(c *caddy.Controller, args []string) error {
	if len(args) == 0 {
		return c.ArgErr()
	}
	zones := []string{"."}
	if len(args) > 1 {
		zones = nil
		for _, z := range args[1:] {
			zone := plugin.Name(z).Normalize()
			if zone == "" {
				return c.Errf("invalid disabled zone: %s", z)
			}
			zones = append(zones, zone)
		}
	}
	switch args[0] {
	case success:
		cfg.Success.Except = zones
	case denial:
		cfg.Denial.Except = zones
	default:
		return c.Errf("cache type for disable must be %q or %q", success, denial)
	}
	return nil
}

func (cfg *Config) readKeepTTL(c *caddy.Controller, args []string) error {
	if err := count(c, args, 0, 0); err != nil {
		return err
	}
	cfg.KeepTTL = true
	return nil
}

// The two kinds of answers that are kept, as the Corefile and metrics name them.
const (
	success = "success"
	denial  = "denial"
)

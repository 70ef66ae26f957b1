// Package setup implements the Corefile directive setup for the node's network: the interface and the addresses that
// pods query, the rules that keep those queries out of connection tracking, and the fallback.
//
//	setup {
//	    interface NAME
//	    address IP...
//	    notrack auto|iptables|nftables|off
//	    fallback none|[NAMESPACE/SERVICE] [IP[:PORT]...]
//	    check DURATION
//	    on_exit keep|remove
//	}
//
// It may occur once in the Corefile, in any block, and every property has a default. A start with -localip needs no
// directive. A fallback to a Service means its endpoints, as the API server names them while the process runs; plain
// addresses beside it serve until the API server has answered. The package turns flags, directive and the rest of the
// Corefile into one nodenet.Spec and ties nodenet's Keeper to the server's life; it has no logic of rules or links.
package setup

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/coredns/caddy"

	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/nodenet"
)

// parseSetup reads every setup directive of one block.
func parseSetup(c *caddy.Controller) (*Config, error) {
	var cfg *Config
	for c.Next() {
		where := fmt.Sprintf("%s:%d", c.File(), c.Line())
		if cfg != nil {
			return nil, c.Errf("setup may occur only once in the Corefile: the other one is at %s", cfg.Where)
		}
		cfg = &Config{Where: where}
		if args := c.RemainingArgs(); len(args) > 0 {
			return nil, c.Errf("setup takes a block of properties, not the argument %q", args[0])
		}
		for c.NextBlock() {
			if err := parseProperty(c, cfg); err != nil {
				return nil, err
			}
		}
	}
	return cfg, nil
}

const properties = "interface, address, notrack, fallback, check, on_exit"

func parseProperty(c *caddy.Controller, cfg *Config) error {
	name := c.Val()
	// An unset environment variable leaves an empty argument; one that holds a list leaves a single argument.
	var args []string
	for _, a := range c.RemainingArgs() {
		args = append(args, strings.FieldsFunc(a, func(r rune) bool { return r == ' ' || r == ',' })...)
	}
	one := func() (string, error) {
		if len(args) != 1 {
			return "", c.Errf("%s takes one value, found %d", name, len(args))
		}
		return args[0], nil
	}
	switch name {
	case "interface":
		v, err := one()
		cfg.Interface = v
		return err
	case "address":
		if len(args) == 0 {
			return c.Errf("address takes one IP address or more")
		}
		for _, a := range args {
			ip, err := netip.ParseAddr(a)
			if err != nil {
				return c.Errf("address %q is not an IP address", a)
			}
			cfg.Addresses = append(cfg.Addresses, ip.Unmap())
		}
	case "notrack":
		v, err := one()
		if err != nil {
			return err
		}
		cfg.Notrack = nodenet.Choice(v)
		for _, ok := range nodenet.Choices() {
			if cfg.Notrack == ok {
				return nil
			}
		}
		return c.Errf("notrack %q: accepted are auto, iptables, nftables, off", v)
	case "fallback":
		var err error
		if cfg.Fallback, cfg.Follow, err = parseFallback(args); err != nil {
			return c.Errf("fallback %v", err)
		}
	case "check":
		v, err := one()
		if err != nil {
			return err
		}
		if cfg.Check, err = time.ParseDuration(v); err != nil || cfg.Check < nodenet.MinCheck {
			return c.Errf("check %q: a duration of at least %s is accepted, such as 10s", v, nodenet.MinCheck)
		}
	case "on_exit":
		v, err := one()
		if err != nil {
			return err
		}
		cfg.OnExit = nodenet.ExitPolicy(v)
		if cfg.OnExit != nodenet.ExitKeep && cfg.OnExit != nodenet.ExitRemove {
			return c.Errf("on_exit %q: accepted are keep, remove", v)
		}
	default:
		return c.Errf("unknown property %q of setup: accepted are %s", name, properties)
	}
	return nil
}

// parseFallback reads the servers of a fallback, and the Service whose endpoints they are. No argument, as an empty
// environment variable leaves it, means none.
func parseFallback(args []string) (servers []netip.AddrPort, follow kube.Service, err error) {
	if len(args) == 1 && args[0] == "none" {
		return nil, kube.Service{}, nil
	}
	for _, a := range args {
		if strings.Contains(a, "/") {
			s, err := kube.ParseService(a)
			if err != nil {
				return nil, follow, err
			}
			if follow != (kube.Service{}) {
				return nil, follow, fmt.Errorf("%q: one Service can be followed, and that is %s", a, follow)
			}
			follow = s
			continue
		}
		if ip, err := netip.ParseAddr(strings.Trim(a, "[]")); err == nil {
			servers = append(servers, netip.AddrPortFrom(ip.Unmap(), nodenet.DefaultPort))
			continue
		}
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return nil, follow, fmt.Errorf("%q: accepted are none, or NAMESPACE/SERVICE and addresses IP or IP:PORT", a)
		}
		servers = append(servers, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return servers, follow, nil
}

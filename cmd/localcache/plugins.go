package main

import (
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	// The plugins of node-cache.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/bufsize"
	_ "github.com/coredns/coredns/plugin/debug"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/loop"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/pprof"
	_ "github.com/coredns/coredns/plugin/reload"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/timeouts"
	_ "github.com/coredns/coredns/plugin/whoami"

	// More plugins that nodes use.
	_ "github.com/coredns/coredns/plugin/acl"
	_ "github.com/coredns/coredns/plugin/any"
	_ "github.com/coredns/coredns/plugin/cancel"
	_ "github.com/coredns/coredns/plugin/dnstap"
	_ "github.com/coredns/coredns/plugin/header"
	_ "github.com/coredns/coredns/plugin/local"
	_ "github.com/coredns/coredns/plugin/metadata"
	_ "github.com/coredns/coredns/plugin/minimal"
	_ "github.com/coredns/coredns/plugin/multisocket"
	_ "github.com/coredns/coredns/plugin/nsid"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/shed"
	_ "github.com/coredns/coredns/plugin/view"
)

// ownDirectives lists directives of localcache that come before all of CoreDNS's: setup creates the interface that
// bind may name and the address that health may listen on. localcache's cache and forward stand in the places of
// CoreDNS's; fastpath stands directly after cache, which it inspects, and diag is the last, because it puts itself in
// front of all handlers of its block.
var ownDirectives = []string{"setup"}

// coreDNSDirectives lists the compiled-in directives that CoreDNS knows, sorted by name; CoreDNS's own list gives the
// order of execution.
var coreDNSDirectives = []string{
	"acl", "any", "bind", "bufsize", "cache", "cancel", "debug", "dns64", "dnstap", "errors", "forward",
	"header", "health", "hosts", "loadbalance", "local", "log", "loop", "metadata", "minimal",
	"multisocket", "nsid", "pprof", "prometheus", "ready", "reload", "rewrite", "shed", "template",
	"timeouts", "view", "whoami",
}

// registerDirectives registers the directives and their order with CoreDNS. A directive of CoreDNS that is not built
// in is registered too, so that the error names it, its line and the available ones instead of calling it unknown.
func registerDirectives() error {
	known := slices.Clone(dnsserver.Directives)
	for _, d := range known {
		if !slices.Contains(coreDNSDirectives, d) {
			plugin.Register(d, func(c *caddy.Controller) error {
				c.Next()
				return c.Errf("directive %q is CoreDNS's but is not built into localcache; built in are: %s",
					d, strings.Join(builtIn(), " "))
			})
		}
	}
	order := slices.Insert(known, slices.Index(known, "cache")+1, fastpathDirective)
	return dnsserver.SetDirectives(slices.Concat(ownDirectives, order, []string{diagDirective}))
}

// Directives of localcache with places among and after CoreDNS's.
const (
	fastpathDirective = "fastpath"
	diagDirective     = "diag"
)

// builtIn lists every directive that works, sorted.
func builtIn() []string {
	all := slices.Concat(ownDirectives, coreDNSDirectives, []string{fastpathDirective, diagDirective})
	slices.Sort(all)
	return all
}

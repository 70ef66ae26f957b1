package main

import (
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	// What node-cache ships.
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

	// What nodes ask for besides.
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

// ownDirectives are localcache's words. They come before all of CoreDNS's: setup makes the interface
// that bind may name and the address that health may listen on. cache and forward are ours too, and stand in
// CoreDNS's places for them; fastpath stands directly behind cache, which it looks at, and diag is the last, because
// it puts itself in front of all handlers of its block.
var ownDirectives = []string{"setup"}

// coreDNSDirectives are the compiled-in words that CoreDNS knows, sorted by name; CoreDNS's own list gives
// the order of execution.
var coreDNSDirectives = []string{
	"acl", "any", "bind", "bufsize", "cache", "cancel", "debug", "dns64", "dnstap", "errors", "forward",
	"header", "health", "hosts", "loadbalance", "local", "log", "loop", "metadata", "minimal",
	"multisocket", "nsid", "pprof", "prometheus", "ready", "reload", "rewrite", "shed", "template",
	"timeouts", "view", "whoami",
}

// registerDirectives tells CoreDNS which words there are and in what order they act. A word that
// CoreDNS knows but this program was built without is registered too, so that the error names it, its
// line and what there is instead of calling it unknown.
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

// Ours that have their places among and behind CoreDNS's.
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

// Package test is CoreDNS's end-to-end test package with all of its plugins, of which localcache's cache can take one's
// place, and localcache's fast path. The files of CoreDNS's own test directory, and the imports of its plugins without
// cache, are added when it is built; see the package above.
package test

import (
	"fmt"
	"os"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"
	"github.com/prometheus/client_golang/prometheus"

	text "localcache.dev/localcache/internal/corefile" // a test of CoreDNS has a variable of its name
	"localcache.dev/localcache/plugin/cache"
	"localcache.dev/localcache/plugin/fastpath"
)

// directive is the word that is added, and stands where the program has it.
const directive = "fastpath"

var injecting = os.Getenv("LOCALCACHE_INJECT") != ""

func init() {
	if !injecting {
		return
	}
	order := dnsserver.Directives
	if err := dnsserver.SetDirectives(slices.Insert(slices.Clone(order), slices.Index(order, "cache")+1, directive)); err != nil {
		panic(err)
	}
	keep := cache.New(cache.Options{})
	keep.Register()
	if err := keep.RegisterMetrics(prometheus.DefaultRegisterer); err != nil {
		panic(err)
	}
	p := fastpath.New(fastpath.Options{})
	p.Register()
	if err := p.RegisterMetrics(prometheus.DefaultRegisterer); err != nil {
		panic(err)
	}
}

// inject adds the directive to each server block, as a start with -localip does.
func inject(body string) string {
	if !injecting {
		return body
	}
	out, skipped := text.AddDirective([]byte(body), directive)
	if len(skipped) > 0 {
		fmt.Fprintf(os.Stderr, "lines %v have no place for the directive:\n%s\n", skipped, body)
	}
	return string(out)
}

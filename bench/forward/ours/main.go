// Command ours is the benchmark's server with localcache's forward, and its fastpath for a Corefile that
// asks for it.
package main

import (
	"fmt"
	"os"
	"slices"

	"github.com/coredns/coredns/core/dnsserver"

	"localcache.dev/localcache/bench/forward/chain"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/plugin/fastpath"
	"localcache.dev/localcache/plugin/forward"
)

func main() {
	known := slices.Clone(dnsserver.Directives)
	if err := dnsserver.SetDirectives(slices.Insert(known, slices.Index(known, "cache")+1, "fastpath")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	p := forward.New(forward.Options{Statistics: observe.NewUpstreams(0)})
	p.Register()
	fastpath.New(fastpath.Options{}).Register() // counts where the Corefile names it
	status := chain.Run()
	p.Close()
	os.Exit(status)
}

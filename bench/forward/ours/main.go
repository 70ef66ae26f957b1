// Command ours is the benchmark's server with localcache's forward, and its fastpath if the Corefile asks for it.
package main

import (
	"fmt"
	"os"

	"localcache.dev/localcache/bench/forward/chain"
	"localcache.dev/localcache/bench/forward/fast"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/plugin/forward"
)

func main() {
	if err := fast.Register(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	p := forward.New(forward.Options{Statistics: observe.NewUpstreams(0)})
	p.Register()
	status := chain.Run()
	p.Close()
	os.Exit(status)
}

// Command ours is the benchmark's server with localcache's forward.
package main

import (
	"os"

	"localcache.dev/localcache/bench/forward/chain"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/plugin/forward"
)

func main() {
	p := forward.New(forward.Options{Statistics: observe.NewUpstreams(0)})
	p.Register()
	status := chain.Run()
	p.Close()
	os.Exit(status)
}

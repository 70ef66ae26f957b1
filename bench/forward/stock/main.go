// Command stock is the benchmark's server with CoreDNS's own forward.
package main

import (
	"os"

	_ "github.com/coredns/coredns/plugin/forward" // the plugin that is measured

	"localcache.dev/localcache/bench/forward/chain"
)

func main() { os.Exit(chain.Run()) }

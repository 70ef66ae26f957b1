// Command localcache-demo runs localcache in a private lab of network namespaces and shows what it does. The lab is not part
// of the program localcache, which holds NET_ADMIN on every node.
package main

import (
	"os"

	"localcache.dev/localcache/internal/demo"
	"localcache.dev/localcache/internal/lab"
)

func main() {
	// A process that the lab started as one of its stages does its task here and never returns.
	lab.Init()
	os.Exit(demo.Run(os.Args[1:], os.Stdout, os.Stderr))
}

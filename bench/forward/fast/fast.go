// Package fast registers localcache's directive fastpath in a program of the benchmark, whose Corefile may then use
// it.
package fast

import (
	"slices"

	"github.com/coredns/coredns/core/dnsserver"

	"localcache.dev/localcache/plugin/fastpath"
)

// Register must be called before the server reads its Corefile.
func Register() error {
	known := slices.Clone(dnsserver.Directives)
	if err := dnsserver.SetDirectives(slices.Insert(known, slices.Index(known, "cache")+1, "fastpath")); err != nil {
		return err
	}
	fastpath.New(fastpath.Options{}).Register()
	return nil
}

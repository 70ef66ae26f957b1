package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/coredns/coredns/coremain"

	"localcache.dev/localcache/internal/cli"
)

// buildVersion is the version that the Go tool stamped into the binary: the module's version, made from
// the tag or the commit, with +dirty where the tree had changes.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "devel"
	}
	return info.Main.Version
}

func version(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		fmt.Fprintf(stderr, "localcache version: unexpected argument %q\n", args[0])
		return cli.ExitUsage
	}
	fmt.Fprintf(stdout, "localcache %s\nCoreDNS %s\n%s/%s, %s\n",
		buildVersion(), coremain.CoreVersion, runtime.GOOS, runtime.GOARCH, runtime.Version())
	return cli.ExitOK
}

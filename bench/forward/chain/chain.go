// Package chain runs a CoreDNS server with bind and the forward that the program was linked with, so that two
// programs differ by that one plugin.
package chain

import (
	"flag"
	"fmt"
	"io"
	"os"
	"runtime/pprof"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	_ "github.com/coredns/coredns/plugin/bind" // a directive of the Corefile
	clog "github.com/coredns/coredns/plugin/pkg/log"
)

// Run serves the Corefile of the flag -corefile until standard input ends, and returns the exit status.
func Run() int {
	corefile := flag.String("corefile", "", "the Corefile's content")
	profile := flag.String("cpuprofile", "", "a file for a CPU profile of the whole run")
	flag.Parse()
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer pprof.StopCPUProfile()
	}
	caddy.Quiet, dnsserver.Quiet = true, true
	clog.Discard()
	instance, err := caddy.Start(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(*corefile), ServerTypeName: "dns"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The driver holds the other end: it closes when the driver ends, however it does.
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	instance.ShutdownCallbacks()
	if err := instance.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Command localcache is a node-local DNS cache for Kubernetes: CoreDNS with the plugins that such a cache needs, the
// node's network around it, and the tools to diagnose and to remove it.
//
// main only dispatches; each subcommand has a file of its own or is in internal/apiclient.
package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"localcache.dev/localcache/internal/apiclient"
	"localcache.dev/localcache/internal/cli"
)

// command is one subcommand.
type command struct {
	name    string
	summary string
	run     func(args []string, stdout, stderr io.Writer) int
	help    func(w io.Writer)
}

// commands lists the subcommands in the order of the help text.
func commands() []command {
	return []command{
		{"serve", "run the cache on this node (the default)", serve, serveHelp},
		{"top", "show the busiest clients, the most frequent names, or the upstreams", apiclient.Top, apiclient.TopHelp},
		{"queries", "show slow and failed queries, with what they waited for", apiclient.Queries, apiclient.QueriesHelp},
		{"pods", "show one client: its traffic, names, slow and failed queries", apiclient.Pods, apiclient.PodsHelp},
		{"status", "show whether the cache runs, and how it does", apiclient.Status, apiclient.StatusHelp},
		{"raw", "print what the cache's API answers, for scripts", apiclient.Raw, apiclient.RawHelp},
		{"teardown", "remove what localcache or node-cache left on this node", teardown, teardownHelp},
		{"version", "print the version", version, nil},
		{"help", "help for a subcommand", nil, nil},
	}
}

func main() {
	args := os.Args[1:]
	if filepath.Base(os.Args[0]) == kubectlPlugin && (len(args) == 0 || strings.HasPrefix(args[0], "-")) {
		// kubectl without a subcommand must not start a server.
		args = append([]string{"help"}, slices.DeleteFunc(args, isHelp)...)
	}
	os.Exit(run(args, os.Stdout, os.Stderr))
}

// kubectlPlugin is the name under which kubectl finds the program, as 'kubectl localcache'.
const kubectlPlugin = "kubectl-localcache"

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 || strings.HasPrefix(args[0], "-") {
		if len(args) > 0 && isHelp(args[0]) {
			usage(stdout)
			return cli.ExitOK
		}
		return serve(args, stdout, stderr)
	}
	name, rest := args[0], args[1:]
	if name == "help" {
		return help(rest, stdout, stderr)
	}
	for _, c := range commands() {
		if c.name != name {
			continue
		}
		if len(rest) > 0 && isHelp(rest[0]) {
			return help([]string{name}, stdout, stderr)
		}
		return c.run(rest, stdout, stderr)
	}
	if name == "demo" {
		fmt.Fprintln(stderr, "localcache: the demo is the program localcache-demo: 'make run' in the source tree builds and runs it")
		return cli.ExitUsage
	}
	fmt.Fprintf(stderr, "localcache: unknown subcommand %q\n\n", name)
	usage(stderr)
	return cli.ExitUsage
}

func isHelp(arg string) bool { return arg == "-h" || arg == "-help" || arg == "--help" }

func usage(w io.Writer) {
	fmt.Fprint(w, `localcache is a node-local DNS cache for Kubernetes.

Usage:
  localcache [flags]              run the cache; the same as 'localcache serve'
  localcache SUBCOMMAND [flags]

Subcommands:
`)
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-10s %s\n", c.name, c.summary)
	}
	fmt.Fprint(w, `
'localcache help SUBCOMMAND' says more; 'localcache help serve' lists the flags.
top, queries, pods, status and raw ask a running cache, or those of all nodes with --all-nodes; as `+kubectlPlugin+` in the PATH the program is 'kubectl localcache' too.
`)
}

func help(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		usage(stdout)
		return cli.ExitOK
	}
	for _, c := range commands() {
		if c.name != args[0] {
			continue
		}
		if c.help != nil {
			c.help(stdout)
		} else {
			fmt.Fprintf(stdout, "localcache %s: %s\n", c.name, c.summary)
		}
		return cli.ExitOK
	}
	fmt.Fprintf(stderr, "localcache help: unknown subcommand %q\n\n", args[0])
	usage(stderr)
	return cli.ExitUsage
}

// Package apiclient holds the subcommands that ask a running cache through its API: top, queries, pods, status and raw. They
// ask the cache of one node, or through package fleet those of all nodes, and print with package render.
package apiclient

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/fleet"
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/cli"
)

// Command holds what all subcommands that ask a running cache share.
type Command struct {
	flags  *flag.FlagSet
	stdout io.Writer
	stderr io.Writer

	socket, url, tokenFile string
	output                 string
	watch                  bool
	interval               time.Duration

	rest     []string // the arguments that are no flags
	nameless bool     // no clients are shown
	// Notes that were printed are not printed again.
	shownNotes       []string
	shownAddressNote bool

	remote *api.Remote
	nodes  fleet.Fleet // with --all-nodes
}

var outputs = []string{"table", "wide", "json", "yaml"}

// newCommand returns a Command with the common flags.
func newCommand(name string, stdout, stderr io.Writer) *Command {
	a := newRequestCommand(name, stdout, stderr)
	a.flags.StringVar(&a.output, "o", "table", "output `format`: table, wide, json or yaml")
	return a
}

// newRequestCommand returns a Command with the flags that say which cache is asked.
func newRequestCommand(name string, stdout, stderr io.Writer) *Command {
	a := &Command{flags: flag.NewFlagSet(name, flag.ContinueOnError), stdout: stdout, stderr: stderr, output: "json"}
	a.flags.SetOutput(io.Discard)
	socket := os.Getenv(cli.SocketVariable)
	if socket == "" {
		socket = api.DefaultSocket
	}
	a.flags.StringVar(&a.socket, "socket", socket, "ask the cache of this node at this unix `path`; "+cli.SocketVariable+" sets another default")
	a.flags.StringVar(&a.url, "url", "", "ask the cache at this `URL` instead, such as http://10.0.0.1:9257")
	a.flags.StringVar(&a.tokenFile, "token-file", "", "`file` with the token for --url or --all-nodes")
	a.nodes.Declare(a.flags)
	return a
}

// watchable declares the flags of subcommands that can repeat their output.
func (a *Command) watchable() {
	a.flags.BoolVar(&a.watch, "watch", false, "show it again until interrupted")
	a.flags.DurationVar(&a.interval, "interval", 2*time.Second, "`time` between two looks with --watch, at least 200ms")
}

// parse reads flags and arguments, which may be mixed as with kubectl. If ok is false the subcommand ends with
// status.
func (a *Command) parse(args []string, most int, help func(io.Writer)) (rest []string, status int, ok bool) {
	for {
		err := a.flags.Parse(args)
		if errors.Is(err, flag.ErrHelp) {
			help(a.stdout)
			return nil, cli.ExitOK, false
		}
		if err != nil {
			return nil, a.usage(err.Error()), false
		}
		args = a.flags.Args()
		if len(args) == 0 {
			break
		}
		rest = append(rest, args[0])
		args = args[1:]
	}
	switch {
	case len(rest) > most:
		return nil, a.usage(fmt.Sprintf("unexpected argument %q", rest[most])), false
	case !slices.Contains(outputs, a.output):
		return nil, a.usage(fmt.Sprintf("-o %q: accepted are %s", a.output, strings.Join(outputs, ", "))), false
	case a.watch && a.interval < 200*time.Millisecond:
		return nil, a.usage(fmt.Sprintf("--interval %v: at least 200ms", a.interval)), false
	case a.tokenFile != "" && a.url == "" && !a.nodes.On:
		return nil, a.usage("--token-file is for --url and --all-nodes: the socket needs no token"), false
	}
	given := map[string]bool{}
	a.flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	a.nodes.Stderr, a.nodes.TokenFile = a.stderr, a.tokenFile
	if err := a.nodes.Check(given); err != nil {
		return nil, a.usage(err.Error()), false
	}
	remote, err := api.NewRemote(api.RemoteOptions{Socket: a.socket, URL: a.url, TokenFile: a.tokenFile})
	if err != nil {
		return nil, a.usage(err.Error()), false
	}
	a.remote, a.rest = remote, rest
	return rest, cli.ExitOK, true
}

func (a *Command) usage(message string) int {
	fmt.Fprintf(a.stderr, "localcache %s: %s\n'localcache help %[1]s' says more.\n", a.flags.Name(), message)
	return cli.ExitUsage
}

// fail prints an error and what to do about it.
func (a *Command) fail(err error) int {
	var unreachable *api.Unreachable
	var refused *api.Error
	var cluster *fleet.ClusterError
	var unknown *unknownClient
	text := err.Error()
	if errors.As(err, &refused) && refused.Reason == "Unauthorized" {
		text = refused.Message // its hint is for authors of requests
	}
	fmt.Fprintf(a.stderr, "localcache %s: %s\n", a.flags.Name(), render.Printable(text))
	switch {
	case errors.As(err, &unknown):
		fmt.Fprintln(a.stderr, unknown.hint)
	case errors.As(err, &cluster):
		if cluster.Hint != "" {
			fmt.Fprintln(a.stderr, cluster.Hint)
		}
		return cluster.Status
	case errors.As(err, &refused) && refused.Code == http.StatusBadRequest:
		return cli.ExitUsage
	case errors.As(err, &unreachable) && a.url != "":
		fmt.Fprintf(a.stderr, "The Corefile's 'diag { listen ADDRESS }' says where the cache listens.\n")
	case errors.Is(err, os.ErrPermission):
		fmt.Fprintf(a.stderr, "Only the cache's own user may ask there, which mostly is root: try sudo, or --url with a token.\n")
	case errors.As(err, &unreachable):
		fmt.Fprintf(a.stderr, "Is the cache running here, with 'diag' in its Corefile? On a Kubernetes node ask in its pod:\n  kubectl -n kube-system exec POD -- /localcache %s\nElse name its socket by --socket, or its address by --url, or ask those of all nodes through kubectl by --all-nodes.\n", a.again())
	case errors.As(err, &refused) && refused.Reason == "Unauthorized":
		fmt.Fprintf(a.stderr, "--token-file names the file with the token: that of 'access token FILE' in the Corefile, or with 'access kubernetes' one with what 'kubectl create token' prints.\n")
	}
	return cli.ExitFailed
}

// again is the subcommand with the arguments that it has, but for those that say which cache is asked.
func (a *Command) again() string {
	words := append([]string{a.flags.Name()}, a.rest...)
	a.flags.Visit(func(f *flag.Flag) {
		b, ok := f.Value.(interface{ IsBoolFlag() bool })
		switch {
		case f.Name == "socket" || f.Name == "url" || f.Name == "token-file":
		case ok && b.IsBoolFlag():
			words = append(words, cli.Dashed(f.Name))
		default:
			words = append(words, cli.Dashed(f.Name), f.Value.String())
		}
	})
	for i, w := range words {
		if w == "" || strings.ContainsFunc(w, func(r rune) bool { return !plainInShell(r) }) {
			words[i] = "'" + strings.ReplaceAll(render.Printable(w), "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

func plainInShell(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:,+@%=", r)
}

// accepted checks values of flags as the cache would, before it is asked: values are by the flag's name, and renamed
// gives parameters with another name. status is the exit status for a wrong one.
func (a *Command) accepted(path string, values, renamed map[string]string) (status int, ok bool) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		parameter := name
		if r := renamed[name]; r != "" {
			parameter = r
		}
		if err := api.CheckParameter(path, parameter, values[name]); err != nil {
			return a.usage(fmt.Sprintf("%s %q: %v", cli.Dashed(name), values[name], err)), false
		}
	}
	return cli.ExitOK, true
}

// Document requests a path and returns the answer as it is, and decoded into v. With --all-nodes it is the merged
// answer of all nodes.
func (a *Command) Document(ctx context.Context, path string, query url.Values, v any) ([]byte, error) {
	if a.nodes.On {
		return a.nodes.Document(ctx, path, query, v)
	}
	var raw json.RawMessage
	if err := a.remote.Get(ctx, path, query, &raw); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return nil, fmt.Errorf("the answer does not come from localcache, or from another version: %w", err)
	}
	return raw, nil
}

// Print writes the answer as JSON or YAML, if that was requested.
func (a *Command) Print(raw []byte) (done bool, err error) {
	switch a.output {
	case "json":
		var indented bytes.Buffer
		encoder := json.NewEncoder(&indented)
		encoder.SetEscapeHTML(false)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(json.RawMessage(raw)); err != nil {
			return true, err
		}
		_, err := a.stdout.Write(render.Escape(indented.Bytes()))
		return true, err
	case "yaml":
		return true, render.WriteYAML(a.stdout, raw)
	}
	return false, nil
}

// wide reports whether all columns are wanted.
func (a *Command) wide() bool { return a.output == "wide" }

// notes prints remarks apart from the table. That clients have no names is printed once, if clients are shown; with
// --watch, other remarks are printed when they are new, unless the screen is cleared.
func (a *Command) notes(m *api.Metadata) {
	var list []string
	shown := a.shownAddressNote
	for _, n := range m.Notes {
		of, _, byAddress := strings.Cut(n, api.ByAddress)
		switch {
		case !byAddress:
		case a.nameless || shown:
			continue
		case a.flags.Name() == "top":
			a.shownAddressNote = true
			n = of + api.ByAddress + ": 'localcache status' says why"
		default:
			a.shownAddressNote = true
		}
		list = append(list, n)
	}
	if a.watch && !render.Terminal(a.stdout) && slices.Equal(m.Notes, a.shownNotes) {
		return
	}
	a.shownNotes = m.Notes
	for _, n := range list {
		fmt.Fprintf(a.stderr, "note: %s\n", render.Printable(n))
	}
}

// Run shows once, or with --watch until a signal.
func (a *Command) Run(show func(ctx context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	for first := true; ; first = false {
		if a.watch && render.Terminal(a.stdout) {
			fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
		} else if !first && a.output == "yaml" {
			fmt.Fprintln(a.stdout, "---")
		} else if !first {
			fmt.Fprintln(a.stdout)
		}
		if err := show(ctx); err != nil {
			if ctx.Err() != nil {
				return cli.ExitOK
			}
			return a.fail(err)
		}
		if !a.watch || !cli.WaitFor(ctx, a.interval) {
			return cli.ExitOK
		}
	}
}

// printFlags writes the flags of a subcommand's help, its own first.
func printFlags(w io.Writer, a *Command) {
	ofFleet := func(f *flag.Flag) bool { return slices.Contains(fleet.FlagNames, f.Name) }
	ofCache := func(f *flag.Flag) bool {
		return slices.Contains([]string{"socket", "url", "token-file", "all-nodes"}, f.Name)
	}
	own := func(f *flag.Flag) bool { return !ofFleet(f) && !ofCache(f) }
	some := false
	a.flags.VisitAll(func(f *flag.Flag) { some = some || own(f) })
	if some {
		fmt.Fprint(w, "\nFlags:\n")
		cli.PrintDefaults(w, a.flags, own)
	}
	fmt.Fprint(w, "\nWhich cache is asked:\n")
	cli.PrintDefaults(w, a.flags, ofCache)
	fmt.Fprint(w, "\nWith --all-nodes:\n")
	cli.PrintDefaults(w, a.flags, ofFleet)
}

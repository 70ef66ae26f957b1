// Command dns compares localcache with stock CoreDNS on the same Corefile, with other DNS caches and with the minimal
// server in Go (an echo), in one run. `make bench` builds what it needs and runs it; README.md beside it says how to
// read the figures.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/report"
	"localcache.dev/localcache/internal/lab"
)

// selfPath is this program, also after its file was replaced.
const selfPath = "/proc/self/exe"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// options are the flags.
type options struct {
	servers, work, cores, directives, flags string
	localcache, stock, out, render          string
	rounds                                  int
	limit                                   time.Duration
	quick                                   bool
}

func flags(errOut io.Writer) (*options, *flag.FlagSet) {
	o := &options{}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(errOut)
	fs.StringVar(&o.servers, "servers", "", "comma-separated `names` of servers; all that are installed where empty")
	fs.StringVar(&o.work, "work", "", "comma-separated `kinds` of load: hits, steady, mix, miss, memory, start; all where empty")
	fs.IntVar(&o.rounds, "rounds", 5, "samples of each server; those that others disturbed are repeated, once")
	fs.BoolVar(&o.quick, "quick", false, "one round of short samples, within two minutes")
	fs.DurationVar(&o.limit, "limit", 15*time.Minute, "`time` for the whole run; no sample begins after it")
	fs.StringVar(&o.cores, "cores", "", "`numbers` of the cores for server, generator and upstream, as in 0,1,2; chosen where empty")
	fs.StringVar(&o.directives, "directives", "diag", "comma-separated `directives` for localcache's Corefile; those that it does not have are left out")
	fs.StringVar(&o.flags, "flags", "", "more `flags` for localcache, separated by spaces")
	fs.StringVar(&o.localcache, "localcache", "bin/localcache", "the `program` to compare")
	fs.StringVar(&o.stock, "stock", "", "stock CoreDNS (`program`); the one built beside this where empty")
	fs.StringVar(&o.out, "out", "", "`directory` for results.md, plot.svg and samples.json; the report goes to standard output too")
	fs.StringVar(&o.render, "render", "", "measure nothing; make the report of this samples.json (`file`) again")
	fs.Usage = func() {
		fmt.Fprintf(errOut, `Compare localcache with other DNS caches, one core for the server and one for the load.

Usage:
  make bench                      everything, about 15 minutes
  make bench ARGS=-quick          two minutes, one round
  make bench ARGS="-servers localcache,coredns,echo-batched -work hits,steady"

Servers: localcache, coredns, unbound, dnsdist, pdns-recursor, dnsmasq, echo-batched, echo-single.
Those that are not installed are left out and named; bench/install-peers installs Debian's packages.

Flags:
`)
		fs.PrintDefaults()
	}
	return o, fs
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	fail := func(status int, err error) int {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return status
	}
	if asked, err := child(ctx, args); asked {
		if err != nil {
			return fail(exitFailed, err)
		}
		return 0
	}
	o, fs := flags(stderr)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return exitUsage
	}
	if fs.NArg() > 0 || o.rounds < 1 || o.limit <= 0 {
		return fail(exitUsage, fmt.Errorf("only flags are taken, and rounds and limit are more than 0; -h explains them"))
	}
	if o.render != "" {
		return o.again(stdout, fail)
	}
	b, works, err := o.prepare(ctx, stderr)
	if err != nil {
		return fail(exitUsage, err)
	}
	inside, status, err := lab.Enter() // a network of its own: all ports are free, and no rule interferes
	if err != nil {
		return fail(exitFailed, err)
	}
	if !inside {
		return status
	}
	failed := b.measure(ctx, works, o.limit)
	if len(b.run.Samples) > 0 {
		if err := o.write(&b.run, stdout); err != nil {
			return fail(exitFailed, errors.Join(failed, err))
		}
	}
	if failed != nil {
		return fail(exitFailed, failed)
	}
	return 0
}

// prepare checks the flags and finds the servers.
func (o *options) prepare(ctx context.Context, progress io.Writer) (*bench, []report.Work, error) {
	works, err := parseWorks(o.work)
	if err != nil {
		return nil, nil, err
	}
	if o.quick {
		o.rounds, o.limit = 1, min(o.limit, 2*time.Minute)
	}
	b := &bench{rounds: o.rounds, quick: o.quick, out: progress}
	p := programs{self: selfPath, localcache: o.localcache, stock: o.stock}
	if p.stock == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, nil, err
		}
		p.stock = filepath.Join(filepath.Dir(self), "stock")
	}
	// The servers run in folders of their own.
	if p.localcache, err = filepath.Abs(p.localcache); err != nil {
		return nil, nil, err
	}
	if p.stock, err = filepath.Abs(p.stock); err != nil {
		return nil, nil, err
	}
	own := builtIn(ctx, p.localcache, list(o.directives))
	if b.servers, err = choose(contenders(p, own, strings.Fields(o.flags)), list(o.servers)); err != nil {
		return nil, nil, err
	}
	if err := o.chooseCores(b); err != nil {
		return nil, nil, err
	}
	b.run = report.Run{Date: time.Now().UTC().Format(time.DateOnly), Machine: describeMachine(), Rounds: o.rounds}
	for _, c := range b.servers {
		c.look(ctx)
		if c.Subject && len(own) > 0 {
			c.What += "; with " + strings.Join(own, ", ")
		}
		if c.Subject && o.flags != "" {
			c.What += "; " + o.flags
		}
		b.run.Servers = append(b.run.Servers, c.Server)
	}
	return b, works, nil
}

func (o *options) chooseCores(b *bench) error {
	allowed, err := machine.Allowed()
	if err != nil {
		return err
	}
	c := &b.cores
	if o.cores == "" {
		c.server, c.generator, c.upstream, err = machine.Choose(allowed, machine.Siblings(allowed))
		return err
	}
	var n []int
	for _, s := range list(o.cores) {
		i, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("-cores %s: %w", o.cores, err)
		}
		n = append(n, i)
	}
	switch {
	case len(n) == 2 && n[0] != n[1]:
		c.server, c.generator, c.upstream = n[0], n[1], n[1]
	case len(n) == 3 && n[0] != n[1] && n[0] != n[2]:
		c.server, c.generator, c.upstream = n[0], n[1], n[2]
	default:
		return fmt.Errorf("-cores %s: the server's core, the generator's and, if there is a third, the upstream's are needed; the server shares its with nobody", o.cores)
	}
	return nil
}

// list splits a comma-separated flag.
func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

// write prints the report and, with -out, keeps it.
func (o *options) write(r *report.Run, stdout io.Writer) error {
	page := r.Markdown()
	fmt.Fprint(stdout, page)
	if o.out == "" {
		return nil
	}
	samples, err := r.Encode()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	for name, content := range map[string][]byte{"results.md": []byte(page), "plot.svg": []byte(r.Plot()), "samples.json": samples} {
		if err := os.WriteFile(filepath.Join(o.out, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// again renders the report of recorded samples.
func (o *options) again(stdout io.Writer, fail func(int, error) int) int {
	content, err := os.ReadFile(o.render)
	if err != nil {
		return fail(exitUsage, err)
	}
	r, err := report.Read(content)
	if err != nil {
		return fail(exitFailed, err)
	}
	if err := o.write(r, stdout); err != nil {
		return fail(exitFailed, err)
	}
	return 0
}

package demo

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/lab"
)

// Help writes the help text of the program localcache-demo.
func Help(w io.Writer) {
	fmt.Fprint(w, `Run localcache for real in a private lab, and look at what it does.

Usage:
  localcache-demo [--once] [--localcache FILE]

A node, four pods, two kube-dns replicas behind a Service address and an upstream resolver are made of
network namespaces. localcache runs on the node as it would in a cluster, with Corefile.example. Pods
resolve names through it; then it is killed in the middle of a stream of queries. At last pods and the
upstream behave badly on purpose, and localcache tells which, and how. It needs neither root nor tools,
where the kernel gives ordinary users namespaces, and touches nothing of this machine, but for a free
port of 127.0.0.1, where a page shows the same to a browser.

  --once              end when all is shown, with status 1 if a promise was not kept; else it stays up
                      until Ctrl-C, so that you can look around
  --localcache FILE   the program to run; by default localcache in the same folder as this program
`)
}

// programName is the program's name in messages.
const programName = "localcache-demo"

// Run runs the demo with the arguments of the command line and returns the exit status. Call lab.Init before it.
func Run(args []string, stdout, stderr io.Writer) int {
	fail := func(status int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", programName, err)
		if status == cli.ExitUsage {
			fmt.Fprintf(stderr, "'%s --help' explains it.\n", programName)
		}
		return status
	}
	fs := flag.NewFlagSet(programName, flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	once := fs.Bool("once", false, "")
	program := fs.String("localcache", "", "")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		Help(stdout)
		return cli.ExitOK
	} else if err != nil {
		return fail(cli.ExitUsage, err)
	}
	if fs.NArg() > 0 {
		return fail(cli.ExitUsage, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	localcache, err := findProgram(*program)
	if err != nil {
		return fail(cli.ExitUsage, err)
	}
	outside, inside, status, err := lab.EnterWithOutside()
	noOutside := err
	if errors.Is(err, lab.ErrNoOutside) {
		err = nil
	}
	if err != nil {
		return fail(cli.ExitFailed, err)
	}
	if !inside {
		return status
	}
	// A second Ctrl-C is ignored: the end takes only a moment and must be complete.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	d := &demonstration{report: report{w: stdout}, localcache: localcache, asUser: lab.AsUser(), outside: outside, noOutside: noOutside}
	err = d.run(ctx, *once)
	return d.finish(ctx, err, stderr)
}

// findProgram returns the absolute path of the program that the demo runs: the named one, else localcache in the
// folder of this program.
func findProgram(named string) (string, error) {
	path := named
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "localcache")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := exec.LookPath(path); err != nil {
		return "", fmt.Errorf("%w: 'make build' builds it, --localcache names another", err)
	}
	return path, nil
}

// demonstration is one run of the demo.
type demonstration struct {
	report
	localcache string // path of the program
	lab        *lab.Lab
	node       *servedNode
	asUser     bool
	asked      int // rounds of trouble

	outside   *lab.Outside // the connection to the machine, for the page; nil if there is none
	noOutside error
	page      *demoPage // nil until it is served
}

// run shows everything, and then waits for Ctrl-C unless once is set.
func (d *demonstration) run(ctx context.Context, once bool) (err error) {
	d.title("A node, %d pods, 2 kube-dns replicas and an upstream resolver, in network namespaces of their own", demoPods)
	if d.lab, err = lab.New(lab.Config{Pods: demoPods}); err != nil {
		return err
	}
	if d.node, err = newServedNode(d.lab, d.localcache); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.start, d.lookups, d.tracking, d.kill, d.trouble, d.showPage} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	d.verdict()
	if once {
		return nil
	}
	d.invite()
	going, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- d.goOn(going) }()
	select {
	case <-ctx.Done():
	case <-d.node.program.Done():
		err = fmt.Errorf("localcache ended by itself: %w", d.node.failure())
	case err = <-ended:
		ended <- nil
	}
	stop()
	return errors.Join(err, <-ended)
}

// start starts localcache on the node and says which rules it set.
func (d *demonstration) start(ctx context.Context) error {
	d.title("localcache starts on the node")
	d.line("%s", d.node.commandLine())
	took, err := d.node.start(ctx)
	if err != nil {
		return err
	}
	m, err := d.node.metrics(ctx)
	if err != nil {
		return err
	}
	d.line("ready after %v", round(took))
	d.line("packet rules: %s", d.node.rules(m))
	off := m[`coredns_setup_backend_info{backend="off"}`] == 1
	d.promise(m[`coredns_setup_rules_in_place`] == 1 && !off, "NOTRACK rules are in force, read back from the kernel")
	d.promise(m[`coredns_setup_socket_match`] == 1 && m[`coredns_setup_fallback_servers`] == float64(len(d.lab.KubeDNS)),
		"they apply while localcache's socket is open; otherwise the kernel sends queries to the %d kube-dns replicas", len(d.lab.KubeDNS))
	return nil
}

// finish removes the lab and returns the exit status.
func (d *demonstration) finish(ctx context.Context, err error, stderr io.Writer) int {
	if d.page != nil {
		err = errors.Join(err, d.page.close())
	}
	if d.lab != nil {
		if closeErr := d.lab.Close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("take the lab away: %w", closeErr))
		}
	}
	switch {
	case ctx.Err() != nil && !d.shown:
		fmt.Fprintln(stderr, "localcache-demo: interrupted; nothing of it is left")
		return cli.ExitFailed
	case err != nil:
		fmt.Fprintf(stderr, "localcache-demo: %v\n", err)
		if d.node != nil {
			fmt.Fprintf(stderr, "The last lines of localcache's log:\n%s", d.node.log.tail())
		}
		return cli.ExitFailed
	case d.broken > 0:
		return cli.ExitFailed
	}
	d.title("Nothing of it is left.")
	return cli.ExitOK
}

// invite prints how to look around.
func (d *demonstration) invite() {
	enter := func(h *lab.Host, what string) string {
		if d.asUser {
			return fmt.Sprintf("nsenter --user --preserve-credentials --net --mount --target %d %s", h.TID, what)
		}
		return fmt.Sprintf("sudo nsenter --net --mount --target %d %s", h.TID, what)
	}
	d.title("The demo stays up until Ctrl-C, and the faults are repeated.")
	if d.page != nil {
		d.line("In a browser on this machine:")
		d.line("  %s", d.page.address())
	}
	d.line("From another terminal, in a pod:")
	d.line("  %s", enter(d.lab.Pods[0], "dig @"+lab.LocalIP+" web.default.svc.cluster.local"))
	d.line("  %s", enter(d.lab.Pods[0], "getent ahosts kubernetes"))
	d.line("On the node:")
	d.line("  %s", enter(d.lab.Node, d.localcache+" top"))
	d.line("  %s", enter(d.lab.Node, d.localcache+" queries --outcome timeout"))
	d.line("  %s", enter(d.lab.Node, "nft list ruleset"))
	d.line("  %s", enter(d.lab.Node, "curl -s http://127.0.0.1:9353/metrics"))
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"
	"time"

	clog "github.com/coredns/coredns/plugin/pkg/log"

	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/nodenet"
	"localcache.dev/localcache/internal/nodenet/rule"
)

type teardownFlags struct {
	interfaces string
	force      bool
	timeout    time.Duration
}

func newTeardownFlags() (*teardownFlags, *flag.FlagSet) {
	f := &teardownFlags{}
	fs := flag.NewFlagSet("localcache teardown", flag.ContinueOnError)
	fs.StringVar(&f.interfaces, "interfacename", strings.Join(rule.DefaultOwners(), ","),
		"comma-separated `names` of the interfaces to remove, with their rules")
	fs.BoolVar(&f.force, "force", false, "remove them although a localcache process is alive")
	fs.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up after this `time`")
	return f, fs
}

func teardownHelp(w io.Writer) {
	fmt.Fprint(w, `Remove the interface, the addresses and the rules that localcache, or node-cache, left on this node.

Usage:
  localcache teardown [flags]

It prints what it removed and what it could not remove, and needs NET_ADMIN in the node's network
namespace. Pods that still use the address lose their DNS.

Flags:
`)
	_, fs := newTeardownFlags()
	cli.PrintDefaults(w, fs, cli.AllFlags)
}

func teardown(args []string, stdout, stderr io.Writer) int {
	f, fs := newTeardownFlags()
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		teardownHelp(stdout)
		return cli.ExitOK
	} else if err != nil || fs.NArg() > 0 {
		if err == nil {
			err = fmt.Errorf("unexpected argument %q", fs.Arg(0))
		}
		fmt.Fprintf(stderr, "localcache teardown: %v; accepted are: %s\n", err, strings.Join(cli.FlagNames(fs), " "))
		return cli.ExitUsage
	}
	if f.timeout <= 0 {
		fmt.Fprintf(stderr, "localcache teardown: --timeout %v: it must be more than 0\n", f.timeout)
		return cli.ExitUsage
	}
	clog.SetOutput(stderr)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()

	report := nodenet.Teardown(ctx, nodenet.TeardownConfig{
		Interfaces: strings.FieldsFunc(f.interfaces, func(r rune) bool { return r == ',' || r == ' ' }),
		Force:      f.force,
		Log:        clog.NewWithPlugin("teardown"),
	})
	for _, item := range report.Items {
		fmt.Fprintln(stdout, item)
	}
	if err := report.Err(); err != nil {
		fmt.Fprintln(stderr, "localcache teardown: some of it is still there; see above")
		return cli.ExitFailed
	}
	return cli.ExitOK
}

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/corefile"
	"localcache.dev/localcache/internal/memory"
	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/podfeed"
	"localcache.dev/localcache/internal/upstream"
	"localcache.dev/localcache/plugin/cache"
	"localcache.dev/localcache/plugin/diag"
	"localcache.dev/localcache/plugin/fastpath"
	"localcache.dev/localcache/plugin/forward"
	"localcache.dev/localcache/plugin/setup"
)

// drainTime is the least time between redirecting new queries and closing the sockets: long enough to answer the
// queries in the sockets' queues and those that wait for kube-dns. A longer lameduck counts instead.
const drainTime = 300 * time.Millisecond

// exitTimeout bounds the exit until the sockets are closed, and closeTimeout the work on the node's network after
// that. Together they stay below a pod's default grace period of 30 s: a longer lameduck is cut short, and steps that
// hang are abandoned instead of being killed halfway.
const (
	exitTimeout  = 18 * time.Second
	closeTimeout = 10 * time.Second
)

func serveHelp(w io.Writer) {
	fmt.Fprint(w, `Run the cache on this node until SIGTERM or SIGINT.

Usage:
  localcache [serve] [flags]

The flags are node-cache's and CoreDNS's own. A typical start:
  localcache --localip 169.254.25.10 --conf /etc/coredns/Corefile --upstreamsvc coredns

Flags:
`)
	_, fs := newServeFlags()
	cli.PrintDefaults(w, fs, cli.AllFlags)
	fmt.Fprint(w, `
Signals: SIGTERM and SIGINT drain and end the process, SIGQUIT or SIGINT while it drains end it at once,
SIGUSR1 reloads the Corefile.
`)
}

func serve(args []string, stdout, stderr io.Writer) int {
	f, err := parseServeFlags(args)
	if errors.Is(err, flag.ErrHelp) {
		serveHelp(stdout)
		return cli.ExitOK
	}
	if err != nil {
		fmt.Fprintf(stderr, "localcache: %v\n'localcache help serve' explains them.\n", err)
		return cli.ExitUsage
	}
	if f.showVersion {
		return version(nil, stdout, stderr)
	}
	if f.listPlugins {
		fmt.Fprintln(stdout, strings.Join(builtIn(), "\n"))
		return cli.ExitOK
	}
	clog.SetOutput(stdout)
	log.SetFlags(0)
	defer memory.KeepHeap()()
	s := &server{flags: f, log: clog.NewWithPlugin("localcache"), reload: make(chan struct{}, 1)}
	if err := s.Run(stdout); err != nil {
		fmt.Fprintf(stderr, "localcache: %v\n", err)
		return cli.ExitFailed
	}
	return cli.ExitOK
}

// server is one run of the cache.
type server struct {
	flags  *serveFlags
	log    clog.P
	node   *setup.Node
	ahead  *forward.Plugin // the way to the upstreams
	diag   *diag.Plugin
	pods   *podfeed.Feed
	source *corefile.Source
	reload chan struct{} // a reload is wanted; one waiting is enough

	skipped sync.Map // file:line of blocks without a place for fastpath, already logged
}

func (s *server) Run(stdout io.Writer) error {
	if err := checkPidfile(s.flags.pidfile); err != nil {
		return err
	}
	if err := s.assemble(); err != nil {
		return err
	}
	// Signals are handled from here on: one that arrives while the node's network is being set up must not leave it
	// half done.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGHUP)
	defer signal.Stop(signals)

	// The API is closed after the start: a start with a held xtables lock serves DNS, and its error counters are
	// wanted then.
	defer s.diag.Close()
	stopMetrics := s.serveMetrics()
	defer stopMetrics()

	ctx, cancel := context.WithCancel(context.Background())
	var owned sync.WaitGroup
	defer owned.Wait()
	defer cancel()
	// The pods are followed before anything is kept, because the start takes time while rules are set, and the
	// interface must be maintained from the moment that it exists.
	owned.Go(func() { s.pods.Run(ctx) })
	owned.Go(func() {
		if err := s.node.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			s.log.Errorf("interface and rules are no longer maintained: %v", err)
		}
	})
	if err := s.start(); err != nil {
		return err
	}
	if !s.flags.quiet {
		fmt.Fprintf(stdout, "localcache %s\n", buildVersion())
	}
	owned.Go(func() { s.source.Watch(ctx) })

	if err := writePidfile(s.flags.pidfile); err != nil {
		s.log.Errorf("pidfile: %v", err)
	}
	graceful := s.untilSignal(signals)
	exit, hurried := s.exit(signals)
	defer hurried()
	err := s.stop(exit, graceful)
	cancel()
	// A tool that hangs, or a lock that is held, must not keep the process from ending.
	if !within(exit, owned.Wait) {
		s.log.Warningf("the node's network is still being worked on: leaving it as it is")
		os.Exit(cli.ExitFailed)
	}
	closeCtx, done := context.WithTimeout(context.WithoutCancel(exit), closeTimeout)
	defer done()
	return errors.Join(err, s.node.Close(closeCtx), removePidfile(s.flags.pidfile))
}

// exit is the time that is left to end in: exitTimeout, or until SIGINT or SIGQUIT asks for haste. Another
// SIGTERM does not, because some supervisors send it twice, to the process and to its group.
func (s *server) exit(signals <-chan os.Signal) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), exitTimeout)
	go func() {
		for {
			select {
			case sig := <-signals:
				if sig == syscall.SIGINT || sig == syscall.SIGQUIT {
					s.log.Warningf("%v: ending at once", sig)
					cancel()
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

// within runs f and reports whether it finished in time.
func within(ctx context.Context, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-ctx.Done():
	}
	// Even in haste, work that takes no time is waited for.
	select {
	case <-done:
		return true
	case <-time.After(time.Second):
		return false
	}
}

// assemble creates the parts and registers them with CoreDNS. Its registries belong to the process, so it can run
// only once.
func (s *server) assemble() error {
	caddy.Quiet = true
	caddy.AppName, caddy.AppVersion = "localcache", buildVersion()
	dnsserver.Quiet = s.flags.quiet
	dnsserver.Port = s.flags.dnsPort.String()

	var err error
	if s.node, err = setup.New(s.flags.setupFlags()); err != nil {
		return err
	}
	if err := registerDirectives(); err != nil {
		return err
	}
	s.node.Register()
	upstreams, queries := observe.NewUpstreams(0), observe.NewQueries(observe.QueriesOptions{})
	limits := upstream.Limits{Queries: memory.MaxWaiting(debug.SetMemoryLimit(-1))} // as keepHeap has set it
	s.ahead = forward.New(forward.Options{Statistics: upstreams, Limits: limits})
	s.ahead.Register()
	s.pods = podfeed.New(func(a netip.Addr, before time.Time) { queries.Forget(a, before) }, clog.NewWithPlugin(diagDirective))
	s.diag = diag.New(diag.Options{
		Off: !bool(s.flags.diag), Queries: queries, Upstreams: upstreams, Pods: s.pods, OnPods: s.pods.Want,
		Socket: os.Getenv(cli.SocketVariable), Node: os.Getenv(podfeed.NodeVariable), Version: buildVersion(),
	})
	s.diag.Register()
	options := fastpath.Options{Off: !bool(s.flags.fastpath)}
	if s.flags.diag {
		options.Queries = s.diag
		if s.implied(diagDirective) {
			options.Also = s.diag.Attach
		}
	}
	keep := cache.New(cache.Options{})
	keep.Register()
	fast := fastpath.New(options)
	fast.Register()
	reg := prometheus.DefaultRegisterer
	if err := errors.Join(s.node.RegisterMetrics(), keep.RegisterMetrics(reg), s.ahead.RegisterMetrics(reg), fast.RegisterMetrics(reg), s.diag.RegisterMetrics(reg)); err != nil {
		return err
	}
	s.source, err = corefile.NewSource(corefile.Options{
		Conf:           s.flags.conf,
		Corefile:       s.flags.corefile,
		Base:           s.flags.baseCorefile,
		KubeDNSDir:     s.flags.kubeDNSCM,
		LocalIPs:       s.flags.localIPs,
		Port:           uint16(s.flags.dnsPort),
		UpstreamSvc:    s.flags.upstreamSvc,
		PrometheusAddr: s.flags.prometheusAddr,
		Getenv:         os.Getenv,
		OnError: func(err error) {
			s.node.CountConfigError()
			s.log.Errorf("the configuration is wrong, the one before it stays in force: %v", err)
		},
		OnRecovered: func() { s.log.Infof("the configuration is right again") },
		OnChange: func() {
			if s.flags.reloadBySignal {
				s.wantReload()
			}
		},
	})
	if err != nil {
		return err
	}
	caddy.RegisterCaddyfileLoader("localcache", caddy.LoaderFunc(s.load))
	return nil
}

// serverType is caddy's name for the kind of server that CoreDNS is.
const serverType = "dns"

// load returns the Corefile at start, at a reload and, for CoreDNS, at each check of the reload plugin. The first two
// do not use caddy.LoadCaddyfile, which turns errors into text and mentions a Caddyfile.
func (s *server) load(serverType string) (caddy.Input, error) {
	name, content, err := s.source.Load()
	if err != nil {
		return nil, err
	}
	// A block has room for one word after its brace. fastpath brings diag with it.
	word := ""
	switch {
	case s.implied(fastpathDirective):
		word = fastpathDirective
	case s.implied(diagDirective):
		word = diagDirective
	}
	if word != "" {
		var skipped []int
		content, skipped = corefile.AddDirective(content, word)
		for _, line := range skipped {
			// At each look of the reload directive this would be said again.
			if _, said := s.skipped.LoadOrStore(fmt.Sprint(name, ":", line), true); !said {
				s.log.Infof("%s:%d: %s is not added to this block: its first directive must be on a line of its own, within braces", name, line, word)
			}
		}
	}
	return caddy.CaddyfileInput{Filepath: name, Contents: content, ServerTypeName: serverType}, nil
}

// implied reports whether each block gets one of localcache's directives: with -localip, node-cache's way to start,
// unless it is switched off.
func (s *server) implied(directive string) bool {
	on := s.flags.fastpath
	if directive == diagDirective {
		on = s.flags.diag
	}
	return len(s.flags.localIPs) > 0 && bool(on)
}

// start starts the server, or leaves nothing behind and returns the reason.
func (s *server) start() error {
	in, err := s.load(serverType)
	if err != nil {
		return err
	}
	if _, err := caddy.Start(in); err != nil {
		// The sockets that did open still exist; the holders of the others are looked up before they close.
		err = s.explain(err)
		return errors.Join(err, caddy.Stop(), s.node.Rollback())
	}
	if err := s.node.Err(); err != nil {
		// Not the shutdown callbacks: nothing depends on this server yet, and health would wait for its lameduck.
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		return errors.Join(fmt.Errorf("the node's network: %w", err), caddy.Stop(), s.node.Close(ctx))
	}
	return nil
}

// untilSignal serves until a signal asks for the end, and reports whether the end should be graceful.
func (s *server) untilSignal(signals <-chan os.Signal) (graceful bool) {
	for {
		select {
		case <-s.reload:
			s.restart()
		case sig := <-signals:
			switch sig {
			case syscall.SIGTERM, syscall.SIGINT:
				s.log.Infof("%v: draining", sig)
				return true
			case syscall.SIGQUIT:
				s.log.Infof("%v: ending at once", sig)
				return false
			case syscall.SIGUSR1:
				s.wantReload()
			case syscall.SIGHUP:
				// SIGHUP comes when a terminal closes, which is no reason to end the node's DNS.
			}
		}
	}
}

func (s *server) wantReload() {
	select {
	case s.reload <- struct{}{}:
	default:
	}
}

// restart reloads the Corefile. The running instance stays where the new one fails. A reload that the
// reload directive has under way is waited for, and may have made this one superfluous; it is done all
// the same, because the Corefile may have changed in between.
func (s *server) restart() {
	in, err := s.load(serverType)
	replaced := true // by the other reload, while this one waited for it
	for tries := 0; err == nil && replaced && tries < 3; tries++ {
		ended := make(chan struct{})
		go func() { // it ends without a result if the instance was replaced
			defer close(ended)
			_, err = s.node.Serving().Restart(in)
			replaced = false
		}()
		<-ended
	}
	if err != nil {
		s.log.Errorf("reload failed, the configuration before it stays in force: %v", err)
	}
}

// stop sends new queries elsewhere, answers the pending ones, and closes the sockets; in haste it only closes them.
func (s *server) stop(exit context.Context, graceful bool) error {
	if graceful {
		if err := s.node.Drain(exit); err != nil {
			// Only queries at the moment of closing the sockets are affected.
			s.log.Warningf("new queries are not led away: %v", err)
		}
		least := time.After(drainTime)
		within(exit, func() {
			for _, err := range s.node.Serving().ShutdownCallbacks() { // health waits here for its lameduck
				s.log.Warningf("shutdown: %v", err)
			}
			select {
			case <-least:
			case <-exit.Done():
			}
		})
	}
	var err error
	if !within(exit, func() { err = caddy.Stop(); s.ahead.Close() }) {
		return errors.New("the servers did not stop in time")
	}
	return err
}

func checkPidfile(path string) error {
	if path == "" {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".pid-*")
	if err != nil {
		return fmt.Errorf("-pidfile %s cannot be written: %w; mount a writable directory there or leave the flag out", path, errors.Unwrap(err))
	}
	return errors.Join(tmp.Close(), os.Remove(tmp.Name()))
}

// writePidfile is called last, because the file shows that the sockets are open. The file appears complete.
func writePidfile(path string) error {
	if path == "" {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".pid-*")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(tmp, os.Getpid())
	if err := errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return os.Rename(tmp.Name(), path)
}

// removePidfile removes the file unless another process has written it anew, as the next one of an upgrade
// does.
func removePidfile(path string) error {
	if path == "" {
		return nil
	}
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || err == nil && strings.TrimSpace(string(content)) != strconv.Itoa(os.Getpid()) {
		return nil
	}
	return errors.Join(err, os.Remove(path))
}

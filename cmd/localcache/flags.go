package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/nodenet"
	"localcache.dev/localcache/plugin/setup"
)

// serveFlags are the flags of serve: node-cache's with their meanings, and CoreDNS's own.
type serveFlags struct {
	localIPs       addrList
	setupInterface bool
	interfaceName  string
	setupIPTables  bool
	skipTeardown   bool
	syncInterval   seconds
	metricsAddr    string
	prometheusAddr string
	baseCorefile   string
	corefile       string
	kubeDNSCM      string
	upstreamSvc    string
	healthPort     port
	reloadBySignal bool
	fastpath       onOff
	diag           onOff

	conf        string
	dnsPort     port
	pidfile     string
	listPlugins bool
	showVersion bool
	quiet       bool

	given map[string]bool // the flags on the command line, by name
}

// newServeFlags declares the flags with their defaults.
func newServeFlags() (*serveFlags, *flag.FlagSet) {
	f := &serveFlags{syncInterval: seconds(nodenet.DefaultCheck), dnsPort: 53, fastpath: true, diag: true}
	fs := flag.NewFlagSet("localcache serve", flag.ContinueOnError)
	fs.Var(&f.localIPs, "localip", "comma-separated `addresses` that pods query; they are put on the interface and kept out of connection tracking")
	fs.BoolVar(&f.setupInterface, "setupinterface", true, "create the interface and put the addresses on it")
	fs.StringVar(&f.interfaceName, "interfacename", "", "`name` of the interface that carries the addresses (default nodelocaldns with --localip, else localcache)")
	fs.BoolVar(&f.setupIPTables, "setupiptables", true, "set the packet rules (iptables or nftables, whichever the node uses)")
	fs.BoolVar(&f.skipTeardown, "skipteardown", false, "leave interface and rules in place at exit; when given it overrides setup's on_exit")
	fs.Var(&f.syncInterval, "syncinterval", "`time` between two checks of interface and rules: 60, 60s, 1m")
	fs.StringVar(&f.metricsAddr, "metrics-listen-address", "0.0.0.0:9353", "`address` for the metrics of the setup, with --localip; empty for none")
	fs.StringVar(&f.prometheusAddr, "prometheus-listen-address", ":9253", "`address` for the placeholder __PROMETHEUS__ENDPOINT__")
	fs.StringVar(&f.baseCorefile, "basecorefile", "/etc/coredns/Corefile.base", "template `file` that is rendered to the Corefile, if it exists")
	fs.StringVar(&f.corefile, "corefile", "", "another name for --conf, whose `file` wins; a template is rendered to /etc/Corefile where neither is given")
	fs.StringVar(&f.kubeDNSCM, "kubednscm", "", "`directory` of the kube-dns ConfigMap (stubDomains, upstreamNameservers); /etc/kube-dns if it exists")
	fs.StringVar(&f.upstreamSvc, "upstreamsvc", "kube-dns", "`name` of the Service whose cluster IP, from the environment, replaces __PILLAR__CLUSTER__DNS__")
	fs.Var(&f.healthPort, "health-port", "`port` of a further health endpoint to keep out of connection tracking; that of the Corefile is known")
	fs.BoolVar(&f.reloadBySignal, "reloadwithsignal", false, "reload as soon as the rendered Corefile changes, without the reload plugin")
	fs.Var(&f.diag, "diag", "`on|off`: record queries and serve diagnostics; with --localip in each block that can be, else in those with the directive diag")
	fs.Var(&f.fastpath, "fastpath", "`on|off`: answer cache hits at the socket; with --localip in each block that can be, else in those with the directive fastpath")

	fs.StringVar(&f.conf, "conf", "", "the Corefile to serve, a `file` or stdin; with a --basecorefile it is written, atomically (default ./Corefile)")
	fs.Var(&f.dnsPort, "dns.port", "`port` of server blocks that name none, and of the rules")
	fs.Var(&f.dnsPort, "p", "short for --dns.port `port`")
	fs.StringVar(&f.pidfile, "pidfile", "", "`file` to write the process id to, once the sockets are open")
	fs.BoolVar(&f.listPlugins, "plugins", false, "list the directives that are built in, and exit")
	fs.BoolVar(&f.showVersion, "version", false, "print the version, and exit")
	fs.BoolVar(&f.quiet, "quiet", false, "do not print what is served at start")
	return f, fs
}

// parseServeFlags parses the command line. Its errors name the flag, what is wrong with it and what is accepted.
func parseServeFlags(args []string) (*serveFlags, error) {
	f, fs := newServeFlags()
	fs.SetOutput(io.Discard)
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		if name := unknownFlag(fs, args); name != "" {
			return nil, fmt.Errorf("unknown flag -%s%s; accepted are: %s", name, suggestion(fs, name), strings.Join(cli.FlagNames(fs), " "))
		}
		return nil, err
	}
	if fs.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q: serve takes flags only (a flag that is true or false takes its value after '=', as in -setupinterface=false)", fs.Arg(0))
	}
	f.given = map[string]bool{}
	fs.Visit(func(g *flag.Flag) { f.given[g.Name] = true })
	return f, nil
}

// setupFlags is the share of the node's network.
func (f *serveFlags) setupFlags() setup.Flags {
	s := setup.Flags{
		LocalIPs:       f.localIPs,
		SetupInterface: f.setupInterface,
		SetupIPTables:  f.setupIPTables,
		Port:           uint16(f.dnsPort),
	}
	if f.given["interfacename"] {
		s.Interface = &f.interfaceName
	}
	if f.given["skipteardown"] {
		s.SkipTeardown = &f.skipTeardown
	}
	if f.given["syncinterval"] {
		d := time.Duration(f.syncInterval)
		s.SyncInterval = &d
	}
	if f.given["health-port"] {
		p := uint16(f.healthPort)
		s.HealthPort = &p
	}
	return s
}

// unknownFlag returns the first flag in args that fs does not have, by the flag package's own reading
// of a command line; that package has no error type to ask.
func unknownFlag(fs *flag.FlagSet, args []string) string {
	for i := 0; i < len(args); i++ {
		dashed, ok := strings.CutPrefix(args[i], "-")
		if !ok || dashed == "" || dashed == "-" {
			return ""
		}
		name, _, hasValue := strings.Cut(strings.TrimPrefix(dashed, "-"), "=")
		known := fs.Lookup(name)
		if known == nil {
			return name
		}
		if b, ok := known.Value.(interface{ IsBoolFlag() bool }); hasValue || ok && b.IsBoolFlag() {
			continue
		}
		i++ // its value
	}
	return ""
}

// suggestion finds the flag that was probably meant: one that differs in dashes, dots, case or a
// missing ending.
func suggestion(fs *flag.FlagSet, name string) string {
	plain := func(s string) string {
		return strings.ToLower(strings.NewReplacer("-", "", ".", "", "_", "").Replace(s))
	}
	found := ""
	fs.VisitAll(func(f *flag.Flag) {
		a, b := plain(f.Name), plain(name)
		if a == b || len(b) > 3 && (strings.HasPrefix(a, b) || strings.HasPrefix(b, a) && len(a) > 3) {
			found = f.Name
		}
	})
	if found == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean -%s?)", found)
}

// addrList is a comma-separated list of IP addresses, of one family or both.
type addrList []netip.Addr

func (l *addrList) String() string {
	var s []string
	for _, a := range *l {
		s = append(s, a.String())
	}
	return strings.Join(s, ",")
}

func (l *addrList) Set(v string) error {
	for _, s := range strings.Split(v, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue // a deployment's template may leave the second address empty
		}
		a, err := netip.ParseAddr(s)
		if err != nil {
			return fmt.Errorf("%q is not an IP address; accepted is a list such as 169.254.25.10,fd00::10", s)
		}
		if a = a.Unmap(); !slices.Contains(*l, a) {
			*l = append(*l, a)
		}
	}
	return nil
}

// seconds is a duration that may be written as a bare number of seconds. node-cache wanted the number
// and took only the duration.
type seconds time.Duration

func (d *seconds) String() string { return time.Duration(*d).String() }

func (d *seconds) Set(v string) error {
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		v = strconv.FormatUint(n, 10) + "s"
	}
	t, err := time.ParseDuration(v)
	if err != nil || t < time.Second || t > 24*time.Hour {
		return errors.New("accepted are seconds or a duration from 1s to 24h, such as 60, 60s or 1m")
	}
	*d = seconds(t)
	return nil
}

// onOff is a switch that is written as a word.
type onOff bool

func (o *onOff) String() string {
	if *o {
		return "on"
	}
	return "off"
}

func (o *onOff) Set(v string) error {
	switch v {
	case "on", "true":
		*o = true
	case "off", "false":
		*o = false
	default:
		return errors.New("accepted are on and off")
	}
	return nil
}

// port is a port number from 1 to 65535.
type port uint16

func (p *port) String() string {
	if *p == 0 {
		return "" // not given
	}
	return strconv.Itoa(int(*p))
}

func (p *port) Set(v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	if err != nil || n == 0 {
		return errors.New("accepted is a port number from 1 to 65535")
	}
	*p = port(n)
	return nil
}

// Package corefile turns the configuration of node-cache's users into the Corefile that is served: a template with
// placeholders, or a plain Corefile, and the kube-dns ConfigMap with its stub domains and upstream nameservers.
//
// The result is a pure function of the bytes read and of the flags (render); reading and writing surround it: Source
// reads, renders, writes the result if there is a template, and remembers the last good result. The rules:
//
//   - A start with anything unclear fails, and reports everything that is unclear at once.
//   - A bad edit never harms a running server: the last good content stays in force, and the problem is reported once.
//   - Lines keep their numbers from template to result, so that CoreDNS's messages point at the line that the user
//     wrote.
//   - Files appear complete: they are written beside their place and renamed, and read again if a ConfigMap volume
//     switched its ..data link in between.
//
// The package knows only as much of the Corefile as it needs (tokens, server blocks, one option of forward) and
// mirrors caddy's lexer, which CoreDNS uses. It does not read imported files: placeholders in them stay.
package corefile

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"
)

// Defaults of Options.
const (
	// DefaultConf is the Corefile in the working directory that is used without -conf, as in CoreDNS.
	DefaultConf = "Corefile"
	// DefaultRendered is where a template is rendered to if neither -conf nor -corefile is given.
	DefaultRendered = "/etc/Corefile"
	// DefaultKubeDNSDir is the default of -kubednscm, if it exists.
	DefaultKubeDNSDir = "/etc/kube-dns"
	// DefaultUpstreamSvc is the Service that __PILLAR__CLUSTER__DNS__ stands for.
	DefaultUpstreamSvc = "kube-dns"
	// DefaultPort is the port of stub domain blocks and of server blocks without one.
	DefaultPort = 53
	// DefaultInterval is how often Watch looks for changes. The kubelet itself needs up to a minute to bring a
	// ConfigMap to the node, so that a shorter interval gains nothing.
	DefaultInterval = 10 * time.Second
	// MaxFileSize bounds each file that is read, in bytes. It is the size limit of a ConfigMap.
	MaxFileSize = 1 << 20
	// Stdin is the -conf that reads the Corefile from standard input.
	Stdin = "stdin"
)

// Options say where the parts of a Corefile come from. The zero value serves the file Corefile of the
// working directory.
type Options struct {
	// Conf is -conf: the Corefile, or "stdin". With a template in Base it is the file that the
	// template is rendered to. Empty means Corefile, then the file Corefile of the working directory.
	Conf string
	// Corefile is -corefile, node-cache's other name for Conf; Conf wins. Leave it empty unless the flag was given.
	Corefile string
	// Base is -basecorefile, the template. If no such file exists, Conf itself is the template and is expanded in
	// memory only. -conf stdin ignores it.
	Base string
	// KubeDNSDir is -kubednscm, the directory of the kube-dns ConfigMap. Empty means DefaultKubeDNSDir if that
	// exists, else none.
	KubeDNSDir string
	// LocalIPs are -localip, in the given order.
	LocalIPs []netip.Addr
	// Port is -dns.port; 0 means DefaultPort.
	Port uint16
	// UpstreamSvc is -upstreamsvc; empty means DefaultUpstreamSvc.
	UpstreamSvc string
	// PrometheusAddr is -prometheus-listen-address.
	PrometheusAddr string
	// Interval is the time between two looks of Watch; 0 means DefaultInterval.
	Interval time.Duration
	// Getenv looks up the environment; nil means os.Getenv.
	Getenv func(string) string
	// Stdin is read once when Conf is "stdin"; nil means os.Stdin.
	Stdin io.Reader

	// OnError is called with a state that cannot be served while an older one is, once for each distinct problem
	// until the next recovery.
	OnError func(error)
	// OnRecovered is called when the problems of OnError are gone.
	OnRecovered func()
	// OnChange is called by Watch, and only there, when the content to serve has changed.
	//
	// The three callbacks come in the order of events, at most one at a time for OnError and
	// OnRecovered, on the goroutine of some Load or Watch, with no lock held: they may call Load.
	OnChange func()

	defaultKubeDNSDir string // seam for tests; empty means DefaultKubeDNSDir
}

// Source provides the Corefile to serve. Its methods are safe for concurrent use.
type Source struct {
	opt       Options
	name      string // of the served content, for messages
	template  string // the file that is read; "stdin" without one
	rendered  string // the file that is written; empty where the template is served from memory
	stdin     bool
	kubeDNS   string // directory of the kube-dns ConfigMap; empty without one
	fromStdin []byte

	mu         sync.Mutex
	good       []byte // the last content that could be served
	loaded     bool   // good is set
	generation int    // counts the changes of good
	notified   int    // the generation that OnChange was last called for
	reported   map[string]bool
	events     []func() // callbacks due, in order
	delivering bool
}

// NewSource finds out which files there are, and reads standard input if that is the Corefile. Its
// errors name flags and paths; files are first read by Load.
func NewSource(opt Options) (*Source, error) {
	if opt.Port == 0 {
		opt.Port = DefaultPort
	}
	if opt.UpstreamSvc == "" {
		opt.UpstreamSvc = DefaultUpstreamSvc
	}
	if opt.Interval <= 0 {
		opt.Interval = DefaultInterval
	}
	if opt.Getenv == nil {
		opt.Getenv = os.Getenv
	}
	if opt.Stdin == nil {
		opt.Stdin = os.Stdin
	}
	if opt.defaultKubeDNSDir == "" {
		opt.defaultKubeDNSDir = DefaultKubeDNSDir
	}
	s := &Source{opt: opt, kubeDNS: opt.KubeDNSDir, reported: map[string]bool{}}
	if s.kubeDNS == "" {
		found, err := exists(opt.defaultKubeDNSDir)
		if err != nil {
			return nil, fmt.Errorf("cannot look for the kube-dns ConfigMap: %w", err)
		}
		if found {
			s.kubeDNS = opt.defaultKubeDNSDir
		}
	}
	open := s.openFiles
	if opt.Conf == Stdin {
		open = s.openStdin
	}
	if err := open(); err != nil {
		return nil, err
	}
	return s, nil
}

// String says what is read and written, for a log line.
func (s *Source) String() string {
	what := s.name
	if s.rendered != "" {
		what = fmt.Sprintf("%s, rendered from %s", s.rendered, s.template)
	}
	if s.kubeDNS != "" {
		what += fmt.Sprintf(", with the kube-dns ConfigMap in %s", s.kubeDNS)
	}
	return what
}

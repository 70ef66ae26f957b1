// Package corefile turns what node-cache users have into the Corefile that is served: a template with
// placeholders, or a plain Corefile, and the kube-dns ConfigMap with its stub domains and upstream
// nameservers.
//
// What is served is a pure function of the bytes read and of the flags (render), and reading and
// writing stand around it: Source reads, renders, writes the result where there is a template, and
// remembers the last good result. The rules that everything here keeps:
//
//   - A start with anything unclear fails, and says all that is unclear at once.
//   - A running server is never harmed by a bad edit: the last good content goes on being served, and
//     the problem is reported once.
//   - Lines keep their numbers from template to result, so that CoreDNS's own messages point at the
//     line that the user wrote.
//   - Files appear whole: written beside their place and renamed, read again when a ConfigMap volume
//     switched its ..data link in between.
//
// The package knows the Corefile only as far as it must (tokens, server blocks, one option of forward)
// and mirrors the lexer of caddy, which CoreDNS reads it with. A file that a Corefile imports is not
// looked at: placeholders in it stay as they are.
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
	// DefaultConf is the Corefile that is looked for in the working directory without -conf, as
	// CoreDNS does.
	DefaultConf = "Corefile"
	// DefaultRendered is where a template is rendered to when neither -conf nor -corefile is given.
	DefaultRendered = "/etc/Corefile"
	// DefaultKubeDNSDir is taken for -kubednscm where it exists.
	DefaultKubeDNSDir = "/etc/kube-dns"
	// DefaultUpstreamSvc is the Service that __PILLAR__CLUSTER__DNS__ stands for.
	DefaultUpstreamSvc = "kube-dns"
	// DefaultPort is the port of stub domain blocks and of server blocks that name none.
	DefaultPort = 53
	// DefaultInterval is how often Watch looks for changes. The kubelet itself needs up to a minute
	// to bring a ConfigMap to the node, so that less gains nothing.
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
	// Corefile is -corefile, node-cache's other name for Conf; Conf wins. Leave it empty unless the
	// flag was given.
	Corefile string
	// Base is -basecorefile, the template. Where no such file exists, Conf itself is the template
	// and is expanded in memory only. -conf stdin leaves it aside.
	Base string
	// KubeDNSDir is -kubednscm, the directory of the kube-dns ConfigMap. Empty means
	// DefaultKubeDNSDir if that exists, else none.
	KubeDNSDir string
	// LocalIPs are -localip, in the order given.
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

	// OnError is told of a state that cannot be served while an older one is, once for each distinct
	// problem until the next recovery.
	OnError func(error)
	// OnRecovered is told that the problems of OnError are gone.
	OnRecovered func()
	// OnChange is called by Watch, and only there, when the content to serve has changed.
	//
	// The three callbacks come in the order of events, at most one at a time for OnError and
	// OnRecovered, on the goroutine of some Load or Watch, with no lock held: they may call Load.
	OnChange func()

	defaultKubeDNSDir string // seam for tests; empty means DefaultKubeDNSDir
}

// Source gives the Corefile to serve. Its methods are safe for concurrent use.
type Source struct {
	opt       Options
	name      string // of what is served, for messages
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

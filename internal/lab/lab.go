package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// LocalIP is the address that pods ask unless Config says otherwise: nodelocaldns' default in
// kubespray, link-local so that it means this node on every node.
const LocalIP = "169.254.25.10"

// defaultSearch is a pod's search list in namespace default.
var defaultSearch = []string{"default.svc.cluster.local", "svc.cluster.local", "cluster.local"}

// Config says what to build. The zero value is a useful lab.
type Config struct {
	Pods       int          // number of pods, 2 where 0, at most 64
	KubeDNS    int          // number of kube-dns replicas, 2 where 0, at most 8
	Nameserver []netip.Addr // of the pods; LocalIP where empty
	Search     []string     // of the pods; the usual three where empty
	TTL        uint32       // seconds, of Services in the cluster zone; 30 where 0
	Proxy      Proxy        // how the node translates the Service address; nftables if empty
}

// Lab is a running lab. Its fields are for reading.
type Lab struct {
	Node     *Host
	Pods     []*Host
	KubeDNS  []*Server // the replicas behind the Service
	Upstream *Server   // the resolver outside of the cluster; the node's own resolv.conf names it

	Service   netip.Addr // kube-dns' cluster IP, translated by the node to the replicas
	ServiceV6 netip.Addr // invalid where the kernel has no IPv6

	Cluster  *Zone // answered by every kube-dns replica
	External *Zone // answered by Upstream

	hosts []*Host // every host, in the order of their making
	dir   string
}

// plan is the address plan, as in a kubespray cluster: pods in 10.233.64.0/18, Services in 10.233.0.0/18. The
// outside world has documentation addresses (RFC 5737, RFC 3849).
var plan = struct {
	node, node6         netip.Addr // the pods' gateway, on every pod's link
	uplink, uplink6     netip.Addr // the node's own address
	pod, pod6           netip.Addr // of the first pod; the others follow
	dns, dns6           netip.Addr // of the first kube-dns replica; the others follow
	service, service6   netip.Addr
	upstream, upstream6 netip.Addr
	cluster, cluster6   netip.Prefix // every pod
}{
	node: netip.MustParseAddr("10.233.64.1"), node6: netip.MustParseAddr("fd00:10:233:64::1"),
	uplink: netip.MustParseAddr("192.0.2.10"), uplink6: netip.MustParseAddr("2001:db8:1::10"),
	pod: netip.MustParseAddr("10.233.64.11"), pod6: netip.MustParseAddr("fd00:10:233:64::11"),
	dns: netip.MustParseAddr("10.233.74.65"), dns6: netip.MustParseAddr("fd00:10:233:64::7465"),
	service: netip.MustParseAddr("10.233.0.3"), service6: netip.MustParseAddr("fd00:10:233::3"),
	upstream: netip.MustParseAddr("198.51.100.53"), upstream6: netip.MustParseAddr("2001:db8:53::53"),
	cluster: netip.MustParsePrefix("10.233.64.0/18"), cluster6: netip.MustParsePrefix("fd00:10:233:64::/64"),
}

// New builds a lab. It returns an error that wraps ErrRefused if the kernel does not allow this user one, and an
// error in a process that did not call Enter or Main.
func New(cfg Config) (*Lab, error) {
	if err := outside(); err != nil {
		return nil, err
	}
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(worldMark, "lab-")
	if err != nil {
		return nil, err
	}
	l := &Lab{dir: dir, Service: plan.service}
	if err := l.build(cfg); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// outside returns why this process is not in a private world; nil if it is.
func outside() error {
	if reason := os.Getenv(envRefused); reason != "" {
		return fmt.Errorf("%w: %s", ErrRefused, reason)
	}
	if !insideWorld() {
		return errors.New("outside of a private world: call lab.Enter first, in tests lab.Main from TestMain")
	}
	return nil
}

// Require is for tests that need the private world but no lab: it skips the test if the kernel allows no world, or fails it with
// LOCALCACHE_LAB_REQUIRED=1.
func Require(t TB) {
	t.Helper()
	err := outside()
	if errors.Is(err, ErrRefused) && os.Getenv(envRequired) == "" {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
}

// complete fills in defaults and rejects what the address plan has no room for.
func (cfg *Config) complete() error {
	if cfg.Pods == 0 {
		cfg.Pods = 2
	}
	if cfg.KubeDNS == 0 {
		cfg.KubeDNS = 2
	}
	if cfg.TTL == 0 {
		cfg.TTL = 30
	}
	if len(cfg.Nameserver) == 0 {
		cfg.Nameserver = []netip.Addr{netip.MustParseAddr(LocalIP)}
	}
	if len(cfg.Search) == 0 {
		cfg.Search = defaultSearch
	}
	switch cfg.Proxy {
	case ProxyNFTables, ProxyIPTablesNFT, ProxyIPTablesLegacy:
	default:
		return fmt.Errorf("lab: unknown proxy %q", cfg.Proxy)
	}
	if cfg.Pods < 0 || cfg.Pods > 64 {
		return fmt.Errorf("lab: %d pods; 1 to 64 are possible", cfg.Pods)
	}
	if cfg.KubeDNS < 0 || cfg.KubeDNS > 8 {
		return fmt.Errorf("lab: %d kube-dns replicas; 1 to 8 are possible", cfg.KubeDNS)
	}
	return nil
}

func (l *Lab) build(cfg Config) error {
	var err error
	v6 := kernelHasIPv6()
	upstreamOnly := ResolvConf{Nameservers: []netip.Addr{plan.upstream}}
	if l.Node, err = l.addHost("node", plan.uplink, plan.uplink6, v6, upstreamOnly); err != nil {
		return err
	}
	if err := l.Node.Do(prepareNode); err != nil {
		return fmt.Errorf("host node: %w", err)
	}
	if v6 {
		l.ServiceV6 = plan.service6
	}
	outside, err := l.addHost("upstream", plan.upstream, plan.upstream6, v6, ResolvConf{})
	if err != nil {
		return err
	}
	if err := connectUpstream(l.Node, outside); err != nil {
		return err
	}
	pod, pod6 := plan.pod, plan.pod6
	for i := range cfg.Pods {
		h, err := l.addHost(fmt.Sprintf("pod-%d", i+1), pod, pod6, v6,
			ResolvConf{Nameservers: cfg.Nameserver, Search: cfg.Search, Options: []string{"ndots:5"}})
		if err != nil {
			return err
		}
		if err := connectPod(l.Node, h); err != nil {
			return err
		}
		l.Pods = append(l.Pods, h)
		pod, pod6 = pod.Next(), pod6.Next()
	}
	l.External = externalZone()
	l.Upstream, err = newServer(outside, l.External.answer)
	if err != nil {
		return err
	}
	l.Cluster = clusterZone(cfg.TTL)
	dns, dns6 := plan.dns, plan.dns6
	for i := range cfg.KubeDNS {
		h, err := l.addHost(fmt.Sprintf("kube-dns-%d", i+1), dns, dns6, v6, upstreamOnly)
		if err != nil {
			return err
		}
		if err := connectPod(l.Node, h); err != nil {
			return err
		}
		s, err := newServer(h, kubeDNS{zone: l.Cluster, host: h, upstream: netip.AddrPortFrom(plan.upstream, 53)}.answer)
		if err != nil {
			return err
		}
		l.KubeDNS = append(l.KubeDNS, s)
		dns, dns6 = dns.Next(), dns6.Next()
	}
	return l.Node.Do(func() error {
		if cfg.Proxy == ProxyNFTables {
			return translateService(l.Service, l.ServiceV6, l.KubeDNS)
		}
		return translateByIPTables(cfg.Proxy, l.Service, l.ServiceV6, l.KubeDNS)
	})
}

// addHost creates a host without links and records it for Close.
func (l *Lab) addHost(name string, v4, v6 netip.Addr, hasIPv6 bool, r ResolvConf) (*Host, error) {
	h, err := newHost(name, l.dir, etcFiles{
		"resolv.conf":   r.String(),
		"hosts":         fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", v4, name),
		"nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	})
	if err != nil {
		return nil, err
	}
	h.IPv4 = v4
	if hasIPv6 {
		h.IPv6 = v6
	}
	l.hosts = append(l.hosts, h)
	if err := h.Do(prepareHost); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// Endpoints returns the addresses of the kube-dns replicas, IPv4 and, if the kernel has it, IPv6: the possible
// targets of a kernel fallback.
func (l *Lab) Endpoints() (v4, v6 []netip.Addr) {
	for _, s := range l.KubeDNS {
		v4 = append(v4, s.Host.IPv4)
		if s.Host.IPv6.IsValid() {
			v6 = append(v6, s.Host.IPv6)
		}
	}
	return v4, v6
}

// Close ends every program, server and namespace of the lab. It may be called twice.
func (l *Lab) Close() error {
	var errs []error
	for _, s := range append([]*Server{l.Upstream}, l.KubeDNS...) {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	// The node goes first: its programs must not complain about pods that vanish.
	for _, h := range l.hosts {
		errs = append(errs, h.close())
	}
	return errors.Join(append(errs, os.RemoveAll(l.dir))...)
}

// ResolvConf is a stub resolver's configuration, resolv.conf(5).
type ResolvConf struct {
	Nameservers []netip.Addr
	Search      []string
	Options     []string
}

// String returns the file.
func (r ResolvConf) String() string {
	var b strings.Builder
	for _, ns := range r.Nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", ns)
	}
	if len(r.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.Search, " "))
	}
	if len(r.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.Options, " "))
	}
	return b.String()
}

// TB is the share of testing.TB that Start needs.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Start is New for tests: it closes the lab at the end of the test, fails the test if it cannot be built, and skips
// it if the kernel allows no lab or the machine lacks the requested iptables.
func Start(t TB, cfg Config) *Lab {
	t.Helper()
	l, err := New(cfg)
	if os.Getenv(envRequired) == "" && (errors.Is(err, ErrRefused) || errors.Is(err, ErrNoIPTables)) {
		t.Skipf("%v", err)
	}
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("close the lab: %v", err)
		}
	})
	return l
}

// Path returns a path for a file of the given name on the lab's private tmpfs. The file vanishes with the lab and is
// visible to all of its hosts.
func (l *Lab) Path(name string) string { return filepath.Join(l.dir, name) }

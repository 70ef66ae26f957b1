package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"localcache.dev/localcache/bench/internal/report"
)

// capacity is the number of answers that each cache may hold: more than any work uses, so that no entry is evicted
// before it is used again.
const capacity = 150_000

// upstreamAddr is the address of the authoritative server, in a network of its own.
var upstreamAddr = netip.MustParseAddrPort("127.0.0.53:53")

// site holds what a server's configuration depends on.
type site struct {
	dir      string         // for its files
	addr     netip.AddrPort // to listen on
	upstream netip.AddrPort
	tcp      bool // ask the upstream over TCP for all names, not only for the cluster's
}

// contender is a server that can be measured.
type contender struct {
	report.Server
	program string   // path
	version []string // arguments that have it print its version
	install string   // what to do if the program is missing
	noTCP   bool     // cannot ask its upstream over TCP
	addr    netip.AddrPort
	// command writes the configuration and returns the arguments.
	command func(site) ([]string, error)
}

// programs are the paths of the programs of this repository.
type programs struct{ self, localcache, stock string }

// contenders lists all that can be measured, localcache first and the limits last. own and flags are
// directives and flags that only localcache gets.
func contenders(p programs, own, flags []string) []*contender {
	peer := func(name, path, pkg, version string, command func(site) ([]string, error)) *contender {
		return &contender{
			Server: report.Server{Name: name}, program: path, version: []string{version}, command: command,
			install: "bench/install-peers, or apt-get install " + pkg,
		}
	}
	all := []*contender{
		{
			Server: report.Server{Name: report.Subject, Subject: true}, program: p.localcache,
			version: []string{"version"}, install: "make build", command: localcache(own, flags),
		},
		{
			Server: report.Server{Name: report.Stock}, program: p.stock,
			version: []string{"-version"}, install: "make bench builds it", command: stock,
		},
		peer("unbound", "/usr/sbin/unbound", "unbound", "-V", unbound),
		peer("dnsdist", "/usr/bin/dnsdist", "dnsdist", "--version", dnsdist),
		peer("pdns-recursor", "/usr/sbin/pdns_recursor", "pdns-recursor", "--version", recursor),
		peer("dnsmasq", "/usr/sbin/dnsmasq", "dnsmasq-base", "--version", dnsmasq),
		{
			Server:  report.Server{Name: report.BatchedEcho, Echo: true, What: fmt.Sprintf("limit: sends datagrams back, up to %d of them a system call, in Go", echoBatch)},
			program: p.self, command: func(s site) ([]string, error) { return []string{"echo", "batched", s.addr.String()}, nil },
		},
		{
			Server:  report.Server{Name: "echo-single", Echo: true, What: "limit: sends datagrams back, one a system call, in Go"},
			program: p.self, command: func(s site) ([]string, error) { return []string{"echo", "single", s.addr.String()}, nil },
		},
	}
	for _, c := range all {
		if c.Name == "pdns-recursor" || c.Name == "dnsmasq" {
			c.noTCP = true
		}
	}
	for i, c := range all {
		c.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i + 1)}), 53)
	}
	return all
}

// choose returns the named contenders, or all if none is named.
func choose(all []*contender, names []string) ([]*contender, error) {
	if len(names) == 0 {
		return all, nil
	}
	var chosen []*contender
	for _, n := range names {
		i := slices.IndexFunc(all, func(c *contender) bool { return c.Name == n })
		if i < 0 {
			var known []string
			for _, c := range all {
				known = append(known, c.Name)
			}
			return nil, fmt.Errorf("unknown server %q; there are %s", n, strings.Join(known, ", "))
		}
		chosen = append(chosen, all[i])
	}
	return chosen, nil
}

// look finds out whether the contender's program is there, and which version.
func (c *contender) look(ctx context.Context) {
	if _, err := os.Stat(c.program); err != nil {
		c.Absent = fmt.Sprintf("no %s (%s)", c.program, c.install)
		return
	}
	if len(c.version) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, c.program, c.version...).CombinedOutput()
	if len(out) == 0 && err != nil {
		c.Absent = fmt.Sprintf("%s does not run: %v", c.program, err)
		return
	}
	line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	line, _, _ = strings.Cut(line, "  Copyright")
	c.What = line
}

// file writes a configuration file and returns its path.
func (s site) file(name, content string) (string, error) {
	path := filepath.Join(s.dir, name)
	return path, os.WriteFile(path, []byte(content), 0o644)
}

// corefile returns a node's Corefile: the cluster's names over TCP, everything else over UDP, with the usual plugins
// of a node. own are directives that only localcache knows.
func corefile(s site, own []string) string {
	block := func(zone string, tcp bool, extra ...string) string {
		forward := fmt.Sprintf("forward . %s", s.upstream)
		if tcp {
			forward += " {\n        force_tcp\n    }"
		}
		lines := []string{
			"errors",
			fmt.Sprintf("cache 3600 {\n        success %d 3600\n        denial %d 3600\n    }", capacity, capacity),
			"reload", "loop", fmt.Sprintf("bind %s", s.addr.Addr()), forward,
			fmt.Sprintf("prometheus %s:9253", s.addr.Addr()),
		}
		lines = append(append(lines, extra...), own...)
		return zone + " {\n    " + strings.Join(lines, "\n    ") + "\n}\n"
	}
	return block("cluster.local:53", true, fmt.Sprintf("health %s:9254", s.addr.Addr()), fmt.Sprintf("ready %s:9255", s.addr.Addr())) +
		block(".:53", s.tcp)
}

func stock(s site) ([]string, error) {
	path, err := s.file("Corefile", corefile(s, nil))
	return []string{"-conf", path, "-dns.port", "53"}, err
}

// localcache starts as on a node, but for interface and rules: no other server has them in its way.
func localcache(own, flags []string) func(site) ([]string, error) {
	return func(s site) ([]string, error) {
		path, err := s.file("Corefile", corefile(s, own))
		return append([]string{
			"-localip", s.addr.Addr().String(), "-setupinterface=false", "-setupiptables=false",
			"-metrics-listen-address", s.addr.Addr().String() + ":9353",
			"-basecorefile", filepath.Join(s.dir, "none"), "-conf", path, "-dns.port", "53",
		}, flags...), err
	}
}

func unbound(s site) ([]string, error) {
	tcp := ""
	if s.tcp {
		// As many connections as its queries in flight could use; it sends several over each.
		tcp = "  tcp-upstream: yes\n  outgoing-num-tcp: 10\n"
	}
	path, err := s.file("unbound.conf", fmt.Sprintf(`server:
  interface: %s@%d
  access-control: 127.0.0.0/8 allow
  do-not-query-localhost: no
  username: ""
  chroot: ""
  directory: "%s"
  pidfile: ""
  use-syslog: no
  verbosity: 0
  num-threads: 1
  do-ip6: no
  module-config: "iterator"
  msg-cache-size: 64m
  rrset-cache-size: 128m
  outgoing-range: 4096
  num-queries-per-thread: 2048
%sremote-control:
  control-enable: no
forward-zone:
  name: "."
  forward-addr: %s@%d
`, s.addr.Addr(), s.addr.Port(), s.dir, tcp, s.upstream.Addr(), s.upstream.Port()))
	return []string{"-d", "-p", "-c", path}, err
}

// dnsdist with its packet cache, and batched reads and writes as it has them since 1.2.
func dnsdist(s site) ([]string, error) {
	backend := ""
	if s.tcp {
		backend = ", tcpOnly=true, maxInFlight=100"
	}
	path, err := s.file("dnsdist.conf", fmt.Sprintf(`setSecurityPollSuffix('')
setUDPMultipleMessagesVectorSize(%d)
setLocal('%s', {reusePort=true})
setACL('127.0.0.0/8')
newServer({address='%s', healthCheckMode='up'%s})
cache = newPacketCache(%d, {maxTTL=86400})
getPool(''):setCache(cache)
`, echoBatch, s.addr, s.upstream, backend, capacity))
	return []string{"--supervised", "--disable-syslog", "-C", path}, err
}

func recursor(s site) ([]string, error) {
	_, err := s.file("recursor.conf", fmt.Sprintf(`local-address=%s
local-port=%d
forward-zones-recurse=.=%s
allow-from=127.0.0.0/8
dont-query=
threads=1
pdns-distributes-queries=no
dnssec=off
daemon=no
quiet=yes
loglevel=3
write-pid=no
socket-dir=%s
config-dir=%s
security-poll-suffix=
hint-file=no
webserver=no
serve-rfc1918=no
root-nx-trust=no
statistics-interval=0
max-cache-entries=%d
max-packetcache-entries=%d
packetcache-ttl=3600
`, s.addr.Addr(), s.addr.Port(), s.upstream, s.dir, s.dir, 2*capacity, capacity))
	return []string{"--config-dir=" + s.dir}, err
}

func dnsmasq(s site) ([]string, error) {
	return []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root", "--group=root", "--pid-file=",
		"--log-facility=/dev/null", "--bind-interfaces", fmt.Sprintf("--listen-address=%s", s.addr.Addr()), fmt.Sprintf("--port=%d", s.addr.Port()),
		fmt.Sprintf("--server=%s#%d", s.upstream.Addr(), s.upstream.Port()), fmt.Sprintf("--cache-size=%d", capacity), "--dns-forward-max=4000",
	}, nil
}

// builtIn keeps the directives that a localcache was built with.
func builtIn(ctx context.Context, program string, wanted []string) []string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "-plugins").Output()
	if err != nil {
		return nil // look reports that it does not run
	}
	has := strings.Fields(string(out))
	return slices.DeleteFunc(slices.Clone(wanted), func(d string) bool { return !slices.Contains(has, d) })
}

package netns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// Capabilities by number (linux/capability.h), as the stage without them takes them.
const (
	capDACOverride    = "1"
	capNetBindService = "10"
	capNetAdmin       = "12"
)

// smallCorefile is enough for a start.
const smallCorefile = `.:53 {
    bind 169.254.25.10
    forward . 10.233.0.3
    health 169.254.25.10:9254
}
`

// nodeState is all that localcache may make on a node: links, addresses, packet rules of every front
// end, and its names among processes.
func nodeState(t *testing.T, l *lab.Lab) string {
	t.Helper()
	need(t, "ip", "nft")
	return onNode(t, l, `
# Without what the kernel changes by itself: the carrier, and with it an address.
ip -o link | sed -E 's/(NO-CARRIER|LOWER_UP),?//g; s/ state [A-Z]+//'
ip -o addr | grep -v ' inet6 fe80:'
nft -s list ruleset
for f in ip ip6; do
	for table in $(cat /proc/net/${f}_tables_names 2>/dev/null); do
		${f}tables-legacy -w -t $table -S 2>/dev/null | sed "s/^/legacy $f $table /"
	done
done
grep -ao '@localcache.*' /proc/net/unix || true
`)
}

// changed are the lines that differ, for messages.
func changed(before, after string) string {
	count := map[string]int{}
	for line := range strings.Lines(before) {
		count[line]--
	}
	for line := range strings.Lines(after) {
		count[line]++
	}
	var b strings.Builder
	for line, n := range count {
		if n != 0 {
			fmt.Fprintf(&b, "%+d %s", n, line)
		}
	}
	return b.String()
}

// refusal is a start that must fail.
type refusal struct {
	corefile string   // smallCorefile where empty
	args     []string // after -localip and -conf
	env      []string
	stage    []string // a stage to start through, with its own arguments
	// says are patterns that the last line of the output, or several of them, must match.
	says []string
}

// refuse starts localcache and expects it to end by itself with status 1, to say why, and to leave the node as it
// was.
func (r refusal) refuse(t *testing.T, l *lab.Lab) {
	t.Helper()
	if r.corefile == "" {
		r.corefile = smallCorefile
	}
	conf := filepath.Join(t.TempDir(), "Corefile") // not below /run, which a stage may hide
	if err := os.WriteFile(conf, []byte(r.corefile), 0o644); err != nil {
		t.Fatal(err)
	}
	args := append([]string{"-localip", lab.LocalIP, "-conf", conf}, r.args...)
	before := nodeState(t, l)
	status, output := r.run(t, l, args)
	after := nodeState(t, l)
	if status != 1 {
		t.Errorf("exit status %d, want 1", status)
	}
	// Lines of the log come before; the reason is on the standard error, which has nothing else.
	for _, pattern := range r.says {
		if !regexp.MustCompile(`(?m)` + strings.ReplaceAll(pattern, "CONF", regexp.QuoteMeta(conf))).MatchString(output) {
			t.Errorf("the message has nothing like %s", pattern)
		}
	}
	if before != after {
		t.Errorf("the node is not what it was before:\n%s", changed(before, after))
	}
	if t.Failed() {
		t.Logf("localcache said:\n%s", output)
	}
}

// run runs localcache to its end and returns its exit status and its standard error.
func (r refusal) run(t *testing.T, l *lab.Lab, args []string) (status int, output string) {
	t.Helper()
	binary := os.Getenv(envBinary)
	cmd := exec.CommandContext(t.Context(), binary, args...)
	if len(r.stage) > 0 {
		cmd = stage(r.stage[0], append(append(r.stage[1:], binary), args...)...)
	}
	var errOut strings.Builder
	cmd.Stderr = &errOut
	cmd.Env = append(cmd.Environ(), r.env...)
	p, err := l.Node.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(startTimeout):
		t.Errorf("localcache still runs after %v", startTimeout)
		if err := p.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), errOut.String()
}

// TestWrongCorefile: a Corefile with a mistake stops the start with its line, however far the start had
// come.
func TestWrongCorefile(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
	for _, c := range []struct {
		name string
		refusal
	}{
		{"unknown directive", refusal{
			corefile: smallCorefile + "example.org {\n    forwad . 192.0.2.1\n}\n",
			says:     []string{`^localcache: CONF:7 - Error during parsing: Unknown directive 'forwad'$`},
		}},
		{"no closing brace", refusal{
			corefile: strings.TrimSuffix(smallCorefile, "}\n"),
			says:     []string{`^localcache: CONF:4 - Syntax error: Unexpected token '169\.254\.25\.10:9254', expecting '}'$`},
		}},
		// In the following cases the interface exists when the mistake is found.
		{"argument of a directive", refusal{
			corefile: strings.Replace(smallCorefile, "10.233.0.3", "10.233.0.3 {\n        force_udp\n    }", 1),
			says:     []string{`^localcache: plugin/forward: CONF:4 - Error during parsing: unknown property 'force_udp' of forward: accepted are except, force_tcp, .*$`},
		}},
		{"address of another host", refusal{
			corefile: strings.Replace(smallCorefile, "bind 169.254.25.10", "bind 203.0.113.7", 1),
			says:     []string{`203\.0\.113\.7:53: bind: cannot assign requested address`},
		}},
		{"health at an address of another host", refusal{
			corefile: strings.Replace(smallCorefile, "health 169.254.25.10:9254", "health 203.0.113.7:9254", 1),
			says:     []string{`203\.0\.113\.7:9254: bind: cannot assign requested address`},
		}},
		{"fallback without rules", refusal{
			corefile: strings.Replace(smallCorefile, "{\n", "{\n    setup {\n        fallback 10.233.74.65\n    }\n", 1),
			args:     []string{"-setupiptables=false"},
			says:     []string{`^localcache: CONF:2: fallback needs rules, but -setupiptables=false forbids them$`},
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.refuse(t, l) })
	}
}

// TestWrongInput: files, variables and templates that are not there or not right.
func TestWrongInput(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
	write := func(name, content string, mode os.FileMode) string {
		path := l.Path(name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	unreadable := write("unreadable", smallCorefile, 0)
	wrongBase := write("wrong.base", strings.Replace(smallCorefile, "10.233.0.3", "__PILLAR__KUBE__DNS__", 1), 0o644)
	base := write("Corefile.base", smallCorefile, 0o644)
	noDir := filepath.Join(l.Path("no-such-directory"), "Corefile")
	for _, c := range []struct {
		name string
		refusal
	}{
		{"missing variable", refusal{
			corefile: string(localcache.CorefileExample),
			args:     []string{"-upstreamsvc", "coredns"},
			env:      []string{"COREDNS_SERVICE_HOST="},
			says: []string{`^localcache: CONF:\d+: __PILLAR__CLUSTER__DNS__ needs the environment variable COREDNS_SERVICE_HOST, ` +
				`which the kubelet sets in pods of the namespace of Service "coredns" if that is older than the pod: ` +
				`create the Service, or name another with -upstreamsvc \(also on lines \d+, \d+\)$`},
		}},
		{"Service without an address", refusal{
			corefile: string(localcache.CorefileExample),
			env:      []string{"KUBE_DNS_SERVICE_HOST=None"},
			says:     []string{`^localcache: CONF:\d+: __PILLAR__CLUSTER__DNS__: environment variable KUBE_DNS_SERVICE_HOST="None" is not an IP address`},
		}},
		{"unknown placeholder in the template", refusal{
			args: []string{"-basecorefile", wrongBase},
			says: []string{`^localcache: ` + regexp.QuoteMeta(wrongBase) + `:3: unknown placeholder __PILLAR__KUBE__DNS__; known are __PILLAR__DNS__DOMAIN__, `},
		}},
		{"no directory to render to", refusal{
			args: []string{"-basecorefile", base, "-conf", noDir},
			says: []string{`^localcache: cannot write the Corefile ` + regexp.QuoteMeta(noDir) + `, to which the template ` + regexp.QuoteMeta(base) +
				` \(-basecorefile\) is rendered: no such file or directory: the directory .* is not there: mount an emptyDir volume`},
		}},
		{"no Corefile", refusal{
			args: []string{"-conf", l.Path("absent")},
			says: []string{`^localcache: no Corefile found; looked for the template /etc/coredns/Corefile.base \(-basecorefile\), .*absent \(-conf\): give one with -conf$`},
		}},
		{"Corefile that may not be read", refusal{
			args:  []string{"-conf", unreadable},
			stage: []string{stageWithout, capDACOverride + ",2"}, // and DAC_READ_SEARCH
			says:  []string{`^localcache: cannot read the Corefile: open ` + regexp.QuoteMeta(unreadable) + `: permission denied$`},
		}},
		{"Corefile that is a directory", refusal{
			args: []string{"-conf", filepath.Dir(unreadable)},
			says: []string{`^localcache: cannot read the Corefile: .* is not a regular file$`},
		}},
		{"ConfigMap that is not mounted", refusal{
			args: []string{"-kubednscm", l.Path("no-such-configmap")},
			says: []string{`the directory .*no-such-configmap \(-kubednscm\) does not exist: mount the ConfigMap there`},
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.refuse(t, l) })
	}
}

// TestPortTaken checks that the holder of the port is named, over each transport and however it is bound, and that an
// existing interface stays.
func TestPortTaken(t *testing.T) {
	for _, c := range []struct {
		name  string
		holds []string
	}{
		{"both transports", []string{"udp4", "169.254.25.10:53", "tcp4", "169.254.25.10:53"}},
		{"udp", []string{"udp4", "169.254.25.10:53"}},
		{"tcp", []string{"tcp4", "169.254.25.10:53"}},
		{"wildcard", []string{"udp4", "0.0.0.0:53"}},
		{"wildcard of both families", []string{"tcp", "[::]:53"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
			onNode(t, l, "ip link add nodelocaldns type bridge && ip link set nodelocaldns up && ip addr add 169.254.25.10/32 dev nodelocaldns")
			holder := startHolder(t, l, c.holds...)
			what := regexp.QuoteMeta(strings.Replace(c.holds[1], "[::]", "::", 1) + "/" + c.holds[0][:3])
			if c.holds[1] == "[::]:53" {
				what = regexp.QuoteMeta("[::]:53/tcp")
			}
			refusal{says: []string{
				`bind: address already in use`,
				fmt.Sprintf(`^%s is held by \S+ \(pid %d\): end it, or give localcache another address$`, what, holder.PID()),
			}}.refuse(t, l)
		})
	}
	t.Run("nothing of ours before", func(t *testing.T) {
		l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
		holder := startHolder(t, l, "udp4", "0.0.0.0:53")
		refusal{says: []string{fmt.Sprintf(`^0\.0\.0\.0:53/udp is held by \S+ \(pid %d\)`, holder.PID())}}.refuse(t, l)
	})
}

// TestForeignLink checks that an address of another interface is not taken from it.
func TestForeignLink(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
	onNode(t, l, "ip addr add 169.254.25.10/32 dev eth0")
	refusal{says: []string{
		`^localcache: the node's network: address 169\.254\.25\.10 is already on interface eth0: remove it there, or choose another address$`,
	}}.refuse(t, l)
}

// TestWithoutCapabilities checks that a missing capability of the container is named if it is needed, and ignored
// otherwise.
func TestWithoutCapabilities(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
	withoutNetAdmin := []string{stageWithout, capNetAdmin}
	t.Run("rules", func(t *testing.T) {
		refusal{stage: withoutNetAdmin, says: []string{
			`^localcache: the node's network: notrack auto: packet rules need the capability NET_ADMIN: add it to the container's securityContext or choose notrack off: operation not permitted$`,
		}}.refuse(t, l)
	})
	t.Run("interface", func(t *testing.T) {
		refusal{stage: withoutNetAdmin, args: []string{"-setupiptables=false"}, says: []string{
			`^localcache: the node's network: interface nodelocaldns: create it: operation not permitted: the process needs NET_ADMIN for that, or -setupinterface=false if another program creates the interface$`,
		}}.refuse(t, l)
	})
	t.Run("port", func(t *testing.T) {
		refusal{stage: []string{stageWithout, capNetBindService}, says: []string{
			`169\.254\.25\.10:53: bind: permission denied`,
			`^port 53 needs the capability NET_BIND_SERVICE: add it to the container's securityContext$`,
		}}.refuse(t, l)
	})
	t.Run("not needed", func(t *testing.T) {
		onNode(t, l, "ip link add nodelocaldns type bridge && ip link set nodelocaldns up && ip addr add 169.254.25.10/32 dev nodelocaldns")
		conf := l.Path("Corefile")
		if err := os.WriteFile(conf, []byte(smallCorefile), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := stage(stageWithout, capNetAdmin, os.Getenv(envBinary), "-localip", lab.LocalIP, "-conf", conf, "-setupinterface=false", "-setupiptables=false")
		launch(t, l, cmd).waitAnswers(startTimeout)
	})
}

// TestTools: a front end that was chosen and is not there, and one that cannot take its lock.
func TestTools(t *testing.T) {
	l := lab.Start(t, lab.Config{Pods: 1, KubeDNS: 1})
	iptables := strings.Replace(smallCorefile, "{\n", "{\n    setup {\n        notrack iptables\n    }\n", 1)
	t.Run("no program", func(t *testing.T) {
		refusal{corefile: iptables, env: []string{"PATH="}, says: []string{
			`^localcache: the node's network: notrack iptables: no iptables program is in PATH: install iptables \(package iptables\) or choose notrack nftables$`,
		}}.refuse(t, l)
	})
	t.Run("pidfile on a read-only /run", func(t *testing.T) {
		refusal{args: []string{"-pidfile", "/run/localcache.pid"}, stage: []string{stageNoRun}, says: []string{
			`^localcache: -pidfile /run/localcache\.pid cannot be written: .*read-only file system; mount a writable directory there or leave the flag out$`,
		}}.refuse(t, l)
	})
	t.Run("lock on a read-only /run", func(t *testing.T) {
		need(t, iptablesLegacy, "ip6tables-legacy")
		// The other variant needs no lock, and would be taken.
		dir := t.TempDir()
		for _, name := range []string{iptablesLegacy, "ip6tables-legacy"} {
			path, err := exec.LookPath(name)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, name))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		refusal{corefile: iptables, env: []string{"PATH=" + dir}, stage: []string{stageNoRun}, says: []string{
			`cannot open its lock: open /run/xtables\.lock: read-only file system: make the directory writable or mount the host's file`,
		}}.refuse(t, l)
	})
}

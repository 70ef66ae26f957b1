package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy/caddyfile"
	"k8s.io/kubernetes/pkg/apis/core"
)

// placeholder is a word that localcache fills in; in a comment it is only talked about.
var (
	placeholder = regexp.MustCompile(`__[A-Z]+(__[A-Z]+)*__`)
	comment     = regexp.MustCompile(`(?m)^[ \t]*#.*$`)
)

// pageToken is where the component diag-page has its token, and pageDirective what it adds to the Corefile: on loopback,
// where port-forward comes in.
const pageToken = "/etc/localcache-diag/token"

var pageDirective = []string{"diag", "{", "listen", "127.0.0.1:9257", "access", "token", pageToken, "}"}

// Fill replaces the placeholders of a Corefile as localcache does with args and env.
func Fill(text string, args []string, env map[string]string, n Node) (string, error) {
	local, _ := Flag(args, "localip")
	upstream, _ := Flag(args, "upstreamsvc")
	values := map[string]string{
		"__PILLAR__LOCAL__DNS__":        strings.ReplaceAll(local, ",", " "),
		"__PILLAR__DNS__DOMAIN__":       env["CLUSTER_DOMAIN"],
		"__PILLAR__CLUSTER__DNS__":      n.ServiceHosts[upstream],
		"__PILLAR__UPSTREAM__SERVERS__": "/etc/resolv.conf",
	}
	var errs []error
	filled := placeholder.ReplaceAllStringFunc(comment.ReplaceAllString(text, ""), func(word string) string {
		v, known := values[word]
		if !known {
			errs = append(errs, fmt.Errorf("placeholder %s is not known", word))
		} else if v == "" {
			errs = append(errs, fmt.Errorf("placeholder %s has no value: -localip=%s -upstreamsvc=%s CLUSTER_DOMAIN=%s", word, local, upstream, env["CLUSTER_DOMAIN"]))
		}
		return v
	})
	return filled, errors.Join(errs...)
}

// Corefile checks that a Corefile and the DaemonSet around it say the same of addresses and ports.
func Corefile(text string, args []string, template core.PodTemplateSpec, n Node) error {
	c := &template.Spec.Containers[0]
	env := map[string]string{}
	for _, e := range c.Env {
		env[e.Name] = e.Value
	}
	filled, err := Fill(text, args, env, n)
	if err != nil {
		return err
	}
	blocks, err := caddyfile.Parse("Corefile", strings.NewReader(filled), nil)
	if err != nil {
		return err
	}
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	local, _ := Flag(args, "localip")
	var addrs []string
	for _, a := range strings.Split(local, ",") {
		if _, err := netip.ParseAddr(a); err != nil {
			fail("-localip=%s: %q is not an address", local, a)
		}
		addrs = append(addrs, a)
	}
	zones, pages := map[string]bool{}, 0
	for _, b := range blocks {
		for _, k := range b.Keys {
			zone, port, _ := strings.Cut(k, ":")
			zones[zone] = true
			if port != "53" {
				fail("block %s is not at port 53", k)
			}
		}
		if got := words(b.Tokens["bind"]); !slices.Equal(got, append([]string{"bind"}, addrs...)) {
			fail("block %s has %q, want the addresses of -localip %v", b.Keys, got, addrs)
		}
		if len(b.Tokens["diag"]) > 0 {
			pages++
			if got := words(b.Tokens["diag"]); !n.ServesPage || !slices.Equal(b.Keys, []string{"diag.localcache.invalid:53"}) || !slices.Equal(got, pageDirective) {
				fail("block %s has %q; the page is served: %t", b.Keys, got, n.ServesPage)
			}
			continue
		}
		for _, d := range []string{"errors", "cache", "reload", "loop", "forward", "prometheus"} {
			if len(b.Tokens[d]) == 0 {
				fail("block %s has no %s", b.Keys, d)
			}
		}
		if got := words(b.Tokens["prometheus"]); len(got) != 2 || got[1] != ":"+template.Annotations["prometheus.io/port"] {
			fail("block %s has %q, and the annotation says port %s", b.Keys, got, template.Annotations["prometheus.io/port"])
		}
		cluster := !slices.Contains(b.Keys, ".:53")
		if got := slices.Contains(words(b.Tokens["forward"]), "force_tcp"); got != cluster {
			fail("block %s: force_tcp is %t, want it for kube-dns only", b.Keys, got)
		}
	}
	for _, z := range []string{env["CLUSTER_DOMAIN"], "in-addr.arpa", "ip6.arpa", "."} {
		if !zones[z] {
			fail("no block for %s", z)
		}
	}
	if n.ServesPage && pages != 1 {
		fail("%d blocks serve the page, want one", pages)
	}
	errs = append(errs, probes(blocks, c, template.Spec, addrs))
	return errors.Join(errs...)
}

// probes wants health and ready to be where the probes knock, on an address of ours.
func probes(blocks []caddyfile.ServerBlock, c *core.Container, pod core.PodSpec, addrs []string) error {
	var errs []error
	for _, p := range []struct {
		directive string
		probe     *core.Probe
	}{{"health", c.LivenessProbe}, {"ready", c.ReadinessProbe}} {
		at, err := probeAddress(p.probe, "/"+p.directive)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if !slices.Contains(addrs, at.Addr().String()) {
			errs = append(errs, fmt.Errorf("the probe of %s knocks at %s, which is not an address of -localip", p.directive, at))
		}
		var found []string
		for _, b := range blocks {
			if w := words(b.Tokens[p.directive]); len(w) > 1 {
				found = append(found, w[1])
			}
		}
		if !slices.Equal(found, []string{at.String()}) {
			errs = append(errs, fmt.Errorf("the Corefile has %s at %v, the probe knocks at %s", p.directive, found, at))
		}
	}
	for _, b := range blocks {
		w := words(b.Tokens["health"])
		i := slices.Index(w, "lameduck")
		if i < 0 {
			continue
		}
		d, err := time.ParseDuration(w[i+1])
		// Besides lameduck the exit may wait 15s for the node's network.
		if grace := time.Duration(*pod.TerminationGracePeriodSeconds) * time.Second; err != nil || d+15*time.Second > grace {
			errs = append(errs, fmt.Errorf("lameduck %s does not fit into terminationGracePeriodSeconds %s", w[i+1], grace))
		}
	}
	return errors.Join(errs...)
}

func words(tokens []caddyfile.Token) []string {
	var w []string
	for _, t := range tokens {
		w = append(w, t.Text)
	}
	return w
}

// Program is a localcache binary.
type Program struct{ Path string }

// BuildProgram compiles the program into dir.
func BuildProgram(dir string) (Program, error) {
	p := Program{filepath.Join(dir, "localcache")}
	cmd := exec.Command("go", "build", "-o", p.Path, "./cmd/localcache")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		return p, fmt.Errorf("go build ./cmd/localcache: %w\n%s", err, out)
	}
	return p, nil
}

// AcceptsFlags asks the program itself whether it takes args.
func (p Program) AcceptsFlags(args []string) error {
	out, err := exec.Command(p.Path, append(slices.Clone(args), "-version")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("localcache %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// AcceptsTeardown asks the program whether args name its subcommand teardown, without running it.
func (p Program) AcceptsTeardown(args []string) error {
	out, err := exec.Command(p.Path, append(slices.Clone(args), "-h")...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("localcache %s -h: %w\n%s", strings.Join(args, " "), err, out)
	}
	if len(args) == 0 || args[0] != "teardown" || !bytes.Contains(out, []byte("localcache teardown")) {
		return fmt.Errorf("localcache %s -h is not the help of teardown:\n%s", strings.Join(args, " "), out)
	}
	return nil
}

// AcceptsDirectives asks the program which directives are built in, and holds a Corefile against them.
func (p Program) AcceptsDirectives(text string) error {
	out, err := exec.Command(p.Path, "-plugins").Output()
	if err != nil {
		return fmt.Errorf("localcache -plugins: %w", err)
	}
	_, err = caddyfile.Parse("Corefile", strings.NewReader(text), strings.Fields(string(out)))
	return err
}

package netns

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// versionName has an address that shows which Corefile is served.
const versionName = "version.test."

// corefileVersion is a Corefile that answers 192.0.2.n for versionName, with more directives in its block.
func corefileVersion(n int, more string) string {
	return fmt.Sprintf(`.:53 {
    %s
    bind 169.254.25.10
    hosts {
        192.0.2.%d version.test
        ttl 1
        fallthrough
    }
    forward . 10.233.0.3
    prometheus 127.0.0.1:9253
}
`, more, n)
}

// replace changes a file as a whole, as an editor or the kubelet does.
func replace(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// address asks a server for the A record of a name.
func (d *daemon) address(server netip.Addr, name string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	m, _, err := d.lab.Pods[0].Ask(ctx, lab.UDP, server, name, dns.TypeA)
	if err != nil {
		return "", err
	}
	if len(m.Answer) == 0 {
		return "", fmt.Errorf("%s: %s without an answer", name, dns.RcodeToString[m.Rcode])
	}
	a, ok := m.Answer[0].(*dns.A)
	if !ok {
		return "", fmt.Errorf("%s: %v", name, m.Answer[0])
	}
	return a.A.String(), nil
}

// waitAddress waits until localcache returns an address for a name.
func (d *daemon) waitAddress(name, want string, within time.Duration) {
	d.t.Helper()
	d.until(within, fmt.Sprintf("%s is %s", name, want), func() error {
		got, err := d.address(localIP, name)
		if err == nil && got != want {
			err = fmt.Errorf("it is %s", got)
		}
		return err
	})
}

// wantAddress wants localcache to give an address for a name now.
func (d *daemon) wantAddress(name, want string) {
	d.t.Helper()
	if got, err := d.address(localIP, name); err != nil || got != want {
		d.t.Errorf("%s is %q (%v), want %s", name, got, err, want)
	}
}

// usr1 asks for a reload.
func (d *daemon) usr1() {
	d.t.Helper()
	if err := d.program.Signal(syscall.SIGUSR1); err != nil {
		d.t.Fatal(err)
	}
}

// underLoad streams queries from the second pod while f reloads several times, 500 a second from one socket and 100
// in each other way, and expects every one of them to be answered. The exception is connections that were accepted at
// the very moment of a reload: a server that ends closes those whose query it has not read yet (miekg/dns,
// Server.ShutdownContext), and their clients ask again (RFC 7766 section 6.2.4).
func underLoad(t *testing.T, l *lab.Lab, reloads int, f func()) {
	t.Helper()
	const freshTCP = "fresh TCP connections"
	streams := map[string]lab.Stream{
		"one UDP socket":           {QPS: 500},
		"fresh UDP sockets":        {QPS: 100, Fresh: true},
		freshTCP:                   {QPS: 100, Fresh: true, Transport: lab.TCP},
		"a lasting TCP connection": {QPS: 100, Transport: lab.TCP},
	}
	running := map[string]*lab.Streaming{}
	defer func() {
		for name, st := range running {
			samples, err := st.Stop()
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			lost := len(samples.Lost())
			if samples.Rcodes()[dns.RcodeSuccess] != len(samples)-lost {
				t.Errorf("%s: errors in the answers: %v", name, samples.Rcodes())
			}
			closed := 0
			for _, s := range samples.Lost() {
				if errors.Is(s.Err, syscall.ECONNRESET) || errors.Is(s.Err, io.EOF) {
					closed++
				}
			}
			if name == freshTCP && closed <= reloads {
				lost -= closed
			}
			if lost > 0 {
				t.Errorf("%s: %s", name, samples)
			}
		}
	}()
	for name, s := range streams {
		s.From, s.Timeout = l.Pods[1], 5*time.Second
		st, err := s.Start()
		if err != nil {
			t.Fatal(err)
		}
		running[name] = st
	}
	f()
}

// TestReload checks that a good change is served, that a bad one is refused and reported, and that neither loses a
// query.
func TestReload(t *testing.T) {
	for _, c := range []struct {
		name, directive, failed string
		ask                     func(*daemon)
	}{
		{"reload plugin", "reload 2s 0s", `plugin/reload: Corefile changed but reload failed: `, func(*daemon) {}},
		{"SIGUSR1", "errors", `plugin/localcache: reload failed, the configuration before it stays in force: `, (*daemon).usr1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // the plugin looks every 2 s at most
			l := lab.Start(t, lab.Config{})
			d := start(t, l, serveOptions{Corefile: corefileVersion(1, c.directive)})
			conf := l.Path("Corefile")
			d.wantAddress(versionName, "192.0.2.1")
			underLoad(t, l, 2, func() {
				replace(t, conf, corefileVersion(2, c.directive))
				c.ask(d)
				d.waitAddress(versionName, "192.0.2.2", startTimeout)

				replace(t, conf, corefileVersion(3, c.directive+"\n    forwad . 192.0.2.53"))
				c.ask(d)
				d.waitLogged(c.failed+`.*Corefile:3 - Error during parsing: Unknown directive 'forwad'`, startTimeout)
				d.wantAddress(versionName, "192.0.2.2")

				// This one fails later, at its sockets.
				replace(t, conf, strings.Replace(corefileVersion(4, c.directive), "bind 169.254.25.10", "bind 169.254.25.10 203.0.113.7", 1))
				c.ask(d)
				d.waitLogged(c.failed+`.*203\.0\.113\.7:53: bind: cannot assign requested address`, startTimeout)
				d.wantAddress(versionName, "192.0.2.2")
				d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)

				replace(t, conf, corefileVersion(5, c.directive))
				c.ask(d)
				d.waitAddress(versionName, "192.0.2.5", startTimeout)
			})
			if c.directive != "errors" {
				page, err := d.get("http://127.0.0.1:9253/metrics")
				if err != nil {
					t.Fatal(err)
				}
				if v, seen := sum(page, "coredns_reload_failed_total"); !seen || v != 2 {
					t.Errorf("coredns_reload_failed_total is %v (there: %v), want 2", v, seen)
				}
			}
		})
	}
}

// TestReloadOften: reloads one upon the other lose nothing either.
func TestReloadOften(t *testing.T) {
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{Corefile: corefileVersion(1, "errors")})
	underLoad(t, l, 10, func() {
		for n := 2; n < 12; n++ {
			replace(t, l.Path("Corefile"), corefileVersion(n, "errors"))
			d.usr1()
			d.waitAddress(versionName, fmt.Sprintf("192.0.2.%d", n), startTimeout)
		}
	})
}

// TestReloadFallback: the servers that answer while the process is dead are those of the last Corefile
// that was served.
func TestReloadFallback(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := lab.Start(t, lab.Config{Pods: 1})
		corefile := func(n int, s *lab.Server) string {
			return corefileVersion(n, "setup {\n        fallback "+s.Host.IPv4.String()+"\n    }")
		}
		d := start(t, l, serveOptions{Corefile: corefile(1, l.KubeDNS[0]), Backend: backend})
		replace(t, l.Path("Corefile"), useBackend(t, l, backend, corefile(2, l.KubeDNS[1])))
		d.usr1()
		d.waitAddress(versionName, "192.0.2.2", startTimeout)
		// The new sockets are open by now, and the rules follow.
		d.waitLogged(`Reloading complete`, startTimeout)
		d.kill()
		l.ResetRecords()
		const queries = 10
		for i := range queries {
			if _, err := d.address(localIP, fmt.Sprintf("n%d.%s", i, lab.AnyClusterName)); err != nil {
				t.Fatal(err)
			}
		}
		if before, now := l.KubeDNS[0].Record.Total(lab.UDP), l.KubeDNS[1].Record.Total(lab.UDP); before != 0 || now != queries {
			t.Errorf("%d queries went to the fallback from before the reload and %d to the one of now; want 0 and %d", before, now, queries)
		}
	})
}

// TestReloadSetup checks that addresses can be added and removed, that rules can be removed, and that a change which
// is impossible at run time is refused.
func TestReloadSetup(t *testing.T) {
	need(t, "nft")
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{Corefile: corefileVersion(1, "setup")})
	conf := l.Path("Corefile")
	second := netip.MustParseAddr("169.254.25.11")
	reload := func(n int, setup, bind string) {
		t.Helper()
		corefile := corefileVersion(n, setup)
		replace(t, conf, strings.Replace(corefile, "bind 169.254.25.10", "bind "+bind, 1))
		d.usr1()
		d.waitAddress(versionName, fmt.Sprintf("192.0.2.%d", n), startTimeout)
	}
	reload(2, "setup {\n        address 169.254.25.11\n    }", "169.254.25.10 169.254.25.11")
	if got, err := d.address(second, versionName); err != nil || got != "192.0.2.2" {
		t.Errorf("the address that was added answers %q (%v)", got, err)
	}
	d.until(startTimeout, "queries to the address that was added are not tracked", func() error {
		if flows := tracked(t, l, l.Pods[0], second); len(flows) > 0 {
			return fmt.Errorf("%d entries", len(flows))
		}
		return nil
	})

	reload(3, "setup", "169.254.25.10")
	d.until(startTimeout, "the address is off the interface again", func() error {
		if addrs := addressesOn(t, l, "nodelocaldns"); strings.Contains(strings.Join(addrs, " "), second.String()) {
			return fmt.Errorf("it has %v", addrs)
		}
		return nil
	})

	replace(t, conf, corefileVersion(4, "setup {\n        interface other\n    }"))
	d.usr1()
	d.waitLogged(`reload failed, .*: the interface cannot become other while the process runs, because sockets are open on nodelocaldns: restart it`, startTimeout)
	d.wantAddress(versionName, "192.0.2.3")

	reload(5, "setup {\n        notrack off\n    }", "169.254.25.10")
	d.until(startTimeout, "the rules are gone", func() error {
		if rules := onNode(t, l, "nft list ruleset"); strings.Contains(rules, "localcache") {
			return fmt.Errorf("there are still\n%s", rules)
		}
		return nil
	})
}

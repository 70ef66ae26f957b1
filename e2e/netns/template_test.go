package netns

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/lab"
)

// pollTimeout is longer than the 10 s at which templates and ConfigMap are looked at.
const pollTimeout = 10*time.Second + startTimeout

// templateCorefile is a Corefile.base as node-cache's users have it.
const templateCorefile = `cluster.local:53 {
    errors
    bind __PILLAR__LOCAL__DNS__
    forward . __PILLAR__CLUSTER__DNS__ {
        force_tcp
    }
}
.:53 {
    errors
    cache 1
    bind __PILLAR__LOCAL__DNS__
    hosts {
        192.0.2.1 version.test
        ttl 1
        fallthrough
    }
    forward . __PILLAR__UPSTREAM__SERVERS__ {
        force_tcp
    }
}
`

// stubAddress is stubServer's answer.
const stubAddress = "203.0.113.7"

// stubServer has a host answer every question, over UDP, with stubAddress.
func stubServer(t *testing.T, h *lab.Host) {
	t.Helper()
	conn, err := h.ListenUDP(netip.AddrPortFrom(h.IPv4, 53))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 5},
				A:   netip.MustParseAddr(stubAddress).AsSlice(),
			}}
		}
		_ = w.WriteMsg(m) // the client may be gone
	}
	s := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(answer)}
	ready := make(chan struct{})
	s.NotifyStartedFunc = func() { close(ready) }
	ended := make(chan error, 1)
	go func() { ended <- s.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-ready
}

// TestTemplateAndConfigMap checks that the template is rendered to -conf, that the kube-dns ConfigMap adds its stub
// domains and upstream servers, that changes of both are found without a signal, and that a broken one changes
// nothing.
func TestTemplateAndConfigMap(t *testing.T) {
	t.Parallel() // it waits for the poll
	l := lab.Start(t, lab.Config{})
	stubServer(t, l.Pods[1])
	stub := l.Pods[1].IPv4
	base, conf, configMap := l.Path("Corefile.base"), l.Path("rendered"), l.Path("kube-dns")
	if err := os.Mkdir(configMap, 0o755); err != nil {
		t.Fatal(err)
	}
	replace(t, base, templateCorefile)
	stubDomains := configMap + "/stubDomains"
	replace(t, stubDomains, fmt.Sprintf(`{"corp.test": [%q]}`, stub))
	d := launch(t, l, exec.Command(os.Getenv(envBinary), "-localip", lab.LocalIP, "-conf", conf, "-basecorefile", base,
		"-kubednscm", configMap, "-upstreamsvc", "kube-dns-upstream", "-reloadwithsignal"),
		"KUBE_DNS_UPSTREAM_SERVICE_HOST="+l.Service.String())
	d.waitAnswers(startTimeout)
	complete := watchComplete(t, conf)
	rendered := read(t, conf)
	for _, part := range []string{"bind 169.254.25.10\n", "forward . 10.233.0.3 {\n", "forward . /etc/resolv.conf {\n        force_tcp\n", "\ncorp.test:53 {\n"} {
		if !strings.Contains(rendered, part) {
			t.Errorf("the rendered Corefile has no %q:\n%s", part, rendered)
		}
	}
	d.wantAddress("a.corp.test.", stubAddress)
	d.wantAddress("www.example.org.", "203.0.113.80")
	if got, err := d.address(localIP, "a.other.example.com."); err == nil {
		t.Errorf("a name of no stub domain is %s", got)
	}
	d.wantAddress(versionName, "192.0.2.1")

	// The signal makes it look at once, so that only the good change below has to wait for the poll.
	replace(t, stubDomains, "{\n  \"corp.test\": [\n}")
	d.usr1()
	d.waitMetric("coredns_nodecache_setup_errors_total", `errortype="configmap"`, 1, startTimeout)
	if d.logged(`the configuration is wrong, the one before it stays in force: .*kube-dns/stubDomains:3: not valid JSON: `) != 1 {
		t.Error("the log does not tell where the ConfigMap is wrong")
	}
	d.wantAddress("b.corp.test.", stubAddress)
	if got := read(t, conf); got != rendered {
		t.Errorf("a broken ConfigMap changed the rendered Corefile to\n%s", got)
	}

	// The template is changed last and read first, so that a poll in between which sees it sees the others as well.
	replace(t, configMap+"/upstreamNameservers", fmt.Sprintf(`[%q]`, stub))
	replace(t, stubDomains, fmt.Sprintf(`{"corp.test": [%q], "other.example.com": [%q]}`, stub, stub))
	replace(t, base, strings.Replace(templateCorefile, "192.0.2.1", "192.0.2.2", 1))
	d.waitAddress(versionName, "192.0.2.2", pollTimeout)
	d.wantAddress("b.other.example.com.", stubAddress)
	d.waitAddress("www.example.com.", stubAddress, startTimeout)
	d.waitLogged(`the configuration is right again`, startTimeout)
	if got := read(t, conf); !strings.Contains(got, "\nother.example.com:53 {\n") || !strings.Contains(got, fmt.Sprintf("forward . %s {\n        \n", stub)) {
		t.Errorf("the rendered Corefile has not the new servers, without force_tcp:\n%s", got)
	}
	complete()
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// watchComplete reads a Corefile over and over until the returned func is called, and fails the test if
// a part of it was ever seen.
func watchComplete(t *testing.T, path string) (end func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			b, err := os.ReadFile(path)
			if err != nil || bytes.Count(b, []byte("{")) < 3 || bytes.Count(b, []byte("{")) != bytes.Count(b, []byte("}")) {
				t.Errorf("%s was seen with the content %q (%v)", path, b, err)
				return
			}
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

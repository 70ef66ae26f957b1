package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy/caddyfile"
	"github.com/miekg/dns"

	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/report"
	"localcache.dev/localcache/bench/internal/upstream"
)

func TestFlags(t *testing.T) {
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"-h"}, 0, "echo-batched"},
		{[]string{"-servers", "bind"}, exitUsage, `unknown server "bind"`},
		{[]string{"-work", "hits,tea"}, exitUsage, `unknown work "tea"`},
		{[]string{"-rounds", "0"}, exitUsage, "more than 0"},
		{[]string{"-cores", "1,1"}, exitUsage, "shares its with nobody"},
		{[]string{"-cores", "x,1"}, exitUsage, "invalid syntax"},
		{[]string{"hits"}, exitUsage, "only flags"},
		{[]string{"-render", "/nowhere"}, exitUsage, "/nowhere"},
	} {
		var out, errOut bytes.Buffer
		if status := run(c.args, &out, &errOut); status != c.status || !strings.Contains(errOut.String(), c.says) || out.Len() > 0 {
			t.Errorf("%v: status %d, says %q", c.args, status, errOut.String())
		}
	}
}

func TestParseWorks(t *testing.T) {
	got, err := parseWorks("steady,miss")
	if want := []report.Work{report.Steady10k, report.Steady1k, report.Miss}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := parseWorks(""); err != nil || len(got) != len(report.Works()) {
		t.Errorf("%v, %v", got, err)
	}
}

// TestWorksAreComplete checks that each work has a load, or is one of the two others, and a share of the time.
func TestWorksAreComplete(t *testing.T) {
	all := works(false)
	for _, w := range report.Works() {
		if weights[w] == 0 {
			t.Errorf("%s has no time", w)
		}
		if l, ok := all[w]; ok != (w != report.Memory && w != report.Start) || ok && (l.source == nil || l.hot == nil || l.window%8 != 0) {
			t.Errorf("%s: %+v", w, l)
		}
		if quick := works(true)[w]; quick.length > all[w].length {
			t.Errorf("%s is quick for %v", w, quick.length)
		}
	}
}

func TestShare(t *testing.T) {
	left := 100 * time.Second
	names := report.Works()
	for i := range names {
		s := share(left, names[i:])
		if s <= 0 || s > left {
			t.Fatalf("%s gets %v of %v", names[i], s, left)
		}
		left -= s
	}
	if left > time.Millisecond {
		t.Errorf("%v are left over", left)
	}
	if s := share(-time.Second, names); s != 0 {
		t.Errorf("%v of nothing", s)
	}
}

func TestChoose(t *testing.T) {
	all := contenders(programs{}, nil, nil)
	addrs := map[netip.AddrPort]bool{}
	for _, c := range all {
		addrs[c.addr] = true
	}
	if len(addrs) != len(all) {
		t.Error("two servers have one address")
	}
	got, err := choose(all, []string{"dnsmasq", report.Subject})
	if err != nil || len(got) != 2 || got[0].Name != "dnsmasq" || got[1].Name != report.Subject {
		t.Errorf("%v, %v", got, err)
	}
	for _, name := range []string{report.Subject, report.Stock, report.BatchedEcho, "dnsdist"} { // those of the goals
		if _, err := choose(all, []string{name}); err != nil {
			t.Error(err)
		}
	}
}

func TestAbsent(t *testing.T) {
	c := &contender{Server: report.Server{Name: "x"}, program: "/nowhere/x", install: "apt-get install x"}
	c.look(t.Context())
	if !strings.Contains(c.Absent, "apt-get install x") {
		t.Errorf("%q", c.Absent)
	}
}

// TestCorefile reads the Corefile as CoreDNS does.
func TestCorefile(t *testing.T) {
	s := site{addr: netip.MustParseAddrPort("127.0.1.1:53"), upstream: upstreamAddr}
	for _, tcp := range []bool{false, true} {
		s.tcp = tcp
		text := corefile(s, []string{"diag"})
		blocks, err := caddyfile.Parse("Corefile", strings.NewReader(text), nil)
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if len(blocks) != 2 || blocks[0].Keys[0] != "cluster.local:53" || blocks[1].Keys[0] != ".:53" {
			t.Fatalf("%v", blocks)
		}
		for i, b := range blocks {
			wanted := []string{"prometheus", "errors", "loop", "reload", "cache", "bind", "forward", "diag"}
			if i == 0 {
				wanted = append(wanted, "health", "ready")
			}
			for _, d := range wanted {
				if len(b.Tokens[d]) == 0 {
					t.Errorf("block %s has no %s", b.Keys[0], d)
				}
			}
			forced := slices.ContainsFunc(b.Tokens["forward"], func(t caddyfile.Token) bool { return t.Text == "force_tcp" })
			if want := i == 0 || tcp; forced != want {
				t.Errorf("block %s asks over TCP: %v, want %v", b.Keys[0], forced, want)
			}
		}
	}
}

// TestCommands has every server's configuration name its address and the upstream's.
func TestCommands(t *testing.T) {
	for _, c := range contenders(programs{self: "/proc/self/exe"}, nil, []string{"-more"}) {
		dir := t.TempDir()
		args, err := c.command(site{dir: dir, addr: c.addr, upstream: upstreamAddr, tcp: !c.noTCP})
		if err != nil {
			t.Fatal(err)
		}
		if c.Subject != slices.Contains(args, "-more") {
			t.Errorf("%s: %q", c.Name, args)
		}
		all := strings.Join(args, " ")
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all += string(b)
		}
		if !strings.Contains(all, c.addr.Addr().String()) || !c.Echo && !strings.Contains(all, upstreamAddr.Addr().String()) {
			t.Errorf("%s is told\n%s", c.Name, all)
		}
	}
}

// TestUpstreamByPipe sets the delay and reads the counters as the run does.
func TestUpstreamByPipe(t *testing.T) {
	probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := probe.LocalAddr().String()
	probe.Close()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- serveUpstream(addr, inR, outW) }()
	answers := json.NewDecoder(outR)
	say := func(line string) (c upstream.Counters) {
		t.Helper()
		if _, err := io.WriteString(inW, line+"\n"); err != nil {
			t.Fatal(err)
		}
		if err := answers.Decode(&c); err != nil {
			t.Fatal(err)
		}
		return c
	}
	if c := say(""); c != (upstream.Counters{}) {
		t.Errorf("at first %+v", c)
	}
	say("30ms")
	start := time.Now()
	m, _, err := (&dns.Client{Timeout: 10 * time.Second}).Exchange(new(dns.Msg).SetQuestion("www.example.com.", dns.TypeA), addr)
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < 29*time.Millisecond {
		t.Errorf("answered after %v", took)
	}
	if err := right(m, "www.example.com", dns.TypeA); err != nil {
		t.Error(err)
	}
	if err := right(m, "www.example.net", dns.TypeA); err == nil {
		t.Error("another name's answer is right")
	}
	if err := right(m, "www.example.com.svc.cluster.local", dns.TypeA); err == nil {
		t.Error("records are right where NXDOMAIN is")
	}
	if c := say(""); c.UDP != 1 {
		t.Errorf("after a query %+v", c)
	}
	inW.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("does not end with its input")
	}
}

func TestForeign(t *testing.T) {
	first := edge{cores: map[int]machine.Core{0: {Busy: time.Second}}}
	last := edge{cores: map[int]machine.Core{0: {Busy: 3 * time.Second, Stolen: 100 * time.Millisecond}}}
	for known, want := range map[time.Duration]float64{1500 * time.Millisecond: 0.3, 2500 * time.Millisecond: 0} {
		if got := foreign(first, last, 0, known, 2); got < want-1e-9 || got > want+1e-9 {
			t.Errorf("of 2.1 s used, %v known: %v foreign, want %v", known, got, want)
		}
	}
}

// TestRender renders the report of recorded samples.
func TestRender(t *testing.T) {
	r := report.Run{Rounds: 1, Servers: []report.Server{{Name: report.Stock}}, Samples: []report.Sample{
		{Work: report.Hits, Server: report.Stock, Quiet: true, Values: map[report.Metric]float64{report.CPU: 15}},
	}}
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	kept := filepath.Join(dir, "kept.json")
	if err := os.WriteFile(kept, b, 0o644); err != nil {
		t.Fatal(err)
	}
	var out, errOut bytes.Buffer
	if status := run([]string{"-render", kept, "-out", filepath.Join(dir, "out")}, &out, &errOut); status != 0 {
		t.Fatalf("status %d: %s", status, errOut.String())
	}
	if !strings.Contains(out.String(), "| coredns | 15.0 |") {
		t.Errorf("%s", out.String())
	}
	for _, name := range []string{"results.md", "plot.svg", "samples.json"} {
		if _, err := os.Stat(filepath.Join(dir, "out", name)); err != nil {
			t.Error(err)
		}
	}
}

// TestChildren checks that only the run's own arguments start a child.
func TestChildren(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, args := range [][]string{{}, {"-quick"}, {"echo"}, {"echo", "x", "y"}, {"upstream"}} {
		if asked, err := child(ctx, args); asked || err != nil {
			t.Errorf("%v: %v, %v", args, asked, err)
		}
	}
}

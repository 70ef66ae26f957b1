package netns

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// shortLameduck is the shipped Corefile with a lameduck of 1 s, for tests that end a process often.
func shortLameduck(t *testing.T) string {
	t.Helper()
	return edit(t, string(localcache.CorefileExample), `lameduck 5s`, `lameduck 1s`)
}

// edit replaces every match of a pattern, of which there must be one.
func edit(t *testing.T, corefile, pattern, replacement string) string {
	t.Helper()
	edited := regexp.MustCompile(pattern).ReplaceAllString(corefile, replacement)
	if edited == corefile {
		t.Fatalf("the Corefile has nothing that matches %s", pattern)
	}
	return edited
}

// TestKill kills localcache in the middle of streams over UDP from one socket and from fresh ones.
// Nothing that was sent to a dead process is lost, because kube-dns answers it, and after the restart
// everything is answered on the node again, for the socket that kube-dns has served too.
func TestKill(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		killUDP(t, serveOptions{Backend: backend}, lab.Stream{QPS: 1000}, lab.Stream{QPS: 1000, Fresh: true})
	})
}

// TestKillIPv6 is TestKill over IPv6.
func TestKillIPv6(t *testing.T) {
	const local6 = "fd00:169:254::10"
	o := serveOptions{
		LocalIP:  local6 + "," + lab.LocalIP,
		Corefile: edit(t, string(localcache.CorefileExample), `bind 169\.254\.25\.10`, "bind 169.254.25.10 "+local6),
	}
	six := lab.Stream{QPS: 1000, Server: netip.MustParseAddr(local6)}
	fresh := six
	fresh.Fresh = true
	killUDP(t, o, six, fresh)
}

func killUDP(t *testing.T, o serveOptions, streams ...lab.Stream) {
	l := lab.Start(t, lab.Config{})
	d := start(t, l, o)
	ld := startLoad(t, l, streams...)
	ld.more(500 * time.Millisecond)
	if n := l.KubeDNSTotal(lab.UDP); n != 0 {
		t.Errorf("%d queries went to kube-dns over UDP while localcache lived", n)
	}

	killed, dead := d.kill()
	ld.enter("dead")
	ld.more(time.Second)
	restarted := time.Now()
	ld.enter("starting")
	d = start(t, l, o)
	back := time.Now()
	time.Sleep(settle)
	tracked := newFlows(t, l, d.server, nil)
	ld.enter("back")
	ld.more(time.Second)
	fresh := newFlows(t, l, d.server, tracked)
	all := ld.stop()

	for i, ss := range all {
		what := fmt.Sprintf("stream %d", i)
		// Queries to sockets that the kernel has not closed yet count as in flight too.
		report(t, what, ss, killed, phase{"dying", dead}, phase{"dead", restarted}, phase{"starting", back})
		wantNoneLost(t, what+" after the kill", ss.SentAfter(dead))
		if early := ss.SentBefore(killed.Add(-settle)).Lost(); len(early) > 0 {
			t.Errorf("%d queries were lost before the kill", len(early))
		}
	}
	sent := 0
	for _, ss := range all {
		for _, s := range ss {
			if strings.HasSuffix(s.Name, "."+zone("dead")) {
				sent++
			}
		}
	}
	if n := askedBelow(l, zone("dead"), lab.UDP); n != sent {
		t.Errorf("kube-dns was asked %d of the %d queries that were sent while localcache was dead", n, sent)
	}
	if n := askedBelow(l, zone("back"), lab.UDP); n != 0 {
		t.Errorf("%d queries went to kube-dns over UDP after the restart", n)
	}
	if n := askedBelow(l, zone("back"), lab.TCP); n == 0 {
		t.Error("localcache asked kube-dns nothing after the restart: was it asked itself?")
	}
	if len(fresh) > 0 {
		t.Errorf("%d queries were tracked after the restart, the first from %v", len(fresh), fresh[0])
	}
}

// askedBelow counts the queries for names of a zone that reached kube-dns.
func askedBelow(l *lab.Lab, zone string, tr lab.Transport) (n int) {
	for _, s := range l.KubeDNS {
		n += s.Record.AskedBelow(zone, tr)
	}
	return n
}

// newFlows returns the clients whose flows to addr the node tracks, without the known ones.
func newFlows(t *testing.T, l *lab.Lab, addr netip.Addr, known []netip.AddrPort) []netip.AddrPort {
	t.Helper()
	flows, err := l.Node.Conntrack(addr)
	if err != nil {
		t.Fatal(err)
	}
	var clients []netip.AddrPort
	for _, f := range flows {
		if !slices.Contains(known, f.From) {
			clients = append(clients, f.From)
		}
	}
	return clients
}

// phase is a part of a stream's time: from the end of the previous phase to end.
type phase struct {
	name string
	end  time.Time
}

// report returns a line about the queries of a stream around a kill. Queries in flight are those without an answer
// when the signal was sent.
func report(t *testing.T, what string, ss lab.Samples, killed time.Time, phases ...phase) {
	t.Helper()
	const patience = 10 * time.Second // longer than a stream waits
	flight := ss.InFlight(killed, patience)
	line := fmt.Sprintf("%s: %d sent, %d lost: in flight %d, lost %d", what, len(ss), len(ss.Lost()), len(flight), len(flight.Lost()))
	from := killed
	for i, p := range append(phases, phase{"after", time.Now()}) {
		part := ss.SentAfter(from).SentBefore(p.end)
		line += fmt.Sprintf("; %s %d, lost %d", p.name, len(part), len(part.Lost()))
		if i < len(phases) {
			line += fmt.Sprintf(" in %v", p.end.Sub(from).Round(time.Millisecond))
		}
		from = p.end
	}
	t.Logf("%s; longest outage %v, slowest answer since %v", line, outage(ss).Round(time.Millisecond), slowest(ss.SentAfter(killed)))
}

// TestKillTCP kills localcache under fresh TCP connections. None that begins after the kill fails, except those that
// are open to kube-dns at the instant at which localcache's sockets are open again: the kernel then finds the
// listener for their packets.
func TestKillTCP(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		l := lab.Start(t, lab.Config{})
		o := serveOptions{Backend: backend}
		d := start(t, l, o)
		ld := startLoad(t, l, lab.Stream{QPS: 300, Transport: lab.TCP, Fresh: true}, lab.Stream{QPS: 300, Transport: lab.TCP, Fresh: true})
		ld.more(500 * time.Millisecond)
		killed, dead := d.kill()
		l.ResetRecords()
		ld.enter("dead")
		ld.more(time.Second)
		if n := l.KubeDNSTotal(lab.TCP); n == 0 {
			t.Error("kube-dns got no query over TCP while localcache was dead")
		}
		restarted := time.Now()
		start(t, l, o)
		back := time.Now()
		ld.enter("back")
		ld.more(500 * time.Millisecond)
		for i, ss := range ld.stop() {
			report(t, fmt.Sprintf("stream %d", i), ss, killed, phase{"dying", dead}, phase{"dead", restarted}, phase{"starting", back})
			wantNoneLost(t, fmt.Sprintf("stream %d while dead", i), ss.SentAfter(dead).SentBefore(restarted))
			wantNoneLost(t, fmt.Sprintf("stream %d after the restart", i), ss.SentAfter(back))
			if n := len(ss.SentAfter(restarted).SentBefore(back).Lost()); n > maxCut {
				t.Errorf("stream %d: %d connections were cut at the restart", i, n)
			}
		}
	})
}

// maxCut is how many TCP connections of a stream may be open at one instant, on a busy machine.
const maxCut = 10

// TestTerminate ends localcache by SIGTERM under streams and starts it again. Nothing is lost at all.
func TestTerminate(t *testing.T) {
	t.Run("shipped lameduck", func(t *testing.T) {
		t.Parallel()
		terminate(t, serveOptions{}, 5*time.Second)
	})
	eachBackend(t, func(t *testing.T, backend string) {
		t.Parallel()
		terminate(t, serveOptions{Backend: backend, Corefile: shortLameduck(t)}, time.Second)
	})
}

// sideBySide are the streams of tests that run in parallel: from one socket, from new ones, and over TCP.
func sideBySide() []lab.Stream {
	return []lab.Stream{{QPS: 500}, {QPS: 300, Fresh: true}, {QPS: 50, Fresh: true, Transport: lab.TCP}}
}

func terminate(t *testing.T, o serveOptions, lameduck time.Duration) {
	l := lab.Start(t, lab.Config{})
	d := start(t, l, o)
	ld := startLoad(t, l, sideBySide()...)
	ld.more(300 * time.Millisecond)
	told := time.Now()
	if err := d.program.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.waitLogged("new queries go to the fallback", startTimeout)
	ld.enter("draining")
	ld.more(300 * time.Millisecond)
	if n := askedBelow(l, zone("draining"), lab.UDP); n == 0 && d.alive() {
		t.Error("kube-dns got no query over UDP while localcache drained")
	}
	d.waitEnd()
	dead := time.Now()
	took := dead.Sub(told)
	if took < lameduck || took > lameduck+10*time.Second {
		t.Errorf("the end took %v with a lameduck of %v", took, lameduck)
	}
	ld.more(300 * time.Millisecond)
	restarted := time.Now()
	start(t, l, o)
	back := time.Now()
	ld.enter("back")
	ld.more(500 * time.Millisecond)
	for i, ss := range ld.stop() {
		report(t, fmt.Sprintf("stream %d", i), ss, told, phase{"ending", dead}, phase{"dead", restarted}, phase{"starting", back})
		if ld.streams[i].Transport != lab.TCP {
			wantNoneLost(t, fmt.Sprintf("stream %d", i), ss)
			continue
		}
		wantNoneLost(t, fmt.Sprintf("stream %d until the restart", i), ss.SentBefore(restarted.Add(-settle)))
		wantNoneLost(t, fmt.Sprintf("stream %d after the restart", i), ss.SentAfter(back))
		if n := len(ss.SentBefore(back).SentAfter(restarted).Lost()); n > maxCut {
			t.Errorf("stream %d: %d connections were cut at the restart", i, n)
		}
	}
}

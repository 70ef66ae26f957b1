package netns

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// Metrics addresses of the processes of one node.
const (
	firstMetrics  = "127.0.0.1:9453"
	secondMetrics = "127.0.0.1:9454"
	thirdMetrics  = "127.0.0.1:9455"
)

// handover bounds the time in which a process learns that another has come or gone: one check of 1 s, and
// the time of a busy machine.
const handover = 5 * time.Second

// TestUpgrade runs two processes beside each other, with the same Corefile and ports, under streams: a second one
// comes and goes; another one comes, and the first one goes, as in a rolling update with maxSurge 1. No query is
// lost, and neither process removes anything of the other.
func TestUpgrade(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		t.Parallel()
		l := lab.Start(t, lab.Config{})
		o := serveOptions{Backend: backend, Corefile: shortLameduck(t), Args: []string{"-syncinterval", "1s"}, Metrics: firstMetrics}
		first := start(t, l, o)
		ld := startLoad(t, l, sideBySide()...)
		ld.more(200 * time.Millisecond)

		o.Metrics = secondMetrics
		second := start(t, l, o)
		takesOver(t, second, first)
		told := time.Now()
		t.Logf("the second ended in %v", second.terminate().Round(time.Millisecond))
		secondGone := time.Now()
		first.waitMetric("coredns_setup_keeper", "", 1, handover)
		inPlace(t, first, "after the second has gone")

		o.Metrics = thirdMetrics
		third := start(t, l, o)
		takesOver(t, third, first)
		firstTold := time.Now()
		t.Logf("the first ended in %v", first.terminate().Round(time.Millisecond))
		firstGone := time.Now()
		inPlace(t, third, "after the first has gone")
		ld.more(1200 * time.Millisecond) // one more check
		inPlace(t, third, "a check later")

		for i, ss := range ld.stop() {
			what := fmt.Sprintf("stream %d (%s)", i, ld.streams[i].Transport)
			report(t, what, ss, told, phase{"second ends", secondGone}, phase{"first alone, third starts", firstTold}, phase{"first ends", firstGone})
			wantNoneLost(t, what, ss)
		}
		if n := l.KubeDNSTotal(lab.UDP); n > 0 {
			t.Errorf("%d queries went to kube-dns over UDP, although a localcache was there all the time", n)
		}
		for _, d := range []*daemon{first, second, third} {
			if n := d.logged(rulesChanged); n > 0 {
				t.Errorf("a process (pid %d) mended the rules of another: %d times", d.program.PID(), n)
			}
		}
	})
}

// takesOver wants the newer process to keep the rules, and both to find them in place.
func takesOver(t *testing.T, newer, older *daemon) {
	t.Helper()
	older.waitMetric("coredns_setup_keeper", "", 0, handover)
	if v := newer.metric("coredns_setup_keeper", ""); v != 1 {
		t.Errorf("coredns_setup_keeper of the newer process is %v", v)
	}
	inPlace(t, newer, "the newer of two")
	inPlace(t, older, "the older of two")
}

// inPlace wants rules in place and the interface up, as d sees it.
func inPlace(t *testing.T, d *daemon, when string) {
	t.Helper()
	for name, labels := range map[string]string{
		"coredns_setup_rules_in_place": "",
		"coredns_setup_interface_up":   `interface="nodelocaldns"`,
	} {
		if v := d.metric(name, labels); v != 1 {
			t.Errorf("%s: %s is %v", when, name, v)
		}
	}
}

// TestUpgradeKilled kills the newer of two processes. The older one answers the following queries, without kube-dns'
// help, and maintains the rules again.
func TestUpgradeKilled(t *testing.T) {
	need(t, "nft")
	l := lab.Start(t, lab.Config{})
	o := serveOptions{Args: []string{"-syncinterval", "1s"}, Metrics: firstMetrics}
	older := start(t, l, o)
	o.Metrics = secondMetrics
	newer := start(t, l, o)
	takesOver(t, newer, older)
	ld := startLoad(t, l, lab.Stream{QPS: 1000}, lab.Stream{QPS: 1000, Fresh: true})
	ld.more(500 * time.Millisecond)
	killed, dead := newer.kill()
	ld.more(700 * time.Millisecond)
	older.waitMetric("coredns_setup_keeper", "", 1, handover)
	for i, ss := range ld.stop() {
		what := fmt.Sprintf("stream %d", i)
		report(t, what, ss, killed, phase{"dying", dead})
		wantNoneLost(t, what+" before the kill", ss.SentBefore(killed.Add(-settle)))
		wantNoneLost(t, what+" after the kill", ss.SentAfter(dead))
	}
	if n := l.KubeDNSTotal(lab.UDP); n > 0 {
		t.Errorf("%d queries went to kube-dns over UDP, although a localcache was there all the time", n)
	}
	onNode(t, l, "nft delete table inet localcache-nodelocaldns")
	older.waitMetric("coredns_setup_repairs_total", `kind="rules"`, 1, mendBound)
	inPlace(t, older, "after the repair")
}

// TestEndStarved ends a process that gets no processor for a moment just before its sockets close, as on a busy node.
// Queries that have reached the sockets by then are lost, so none may reach them: they must go to the other process
// or to the fallback.
func TestEndStarved(t *testing.T) {
	for _, c := range []struct {
		name   string
		second bool
	}{{"alone", false}, {"beside a newer one", true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := lab.Start(t, lab.Config{})
			o := serveOptions{Corefile: shortLameduck(t), Args: []string{"-syncinterval", "1s"}, Metrics: firstMetrics}
			d := start(t, l, o)
			if c.second {
				o.Metrics = secondMetrics
				takesOver(t, start(t, l, o), d)
			}
			ld := startLoad(t, l, lab.Stream{QPS: 500}, lab.Stream{QPS: 500, Fresh: true})
			ld.more(300 * time.Millisecond)
			signal := func(s syscall.Signal) {
				if err := d.program.Signal(s); err != nil {
					t.Fatal(err)
				}
			}
			told := time.Now()
			signal(syscall.SIGTERM)
			d.waitLogged("Going into lameduck mode", startTimeout)
			time.Sleep(700 * time.Millisecond) // of 1 s
			signal(syscall.SIGSTOP)
			stopped := time.Now()
			time.Sleep(time.Second)
			signal(syscall.SIGCONT)
			continued := time.Now()
			d.waitEnd()
			ended := time.Now()
			ld.more(300 * time.Millisecond)
			for i, ss := range ld.stop() {
				what := fmt.Sprintf("stream %d", i)
				report(t, what, ss, told, phase{"lameduck", stopped}, phase{"starved", continued}, phase{"ending", ended})
				wantNoneLost(t, what, ss)
			}
		})
	}
}

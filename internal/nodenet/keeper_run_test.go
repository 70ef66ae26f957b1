package nodenet

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// A deleted link, one that was set down and a deleted address are back within a second, and sockets from before
// answer again. The asserted bound has a second's headroom for a busy machine; the measured times are logged.
func TestKeeperRepairsLink(t *testing.T) {
	const bound = time.Second + time.Second
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	spec := keeperSpec()
	spec.Check = time.Hour // only events may trigger the repair
	p.start(spec)
	server4, server6 := nettest.Echo(t, nettest.Local4), nettest.Echo(t, nettest.Local6)
	p.Run(n)
	whole := func() bool {
		s, err := link.New("nodelocaldns", p.log).Read(nettest.Both, nil)
		nettest.Must(t, err)
		return s.Complete()
	}
	dev := func() netlink.Link {
		l, err := netlink.LinkByName("nodelocaldns")
		nettest.Must(t, err)
		return l
	}
	for _, c := range []struct {
		what string
		do   func() error
		kind status.RepairKind
	}{
		{"link deleted", func() error { return netlink.LinkDel(dev()) }, status.RepairLink},
		{"link deleted again", func() error { return netlink.LinkDel(dev()) }, status.RepairLink},
		{"IPv4 address deleted", func() error { return netlink.AddrDel(dev(), link.HostAddr(nettest.Local4)) }, status.RepairAddress},
		{"IPv6 address deleted", func() error { return netlink.AddrDel(dev(), link.HostAddr(nettest.Local6)) }, status.RepairAddress},
		{"link set down", func() error { return netlink.LinkSetDown(dev()) }, status.RepairLinkDown},
		{"link renamed", func() error { return netlink.LinkSetName(dev(), "elsewhere") }, status.RepairLink},
	} {
		was := p.k.Status().Repairs[c.kind]
		nettest.Must(t, c.do())
		if whole() && p.k.Status().Repairs[c.kind] == was {
			t.Errorf("%s: the test broke nothing", c.what)
		}
		took := eventually(t, "the link is whole after: "+c.what, whole)
		t.Logf("%s: back after %s", c.what, took)
		if took > bound {
			t.Errorf("%s: back after %s", c.what, took)
		}
		eventually(t, "the repair is counted", func() bool { return p.k.Status().Repairs[c.kind] == was+1 })
		for _, s := range []error{nettest.AskEcho(server4), nettest.AskEcho(server6)} {
			if s != nil {
				t.Errorf("%s: a socket from before is dead: %v", c.what, s)
			}
		}
	}
	if s := p.k.Status(); !s.Up || len(s.AddressesMissing) > 0 || s.LastError != "" {
		t.Errorf("status %+v", s)
	}
	// Each repair has one line of its own.
	warnings := slices.DeleteFunc(p.log.All(), func(l string) bool { return !strings.HasPrefix(l, "WARN") })
	if len(warnings) != 6+1 { // IPv6 addresses go when the link is set down: two lines there
		t.Errorf("%d warnings: %q", len(warnings), warnings)
	}
}

// A program that deletes the link repeatedly causes only a few repairs a second, and the link exists when it stops.
func TestKeeperLinkFight(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	p.start(keeperSpec())
	p.Run(n)
	began := time.Now()
	for time.Since(began) < time.Second {
		l, err := netlink.LinkByName("nodelocaldns")
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil && !link.IsNoLink(err) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	took := time.Since(began)
	eventually(t, "the link is back", func() bool { return nettest.LinkExists(t, "nodelocaldns") })
	most := uint64(took/linkGap) + uint64(took/time.Second) + 3
	if got := p.k.Status().Repairs[status.RepairLink]; got < 2 || got > most {
		t.Errorf("%d repairs in %s, at most %d", got, took, most)
	}
}

// Rules that were flushed or changed are back within a check, which is a second here.
func TestKeeperRepairsRules(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	p.start(spec)
	p.Run(n)
	want := spec.Plan(PlanOptions{})
	for i, harm := range []func(){
		func() { clear(m.rules) },
		func() { m.rules[autoName+" nodelocaldns"] = append(slices.Clone(want), want[0]) },
	} {
		p.log.All()
		m.set(harm)
		took := eventually(t, "the rules are back", func() bool { return sameRules(m.of(autoName, "nodelocaldns"), want) })
		if took > spec.Check+5*time.Second { // headroom for a busy machine
			t.Errorf("back after %s", took)
		}
		eventually(t, "the repair is counted", func() bool {
			s := p.k.Status()
			return s.Repairs[status.RepairRules] == uint64(i+1) && s.RulesInPlace
		})
		if lines := p.log.All(); len(lines) != 1 || !strings.Contains(lines[0], "put back") {
			t.Errorf("log %q", lines)
		}
	}
}

// A failure is retried soon, logged once, counted each time, and its end is logged.
func TestKeeperRetries(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	spec := keeperSpec()
	p.start(spec)
	p.Run(n)
	p.log.All()
	m.set(func() { clear(m.rules); m.applyErr = rule.ErrLocked })
	eventually(t, "two attempts have failed", func() bool { return p.k.Status().Errors[status.ErrorIPTablesLock] >= 2 })
	if s := p.k.Status(); s.RulesInPlace || !strings.Contains(s.LastError, "xtables") || s.LastErrorTime.IsZero() {
		t.Errorf("status %+v", s)
	}
	m.set(func() { m.applyErr = nil })
	eventually(t, "the rules are in place", func() bool { return p.k.Status().RulesInPlace })
	var lines []string
	eventually(t, "the log says that it is over", func() bool {
		lines = append(lines, p.log.All()...)
		return len(lines) >= 3
	})
	if len(lines) != 3 || !strings.HasPrefix(lines[0], "ERROR") || !strings.Contains(lines[2], "in order again") {
		t.Errorf("log %q", lines)
	}
}

// A link that cannot be repaired is tried again until it can.
func TestKeeperRetriesLink(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	spec := keeperSpec()
	spec.Check = time.Hour
	p.start(spec)
	p.Run(n)
	kinds := p.k.link.Kinds
	p.k.mu.Lock()
	p.k.link.Kinds = []netlink.Link{&netlink.GenericLink{LinkType: "nosuchkind"}}
	p.k.mu.Unlock()
	l, err := netlink.LinkByName("nodelocaldns")
	nettest.Must(t, err)
	nettest.Must(t, netlink.LinkDel(l))
	eventually(t, "a repair has failed", func() bool {
		s := p.k.Status()
		return s.Errors[status.ErrorInterfaceAdd] > 0 && !s.Up && len(s.AddressesMissing) == 2
	})
	time.Sleep(5 * linkGap) // until the events of the deletion are all seen to
	p.k.mu.Lock()
	p.k.link.Kinds = kinds // there is no event that tells of it
	p.k.mu.Unlock()
	eventually(t, "the link is back", func() bool { return p.k.Status().Up })
}

// When the kernel's events end, the subscription is renewed, and changes in between are found.
func TestKeeperSubscribesAgain(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	spec := keeperSpec()
	p.start(spec)
	ev, err := link.Watch(&p.k.interest, 0)
	nettest.Must(t, err)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	n.Go(func() { ended <- p.k.followLink(ctx, ev) })
	ev.Stop()
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("the end of the events was not noticed: %v", err)
	}
	// keepLink begins with a look.
	l, err := netlink.LinkByName("nodelocaldns")
	nettest.Must(t, err)
	nettest.Must(t, netlink.LinkDel(l))
	done := make(chan struct{})
	n.Go(func() { defer close(done); p.k.keepLink(ctx) })
	eventually(t, "the link is back", func() bool { return nettest.LinkExists(t, "nodelocaldns") })
	cancel()
	<-done
}

// Run can be started before anything is prepared, and leaves no goroutine behind.
func TestKeeperRunEnds(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	before := runtime.NumGoroutine()
	stop := p.Run(n)
	p.start(keeperSpec())
	l, err := netlink.LinkByName("nodelocaldns")
	nettest.Must(t, err)
	nettest.Must(t, netlink.LinkDel(l))
	eventually(t, "the link is back", func() bool { return nettest.LinkExists(t, "nodelocaldns") })
	stop()
	eventually(t, "every goroutine has ended", func() bool { return runtime.NumGoroutine() <= before })
}

// Run returns when all that it has started has ended, a slow tool included.
func TestKeeperRunWaits(t *testing.T) {
	n := nettest.NewNamespace(t)
	m := newMemory()
	p := newProcess(t, n, m)
	p.start(keeperSpec())
	slow := make(chan struct{})
	m.set(func() { m.slow, m.slowCalls = slow, 0 })
	stop := p.Run(n)
	eventually(t, "a check is under way", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.slowCalls > 0
	})
	ended := make(chan struct{})
	go func() { defer close(ended); stop() }()
	select {
	case <-ended:
		t.Error("Run has returned before the check has")
	case <-time.After(100 * time.Millisecond):
	}
	close(slow)
	<-ended
}

// An idle Keeper does next to nothing: a Check's worth of reading, and no look at the link beyond it.
func TestKeeperIdle(t *testing.T) {
	n := nettest.NewNamespace(t)
	p := newProcess(t, n, newMemory())
	spec := keeperSpec()
	spec.Check = time.Hour
	p.start(spec)
	p.Run(n)
	time.Sleep(300 * time.Millisecond) // the first look
	var before, after unix.Rusage
	nettest.Must(t, unix.Getrusage(unix.RUSAGE_SELF, &before))
	time.Sleep(time.Second)
	nettest.Must(t, unix.Getrusage(unix.RUSAGE_SELF, &after))
	used := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
	t.Logf("processor time in an idle second: %s", used)
	if used > 200*time.Millisecond {
		t.Errorf("processor time in an idle second: %s", used)
	}
}

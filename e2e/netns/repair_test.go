package netns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache"
	"localcache.dev/localcache/internal/lab"
)

// damage is something that another program does to the node's network.
type damage struct{ name, commands string }

// nftDamage lists damage to the nftables table. The last one removes kube-proxy's tables too.
var nftDamage = []damage{
	{"table deleted", "nft delete table $T"},
	{"rule doubled", "nft add rule $T filter_input ip daddr 169.254.25.10 udp dport 53 accept"},
	{"rules reordered", `h=$(nft -a list chain $T raw_output | sed -n 's/.*saddr.*udp.* handle //p' | head -n 1)
nft delete rule $T raw_output handle $h
nft add rule $T raw_output ip saddr 169.254.25.10 udp sport 53 notrack`},
	{"foreign rule in front", "nft insert rule $T raw_prerouting udp dport 53 accept"},
	{"everything flushed", "nft flush ruleset"},
}

// iptablesDamage is done with the programs $I and $I6. $C is our chain of raw PREROUTING.
var iptablesDamage = []damage{
	{"jump doubled", "$I -t raw -A PREROUTING -j $C"},
	{"raw and nat flushed", "for t in raw nat; do $I -t $t -F; $I6 -t $t -F; done"},
	{"tables flushed, chains deleted", "for t in raw nat filter; do $I -t $t -F; $I -t $t -X; done"},
	{"rules reordered", `r=$($I -t raw -S $C 1 | cut -d' ' -f3-); $I -t raw -D $C 1; eval $I -t raw -A $C $r`},
	{"foreign rule in front", "$I -t raw -I PREROUTING 1 -p udp -j ACCEPT"},
}

// The first damage of each list is done at once. The others come right after a repair, so that the next
// check is a second away.

// preamble sets the variables of the damage to a backend.
func preamble(backend string) string {
	if backend == nftables {
		return "T='inet localcache-nodelocaldns'\n"
	}
	return fmt.Sprintf("I='%s -w'; I6='%s -w'\n", backend, strings.Replace(backend, "ip", "ip6", 1)) +
		"C=$($I -t raw -S PREROUTING | sed -n 's/.* -j \\(LC-PRE-[^ ]*\\).*/\\1/p' | head -n 1)\n"
}

// mendBound is how long after the damage the rules must be in place again: one check of 1 s, and the time that a busy
// machine needs to start some dozens of programs.
const mendBound = 4 * time.Second

// instant is the time that a damage or a repair took.
type instant struct{ begin, end time.Time }

// wantNoneLostBut is wantNoneLost except for queries that were in flight while rules were damaged, and connections
// that were reset while they were repaired.
//
// Those may be lost whatever localcache does: if NOTRACK is removed before the fallback's translation, kube-dns gets
// the socket's next query, and the answer that localcache still owes becomes a flow whose tuple is taken, so that the
// kernel gives it another source port. And the next packet of a connection that the fallback has accepted finds the
// listener when the rules lead there again.
func wantNoneLostBut(t *testing.T, what string, ss lab.Samples, damaged, mended []instant) {
	t.Helper()
	ss = wantFewReset(t, what, ss, mended)
	var rest lab.Samples
	flight, lost := 0, 0
	for _, s := range ss {
		inFlight := false
		for _, in := range damaged {
			inFlight = inFlight || s.Sent.Before(in.end) && (s.Sent.After(in.begin) || s.Answered.After(in.begin) ||
				s.Lost() && s.Sent.After(in.begin.Add(-settle)))
		}
		if !inFlight {
			rest = append(rest, s)
			continue
		}
		flight++
		if s.Lost() {
			lost++
		}
	}
	t.Logf("%s: in flight while rules were damaged %d, lost %d", what, flight, lost)
	wantNoneLost(t, what+" but for those", rest)
}

// wantFewReset has at most maxCut connections of a stream reset by each repair, and returns the other queries.
func wantFewReset(t *testing.T, what string, ss lab.Samples, mended []instant) lab.Samples {
	t.Helper()
	var rest lab.Samples
	reset := make([]int, len(mended))
	for _, s := range ss {
		i := slices.IndexFunc(mended, func(in instant) bool {
			return s.Sent.After(in.begin.Add(-settle)) && s.Sent.Before(in.end)
		})
		if i < 0 || !errors.Is(s.Err, syscall.ECONNRESET) {
			rest = append(rest, s)
			continue
		}
		reset[i]++
	}
	for i, n := range reset {
		if n > 0 {
			t.Logf("%s: repair %d reset %d connections", what, i, n)
		}
		if n > maxCut {
			t.Errorf("%s: repair %d reset %d connections, want at most %d", what, i, n, maxCut)
		}
	}
	return rest
}

const rulesChanged = `rules of .* had been changed by another program and were put back`

// TestRulesMended has other programs damage the rules under streams. Nothing is lost, the rules are back
// within one check, and each repair is counted and logged once.
func TestRulesMended(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		cases := iptablesDamage
		if backend == nftables {
			need(t, "nft")
			cases = nftDamage
		}
		t.Parallel()
		l := lab.Start(t, lab.Config{})
		d := start(t, l, serveOptions{Backend: backend, Args: []string{"-syncinterval", "1s"}})
		ld := startLoad(t, l, sideBySide()...)
		ld.more(500 * time.Millisecond)
		var instants, repaired []instant
		repairs := 0.0
		for _, c := range cases {
			before := time.Now()
			onNode(t, l, preamble(backend)+c.commands)
			damaged := time.Now()
			instants = append(instants, instant{before, damaged})
			d.until(mendBound, "the rules are mended", func() error {
				v, err := d.readMetric("coredns_setup_repairs_total", `kind="rules"`)
				if err == nil && v <= repairs {
					err = errors.New("no repair was counted")
				}
				return err
			})
			repaired = append(repaired, instant{damaged, time.Now()})
			t.Logf("%s: mended after %v", c.name, time.Since(damaged).Round(time.Millisecond))
			if v := d.metric("coredns_setup_rules_in_place", ""); v != 1 {
				t.Errorf("%s: coredns_setup_rules_in_place is %v after the repair", c.name, v)
			}
			had := repairs
			repairs = d.metric("coredns_setup_repairs_total", `kind="rules"`)
			// A check that meets damage which is only half done mends twice.
			if repairs != had+1 && damaged.Sub(before) < time.Second/2 {
				t.Errorf("%s: %v repairs", c.name, repairs-had)
			}
		}
		ld.more(1500 * time.Millisecond) // one more check
		for i, ss := range ld.stop() {
			wantNoneLostBut(t, fmt.Sprintf("stream %d", i), ss, instants, repaired)
		}
		if v := d.metric("coredns_setup_repairs_total", `kind="rules"`); v != repairs {
			t.Errorf("%v repairs without further damage", v-repairs)
		}
		if n := d.logged(rulesChanged); n != int(repairs) {
			t.Errorf("%d of %v repairs were logged", n, repairs)
		}
	})
}

// TestLinkMended removes the link, its addresses, and sets it down, under streams of both families. Each is back
// within a second, as the streams see it.
func TestLinkMended(t *testing.T) {
	const local6 = "fd00:169:254::10"
	l := lab.Start(t, lab.Config{})
	d := start(t, l, serveOptions{
		LocalIP:  lab.LocalIP + "," + local6,
		Corefile: edit(t, string(localcache.CorefileExample), `bind 169\.254\.25\.10`, "bind 169.254.25.10 "+local6),
	})
	six := netip.MustParseAddr(local6)
	for _, c := range []struct {
		name, commands string
		repairs        []string // kinds of repair, one of which is counted
	}{
		{"link deleted", "ip link del nodelocaldns", []string{"link"}},
		{"address deleted", "ip addr del 169.254.25.10/32 dev nodelocaldns", []string{"address"}},
		{"IPv6 address deleted", "ip addr del " + local6 + "/128 dev nodelocaldns", []string{"address"}},
		// The kernel removes the IPv6 address of a link that goes down, which is a second repair.
		{"link down", "ip link set nodelocaldns down", []string{"link_down", "address"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := d.in(t)
			repairs := func() (n float64) {
				for _, kind := range c.repairs {
					n += d.metric("coredns_setup_repairs_total", fmt.Sprintf("kind=%q", kind))
				}
				return n
			}
			had := repairs()
			ld := startLoad(t, l, lab.Stream{QPS: 1000, Timeout: time.Second}, lab.Stream{QPS: 500, Server: six, Fresh: true, Timeout: time.Second})
			ld.more(200 * time.Millisecond)
			began := time.Now()
			onNode(t, l, c.commands)
			ld.more(1200 * time.Millisecond)
			for i, ss := range ld.stop() {
				t.Logf("stream %d: %d sent, %d lost, longest outage %v", i, len(ss), len(ss.Lost()), outage(ss).Round(time.Millisecond))
				wantNoneLost(t, fmt.Sprintf("stream %d before the damage", i), ss.SentBefore(began.Add(-settle/4)))
				wantNoneLost(t, fmt.Sprintf("stream %d 1 s after the damage", i), ss.SentAfter(began.Add(time.Second)))
				if o := outage(ss); o > time.Second {
					t.Errorf("stream %d: no answers for %v", i, o)
				}
			}
			if repairs() == had {
				t.Errorf("no repair of kind %v was counted", c.repairs)
			}
			if v := d.metric("coredns_setup_interface_up", `interface="nodelocaldns"`); v != 1 {
				t.Errorf("coredns_setup_interface_up is %v", v)
			}
		})
	}
}

// holdXtablesLock holds the lock of the iptables programs like another program. The returned func releases it.
func holdXtablesLock(t *testing.T, l *lab.Lab) (release func()) {
	t.Helper()
	var f *os.File
	err := l.Node.Do(func() (err error) {
		if f, err = os.OpenFile("/run/xtables.lock", os.O_RDONLY|os.O_CREATE, 0o600); err != nil {
			return err
		}
		return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	})
	if err != nil {
		t.Fatal(err)
	}
	release = func() {
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	return release
}

// ownLock gives the node an xtables lock that it does not share with other labs.
func ownLock(t *testing.T, l *lab.Lab) {
	t.Helper()
	own := l.Path("xtables.lock")
	onNode(t, l, fmt.Sprintf("touch %s /run/xtables.lock; mount --bind %s /run/xtables.lock", own, own))
}

// lockHeld is longer than localcache waits for the lock in one call.
const lockHeld = 10 * time.Second

// TestLockAtStart starts localcache while another program holds the xtables lock for 10 s.
func TestLockAtStart(t *testing.T) {
	need(t, iptablesLegacy)
	t.Parallel()
	l := lab.Start(t, lab.Config{})
	ownLock(t, l)
	o := serveOptions{Backend: iptablesLegacy, NoWait: true, Args: []string{"-syncinterval", "1s"}}
	o.Corefile = useBackend(t, l, iptablesLegacy, string(localcache.CorefileExample)) // needs the lock itself
	o.Backend = ""
	release := holdXtablesLock(t, l)
	began := time.Now()
	d := start(t, l, o)
	d.waitAnswers(startTimeout)
	t.Logf("answers %v after the start, with the lock held", time.Since(began).Round(time.Millisecond))
	ld := startLoad(t, l, sideBySide()...)
	ld.more(time.Second) // with the lock held, however long the start took
	time.Sleep(time.Until(began.Add(lockHeld)))
	if n := d.metric("coredns_setup_rules_in_place", ""); n != 0 {
		t.Error("the rules count as in place, although nobody could set them")
	}
	if n := d.metric("coredns_nodecache_setup_errors_total", `errortype="iptables_lock"`); n == 0 {
		t.Error("no error of type iptables_lock was counted")
	}
	release()
	released := time.Now()
	d.waitMetric("coredns_setup_rules_in_place", "", 1, startTimeout)
	t.Logf("the rules are in place %v after the release", time.Since(released).Round(time.Millisecond))
	if v := d.metric("coredns_setup_backend_info", `backend="iptables-legacy"`); v != 1 {
		t.Errorf("coredns_setup_backend_info of iptables-legacy is %v", v)
	}
	ld.more(300 * time.Millisecond)
	for i, ss := range ld.stop() {
		wantNoneLost(t, fmt.Sprintf("stream %d", i), ss)
	}
}

// TestLockDuringRepair flushes the rules and holds the lock for 10 s. Nothing is lost, and the rules are
// back soon after the release. iptables-nft knows no lock: it mends at once.
func TestLockDuringRepair(t *testing.T) {
	for _, backend := range []string{iptablesNFT, iptablesLegacy} {
		t.Run(backend, func(t *testing.T) {
			need(t, backend)
			t.Parallel()
			l := lab.Start(t, lab.Config{})
			ownLock(t, l)
			d := start(t, l, serveOptions{Backend: backend, Args: []string{"-syncinterval", "1s"}})
			ld := startLoad(t, l, sideBySide()...)
			ld.more(500 * time.Millisecond)
			release := holdXtablesLock(t, l)
			held := time.Now()
			// The lock is another file for the program that does the damage.
			onNode(t, l, fmt.Sprintf("export XTABLES_LOCKFILE=%s; %s -w -t raw -F", l.Path("other.lock"), backend))
			damaged := instant{held, time.Now()}
			mending := damaged.end
			if backend == iptablesNFT {
				d.waitMetric("coredns_setup_repairs_total", `kind="rules"`, 1, mendBound)
				release()
			} else {
				time.Sleep(time.Until(held.Add(lockHeld)))
				if n := d.metric("coredns_nodecache_setup_errors_total", `errortype="iptables_lock"`); n == 0 {
					t.Error("no error of type iptables_lock was counted")
				}
				if n := d.metric("coredns_setup_rules_in_place", ""); n != 0 {
					t.Error("the rules count as in place, although nobody could look")
				}
				if n := d.logged(`the node's network \(rules\): another program holds the xtables lock`); n != 1 {
					t.Errorf("the lock was logged %d times in one spell", n)
				}
				release()
				mending = time.Now()
				d.waitMetric("coredns_setup_repairs_total", `kind="rules"`, 1, mendBound)
				t.Logf("mended %v after the release", time.Since(mending).Round(time.Millisecond))
			}
			mended := instant{mending, time.Now()}
			ld.more(300 * time.Millisecond)
			for i, ss := range ld.stop() {
				wantNoneLostBut(t, fmt.Sprintf("stream %d", i), ss, []instant{damaged}, []instant{mended})
			}
			if n := d.logged(rulesChanged); n != 1 {
				t.Errorf("%d repairs were logged, want 1", n)
			}
		})
	}
}

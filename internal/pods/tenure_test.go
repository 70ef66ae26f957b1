package pods

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

var epoch = time.Unix(1_700_000_000, 0)

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * 1e9)) }

func pod(name, uid string, started float64, ips ...string) Pod {
	p := Pod{Namespace: "shop", Name: name, UID: uid, Started: at(started)}
	for _, ip := range ips {
		p.IPs = append(p.IPs, addr(ip))
	}
	return p
}

// history feeds one Directory and records which statistics must be forgotten.
type history struct {
	t *testing.T
	d Directory
}

// turn checks which statistics are thrown away: "ADDRESS SECONDS" each.
func (h *history) turn(seconds float64, list []Pod, want ...string) {
	h.t.Helper()
	var got []string
	h.d.Turn(list, []netip.Addr{addr("192.0.2.1"), addr("169.254.25.10")}, at(seconds), func(a netip.Addr, before time.Time) {
		if p, ok := h.d.Table().Of(a); ok {
			h.t.Errorf("at %v s: while what %s has is thrown away, it is shown as %+v", seconds, a, p)
		}
		got = append(got, fmt.Sprint(a, " ", before.Sub(epoch).Seconds()))
	})
	if !slices.Equal(got, want) {
		h.t.Errorf("at %v s: thrown away is %q, want %q", seconds, got, want)
	}
}

// is checks to which pod the queries at a time belong.
func (h *history) is(a string, seconds float64, uid string) {
	h.t.Helper()
	if p, _ := h.d.Table().At(addr(a), at(seconds)); p.UID != uid {
		h.t.Errorf("what %s asked at %v s is of %q, want %q", a, seconds, p.UID, uid)
	}
}

// TestTenure checks that an address can move from pod to pod, and that none inherits.
func TestTenure(t *testing.T) {
	const a, b = "10.244.1.5", "10.244.1.6"
	h := &history{t: t}

	// The process started at 0 and asked the API server at 10. The pod existed before, at -100, or came at 4: then
	// earlier queries are not its own.
	h.turn(10, []Pod{pod("one", "u1", -100, a), pod("two", "u2", 4, b)}, a+" -100", b+" 4")
	h.is(a, 0, "u1")
	h.is(b, 3, "")
	h.is(b, 5, "u2")

	// Nothing has changed for them.
	h.turn(20, []Pod{pod("one", "u1", -100, a), pod("three", "u3", 19), pod("two", "u2", 4, b)})

	// One has ended: its address belongs to no pod. Its queries stay its own.
	h.turn(30, []Pod{pod("one", "u1", -100), pod("three", "u3", 19), pod("two", "u2", 4, b)}, a+" 30")
	h.is(a, 29, "u1")
	h.is(a, 30, "")
	if p, ok := h.d.Table().Of(addr(a)); ok {
		t.Errorf("%s is shown as %+v", a, p)
	}

	// Another one has got it: queries since the end of the previous one are its own, although the event comes later.
	h.turn(40, []Pod{pod("three", "u3", 19, a), pod("two", "u2", 4, b)}, a+" 30")
	if since, ok := h.d.Table().tenureOf(addr(a), "u3"); !ok || !since.Equal(at(30)) {
		t.Errorf("%s is its pod's since %v s", a, since.Sub(epoch).Seconds())
	}
	h.is(a, 18, "u1")
	h.is(a, 29, "") // when the node had the next one already
	h.is(a, 31, "u3")
	h.is(a, 41, "u3")

	// The same name comes back as another pod with the same address, and no event was seen in between.
	h.turn(50, []Pod{pod("three", "u4", 42, a), pod("two", "u2", 4, b)}, a+" 50")
	h.is(a, 41, "u3")
	h.is(a, 45, "") // of either
	h.is(a, 51, "u4")

	// A long-lived pod changes its address.
	h.turn(60, []Pod{pod("three", "u4", 42, a), pod("two", "u2", 4, "10.244.1.7")}, b+" 60", "10.244.1.7 60")
	h.is("10.244.1.7", 59, "")
	h.is(b, 59, "u2")

	// Two change places.
	h.turn(70, []Pod{pod("three", "u4", 42, "10.244.1.7"), pod("two", "u2", 4, a)}, a+" 70", "10.244.1.7 70")
	h.is(a, 69, "u4")
	h.is(a, 70, "u2")
	h.is("10.244.1.7", 69, "u2")
	h.is("10.244.1.7", 70, "u4")
}

// TestTenureUnknownStart checks that a pod with an unknown start has its address from now on.
func TestTenureUnknownStart(t *testing.T) {
	h := &history{t: t}
	p := pod("one", "u1", 0, "10.244.1.5")
	p.Started = time.Time{}
	h.turn(10, []Pod{p}, "10.244.1.5 10")
	h.is("10.244.1.5", 9, "")

	// A start in the future is ignored.
	h.turn(20, []Pod{pod("two", "u2", 1000, "10.244.1.5")}, "10.244.1.5 20")
	h.is("10.244.1.5", 21, "u2")
	// After the clock was set back, the next pod has its address nevertheless.
	h.turn(5, []Pod{pod("three", "u3", 4, "10.244.1.5")}, "10.244.1.5 5")
	h.is("10.244.1.5", 6, "u3")
}

// TestTenureHost checks that the node's addresses count as one client, whichever pods come and go, and that nothing
// of it is dropped.
func TestTenureHost(t *testing.T) {
	h := &history{t: t}
	proxy := Pod{Namespace: "kube-system", Name: "proxy", UID: "u1", HostNetwork: true, IPs: []netip.Addr{addr("192.0.2.9")}, Started: at(1)}
	h.turn(10, []Pod{proxy})
	for _, a := range []string{"192.0.2.9", "192.0.2.1", "169.254.25.10", "::ffff:169.254.25.10"} {
		if p, ok := h.d.Table().Of(addr(a)); !ok || !p.IsHost() {
			t.Errorf("%s is %+v", a, p)
		}
		if p, ok := h.d.Table().At(addr(a), at(0)); !ok || !p.IsHost() {
			t.Errorf("%s was %+v", a, p)
		}
	}
	proxy.UID = "u2"
	h.turn(20, []Pod{proxy})
	h.turn(30, nil)
	// This process in a network of its own: the address belongs to its pod. The node's statistics do not move to it.
	h.turn(40, []Pod{pod("cache", "u3", 35, "192.0.2.1")}, "192.0.2.1 35")
	h.is("192.0.2.1", 41, "u3")
	h.turn(50, nil, "192.0.2.1 50")
	if p, _ := h.d.Table().Of(addr("192.0.2.1")); !p.IsHost() {
		t.Errorf("%+v", p)
	}
}

// TestTenureTwo checks that an address of two pods belongs to the younger one, in either order.
func TestTenureTwo(t *testing.T) {
	old, young := pod("b", "old", 1, "10.244.1.5"), pod("a", "young", 2, "10.244.1.5")
	for _, list := range [][]Pod{{old, young}, {young, old}} {
		if p, _ := NewTable(list).Of(addr("10.244.1.5")); p.UID != "young" {
			t.Errorf("it is %s's", p.UID)
		}
	}
}

// TestFormerBounded checks that ended tenures are remembered up to a bound, the latest ones.
func TestFormerBounded(t *testing.T) {
	var d Directory
	const n = maxFormer + 100
	for i := range n {
		d.Turn([]Pod{pod("job", fmt.Sprint(i), float64(i), "10.244.1.5")}, nil, at(float64(i)), func(netip.Addr, time.Time) {})
	}
	tab := d.Table()
	if len(tab.former) != maxFormer {
		t.Errorf("%d are remembered", len(tab.former))
	}
	for seconds, want := range map[int]string{n - 1: fmt.Sprint(n - 1), n - 2: fmt.Sprint(n - 2), n - maxFormer: fmt.Sprint(n - maxFormer), 0: ""} {
		if p, _ := tab.At(addr("10.244.1.5"), at(float64(seconds))); p.UID != want {
			t.Errorf("at %d s it is of %q, want %q", seconds, p.UID, want)
		}
	}
}

// TestRemark checks that known pods stay, with the remark about them.
func TestRemark(t *testing.T) {
	tab := table().WithRemark("the API server is away")
	known, remark := tab.Known()
	if p, _ := tab.Of(addr("10.244.1.5")); !known || remark != "the API server is away" || p.UID != "u1" {
		t.Errorf("known %t, %q, %+v", known, remark, p)
	}
	next, turned := tab.Next(tab.pods, nil, at(1))
	if known, remark := next.Known(); !known || remark != "" || len(turned) != 0 {
		t.Errorf("afterwards: known %t, %q, turned %v", known, remark, turned)
	}
}

func BenchmarkTurn(b *testing.B) {
	list := make([]Pod, 250)
	for i := range list {
		list[i] = pod(fmt.Sprintf("web-%d", i), fmt.Sprint(i), 0, netip.AddrFrom4([4]byte{10, 244, 1, byte(i)}).String())
	}
	var d Directory
	b.ReportAllocs()
	for b.Loop() {
		d.Turn(list, nil, at(1), func(netip.Addr, time.Time) {})
	}
}

// TestTenureAgain checks that a pod whose address is missing for a moment keeps its earlier queries.
func TestTenureAgain(t *testing.T) {
	const a = "10.244.1.5"
	h := &history{t: t}
	h.turn(10, []Pod{pod("one", "u1", 1, a)}, a+" 1")
	h.turn(20, []Pod{pod("one", "u1", 1)}, a+" 20")
	h.turn(30, []Pod{pod("one", "u1", 1, a)}, a+" 20")
	h.is(a, 5, "u1")
	h.is(a, 31, "u1")
}

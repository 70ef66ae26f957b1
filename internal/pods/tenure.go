package pods

import (
	"net/netip"
	"slices"
	"time"
)

// What statistics under an address tell is about a pod, and the address goes on to another one. What is known about that
// comes late: a pod has asked its first questions before the kubelet has told the API server its address, and that has
// told us, one or two seconds later; and it comes later still when the API server was away. Times are those of this node's
// clock, by which the kubelet gives a pod its start as well. So:
//
//   - When a pod is gone, or has ended, its time with the address is over at that moment. What comes from the address then
//     is nobody's, and mostly that of a pod that is about to be known.
//   - A pod that gets an address which was nobody's has had it since the node took the pod in: what was asked since then is
//     its own. But never before the end of the one that was known before, and of a pod that changes its address, which
//     is known to have been there longer, only from now on.
//   - Where an address goes from one pod to another in one step, something in between was missed. The new one has it from
//     this moment on; what it has asked before is lost among all others, and not believed of it.
//
// Until the end of a pod is known here, what comes from its address is shown as its own. What came after the node took
// in the next one is nobody's, as soon as that one is known.
//
// What remains: a pod that came and went without ever being seen with its address. Its questions count for the one before
// it, or for the next one where the node had taken that in already. With a clock that is set back, times overlap for as long.

// tenure is a pod's time with an address.
type tenure struct {
	pod   int       // index, or host
	since time.Time // zero for the beginning of time
}

const host = -1

// ended is a tenure that is over.
type ended struct {
	addr         netip.Addr
	pod          Pod
	since, until time.Time
}

// maxFormer is how many ended tenures are remembered, for stories that are older: 100 KB.
const maxFormer = 512

// Turnover says that what was counted under an address before a time is not of who has it now, if anybody has.
type Turnover struct {
	Addr   netip.Addr
	Before time.Time
}

// Next is the Table that follows t, which may be nil, when the pods of the node are list at a time. The node's own
// addresses are Host's; where a pod has one of them, it is the pod's.
func (t *Table) Next(list []Pod, node []netip.Addr, now time.Time) (*Table, []Turnover) {
	now = now.Round(0) // by the wall clock, as everything that it is compared with
	next := NewTable(list)
	for _, a := range node {
		if _, taken := next.byAddr[a.Unmap()]; !taken {
			next.byAddr[a.Unmap()] = tenure{pod: host}
		}
	}
	if t != nil {
		next.former = t.former
	}
	var turned []Turnover
	turn := func(a netip.Addr, before time.Time) { turned = append(turned, Turnover{a, before}) }
	over := map[netip.Addr]bool{} // from one pod to another in one step
	if t != nil {
		for a, h := range t.byAddr {
			if h.pod == host {
				continue
			}
			was := t.pods[h.pod]
			is, taken := next.byAddr[a]
			if taken && is.pod != host && next.pods[is.pod].UID == was.UID {
				continue
			}
			next.former = append(next.former, ended{a, was, h.since, now})
			if over[a] = taken; !taken {
				turn(a, now)
			}
		}
	}
	slices.SortStableFunc(next.former, func(a, b ended) int { return a.until.Compare(b.until) })
	next.former = slices.Clone(next.former[max(0, len(next.former)-maxFormer):])
	for a, h := range next.byAddr {
		if h.pod == host {
			if over[a] {
				turn(a, now)
			}
			continue
		}
		p := next.pods[h.pod]
		if before, ok := t.tenureOf(a, p.UID); ok {
			h.since = before
		} else {
			h.since = p.Started
			moved := t.hadAnother(p)
			if h.since.IsZero() || over[a] || moved {
				h.since = now
			}
			for i := range next.former {
				f := &next.former[i]
				if f.addr != a {
					continue
				}
				if f.until.After(h.since) {
					h.since = f.until
				}
				if !moved && f.pod.UID != p.UID && f.until.After(p.Started) && !p.Started.IsZero() { // whose that was cannot be known
					f.until = p.Started
				}
			}
			if h.since.After(now) { // the clock was set back
				h.since = now
			}
			turn(a, h.since)
		}
		next.byAddr[a] = h
	}
	slices.SortFunc(turned, func(a, b Turnover) int { return a.Addr.Compare(b.Addr) })
	return next, turned
}

// tenureOf is since when the pod has the address already.
func (t *Table) tenureOf(a netip.Addr, uid string) (since time.Time, ok bool) {
	if t == nil {
		return time.Time{}, false
	}
	h, ok := t.byAddr[a]
	if !ok || h.pod == host || t.pods[h.pod].UID != uid {
		return time.Time{}, false
	}
	return h.since, true
}

// hadAnother tells whether the pod had an address already: the one that is new to it came later than the pod.
func (t *Table) hadAnother(p Pod) bool {
	if t == nil {
		return false
	}
	was, ok := t.Named(p.Namespace, p.Name)
	return ok && was.UID == p.UID && len(was.IPs) > 0
}

// without is t as if nobody had the addresses that turn.
func (t *Table) without(turned []Turnover) *Table {
	if t == nil || !t.known || len(turned) == 0 {
		return t
	}
	c := *t
	c.byAddr = make(map[netip.Addr]tenure, len(t.byAddr))
	for a, h := range t.byAddr {
		c.byAddr[a] = h
	}
	for _, u := range turned {
		delete(c.byAddr, u.Addr)
	}
	return &c
}

// At is the pod that had an address at a time; Host where it is the node's.
func (t *Table) At(a netip.Addr, when time.Time) (Pod, bool) {
	if t == nil {
		return Pod{}, false
	}
	a = a.Unmap()
	if h, ok := t.byAddr[a]; ok && !when.Before(h.since) {
		return t.holder(h), true
	}
	for _, f := range slices.Backward(t.former) { // until may be before since: a time that nobody can know of
		if f.addr == a && when.Before(f.until) && !when.Before(f.since) {
			return f.pod, true
		}
	}
	return Pod{}, false
}

// Turn puts the Table that follows in its place. forget is called for each address of which statistics have to be thrown
// away. At no time is a pod's name beside what another one did: meanwhile nobody has these addresses. Calls must not overlap.
func (d *Directory) Turn(list []Pod, node []netip.Addr, now time.Time, forget func(addr netip.Addr, before time.Time)) {
	last := d.Table()
	next, turned := last.Next(list, node, now)
	if len(turned) > 0 {
		d.Store(last.without(turned))
	}
	for _, u := range turned {
		forget(u.Addr, u.Before)
	}
	d.Store(next)
}

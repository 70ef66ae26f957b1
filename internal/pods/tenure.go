package pods

import (
	"net/netip"
	"slices"
	"time"
)

// Statistics under an address belong to a pod, and the address moves on to another pod. The news about that arrives
// late: a pod asks its first questions one or two seconds before the kubelet has reported its address to the API
// server and the API server to this process, and even later while the API server is away. Times are those of this
// node's clock, which the kubelet also uses for the start of a pod. The rules:
//
//   - When a pod is gone, or has ended, its time with the address ends at that moment. Queries from the address then
//     belong to no known pod, most likely to a new one.
//   - A pod that gets an unused address has had it since the node accepted the pod: queries since then are its own. But
//     never before the end of the previous pod, and a pod that changes its address has the new one only from now on.
//   - If an address moves from one pod to another in one step, an event was missed. The new pod has it from now on; its
//     earlier queries are not attributed to it.
//
// Until the end of a pod is known here, queries from its address count as its own. Queries after the node accepted
// the next pod are attributed to neither once that pod is known.
//
// Limits: a pod that came and went without being seen with its address. Its queries count for its predecessor, or for
// its successor if the node had already accepted that one. If the clock is set back, tenures overlap for as long.

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

// maxFormer is how many ended tenures are remembered for older stories: 100 KB.
const maxFormer = 512

// Turnover reports that an IP address moved to another pod, or to none: statistics before Before belong to the
// previous one.
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
				if !moved && f.pod.UID != p.UID && f.until.After(p.Started) && !p.Started.IsZero() { // it is unknown to whom that belonged
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

// tenureOf returns since when the pod has the address.
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

// hadAnother reports whether the pod already had an address: then the new one is younger than the pod.
func (t *Table) hadAnother(p Pod) bool {
	if t == nil {
		return false
	}
	was, ok := t.Named(p.Namespace, p.Name)
	return ok && was.UID == p.UID && len(was.IPs) > 0
}

// without returns t without the addresses in turned.
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

// At returns the pod that had an address at a time; Host if it was the node's.
func (t *Table) At(a netip.Addr, when time.Time) (Pod, bool) {
	if t == nil {
		return Pod{}, false
	}
	a = a.Unmap()
	if h, ok := t.byAddr[a]; ok && !when.Before(h.since) {
		return t.holder(h), true
	}
	for _, f := range slices.Backward(t.former) { // until may be before since: a time that is not known
		if f.addr == a && when.Before(f.until) && !when.Before(f.since) {
			return f.pod, true
		}
	}
	return Pod{}, false
}

// Turn replaces the Table by the next one. It calls forget for each address whose statistics must be dropped. At no
// time is a pod shown with another pod's statistics: meanwhile these addresses have no pod. Calls must not overlap.
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

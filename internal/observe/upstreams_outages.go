package observe

import (
	"cmp"
	"slices"
)

// outages are failed health checks: the first and the latest of each of the last outages.
type outages struct {
	entries [RecentProbes]Exchange // the newest first
	kept    int
	current int // how many of them belong to the current outage
}

func (o *outages) push(e *Exchange) {
	if o.current < 2 {
		copy(o.entries[1:], o.entries[:])
		o.kept = min(o.kept+1, RecentProbes)
		o.current++
	}
	o.entries[0] = *e
}

// over ends the outage: the next one that is pushed begins another.
func (o *outages) over() { o.current = 0 }

func (o *outages) list() []Exchange { return o.entries[:o.kept] }

// recentFailures are the newest failures of lists, newest first. Health checks do not push clients' exchanges out.
func recentFailures(lists ...[]Exchange) []Exchange {
	all := slices.Concat(lists...)
	slices.SortStableFunc(all, func(a, b Exchange) int {
		return cmp.Or(b.Start.Add(b.Duration).Compare(a.Start.Add(a.Duration)), a.Local.Compare(b.Local), cmp.Compare(a.Err, b.Err))
	})
	room := map[bool]int{false: RecentFailures, true: RecentProbes}
	return slices.DeleteFunc(all, func(e Exchange) bool {
		room[e.Probe]--
		return room[e.Probe] < 0
	})
}

package api

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
)

// mergePods merges the clients of all nodes into one list. Parts of the same client come from two processes of its
// node.
func mergePods(g *Gather, from []answer[Pod], to *List[Pod]) {
	bounds := to.Metadata.LatencyBoundsSeconds
	var all []Pod
	at := map[string]int{}
	for _, a := range from {
		for _, p := range a.Items {
			p.Node = a.node
			key := p.key()
			if i, known := at[key]; known {
				all[i].add(&p, bounds)
				continue
			}
			at[key] = len(all)
			all = append(all, p)
		}
	}
	place(g, to, all, func(p *Pod) cursor {
		return cursor{p.order(g.params.by, bounds), strings.Join([]string{p.Name(), p.UID, p.Node}, " ")}
	}, from)
}

// key returns a value that is equal for parts of the same client. A client without a pod, or with a pseudonym,
// belongs to its node.
func (c *Client) key() string {
	switch {
	case c.UID != "":
		return "uid " + c.UID
	case c.PodName != "" && c.Namespace != "":
		return "pod " + c.Namespace + "/" + c.PodName
	}
	return "node " + c.Node + " " + c.Name()
}

// order returns the value by which clients are ordered; see podOrder.
func (p *Pod) order(by string, bounds []float64) int64 {
	switch by {
	case "queries":
		return number(p.Queries)
	case "misses":
		return number(p.Sources["upstream"])
	case "latency":
		all := p.Hit
		all.add(&p.Miss, bounds)
		return nanoseconds(all.P99Seconds)
	case "wait":
		return nanoseconds(p.UpstreamWaitSeconds)
	case "retransmits":
		return number(p.RetransmitTotal)
	case "nxdomain":
		return number(p.Rcodes["nxdomain"])
	case "errors":
		return number(add(add(p.Rcodes["servfail"], p.Rcodes["refused"]), p.Rcodes["other_rcode"]))
	case "waste":
		return nanoseconds(p.SearchWaste * 1e-3) // millionths
	}
	return 0
}

// nanoseconds of a duration in seconds, as far as they can be counted.
func nanoseconds(seconds float64) int64 {
	return int64(math.Round(max(min(seconds, 9e9), -9e9) * 1e9))
}

// add merges the statistics of another process about the same client.
func (p *Pod) add(o *Pod, bounds []float64) {
	p.Client.add(&o.Client)
	if o.FirstSeen.Before(p.FirstSeen) {
		p.FirstSeen = o.FirstSeen
	}
	if o.LastSeen.After(p.LastSeen) {
		p.LastSeen = o.LastSeen
	}
	p.Traffic.add(&o.Traffic, bounds)
	size := max(len(p.Names), len(o.Names))
	p.Names, _ = addNames([][]Name{p.Names, o.Names}, []uint64{leastCount(p.Names), leastCount(o.Names)})
	p.Names = p.Names[:min(len(p.Names), size)]
}

func (c *Client) add(o *Client) {
	if c.Node != o.Node { // addresses that moved meanwhile must stay visible
		c.Node += ", " + o.Node
	}
	for _, a := range o.Addresses {
		if !slices.Contains(c.Addresses, a) {
			c.Addresses = append(slices.Clip(c.Addresses), a)
		}
	}
}

// leastCount is the most that a name can have that a client's list lacks: less than the least that is listed.
func leastCount(names []Name) uint64 {
	if len(names) == 0 {
		return 0
	}
	least := uint64(math.MaxUint64)
	for _, n := range names {
		least = min(least, n.Count)
	}
	return least
}

func mergeDetails(_ *Gather, from []answer[PodDetail], to *List[PodDetail]) {
	bounds := to.Metadata.LatencyBoundsSeconds
	at := map[string]int{}
	for _, a := range from {
		for _, p := range a.Items {
			p.Node = a.node
			for i := range p.Recent {
				p.Recent[i].Client.Node = a.node
			}
			key := p.key()
			i, known := at[key]
			if !known {
				at[key] = len(to.Items)
				to.Items = append(to.Items, p)
				continue
			}
			sum := &to.Items[i]
			sum.add(&p.Pod, bounds)
			for window, t := range p.Windows {
				all := sum.Windows[window]
				all.add(&t, bounds)
				if sum.Windows == nil {
					sum.Windows = map[string]Traffic{}
				}
				sum.Windows[window] = all
			}
			sum.Recent = slices.Concat(sum.Recent, p.Recent)
			slices.SortStableFunc(sum.Recent, func(a, b Query) int { return queryPlace(&a).compare(queryPlace(&b)) })
		}
	}
}

// mergeNames adds up how often each name was counted, or finds the slowest.
func mergeNames(g *Gather, from []answer[Name], to *List[Name]) {
	lists, floors := make([][]Name, len(from)), make([]uint64, len(from))
	for i, a := range from {
		lists[i], floors[i] = a.Items, a.Metadata.Floor
	}
	var all []Name
	if g.params.by == "slowest" {
		all = slowestNames(lists)
		to.Metadata.Floor = slices.Max(floors)
	} else {
		all, to.Metadata.Floor = addNames(lists, floors)
	}
	place(g, to, all, namePlace, from)
	if len(to.Items) < len(all) { // names that are cut off are not listed either
		to.Metadata.Floor = max(to.Metadata.Floor, uint64(namePlace(&all[len(to.Items)]).value))
	}
}

// namePlace is a name's place in its list.
func namePlace(n *Name) cursor {
	return cursor{cmp.Or(number(n.Count), max(nanoseconds(n.Seconds*1e-3), 0)), n.Name}
}

// addNames merges lists of names (Agarwal and others, Mergeable Summaries, 2012): counts and errors add up, and a name that a
// list lacks may have as much there as the list's floor. The names are in their order; floor is that of the whole.
func addNames(lists [][]Name, floors []uint64) (all []Name, floor uint64) {
	at := map[string]int{}
	var before uint64 // the sum of the floors of the lists so far
	for i, list := range lists {
		here := make(map[string]Name, len(list))
		for _, n := range list { // long names are cut, two can be the same
			sum := here[n.Name]
			here[n.Name] = Name{Name: n.Name, Count: add(sum.Count, n.Count), Error: add(sum.Error, n.Error)}
		}
		for name, n := range here {
			if _, known := at[name]; !known {
				at[name] = len(all)
				all = append(all, Name{Name: name, Count: add(before, n.Count), Error: add(before, n.Error)})
				continue
			}
			sum := &all[at[name]]
			sum.Count, sum.Error = add(sum.Count, n.Count), add(sum.Error, n.Error)
		}
		for j := range all {
			if _, listed := here[all[j].Name]; !listed {
				all[j].Count, all[j].Error = add(all[j].Count, floors[i]), add(all[j].Error, floors[i])
			}
		}
		before = add(before, floors[i])
	}
	sortNames(all)
	return all, before
}

func slowestNames(lists [][]Name) []Name {
	highest := map[string]Name{}
	for _, n := range slices.Concat(lists...) {
		if have, known := highest[n.Name]; !known || n.Seconds > have.Seconds {
			highest[n.Name] = n
		}
	}
	all := make([]Name, 0, len(highest))
	for _, n := range highest {
		all = append(all, n)
	}
	sortNames(all)
	return all
}

func sortNames(all []Name) {
	slices.SortFunc(all, func(a, b Name) int { return namePlace(&a).compare(namePlace(&b)) })
}

func mergeQueries(g *Gather, from []answer[Query], to *List[Query]) {
	var all []Query
	for _, a := range from {
		for _, q := range a.Items {
			q.Client.Node = a.node
			all = append(all, q)
		}
	}
	place(g, to, all, queryPlace, from)
}

// queryPlace is a query's place in its list.
func queryPlace(q *Query) cursor {
	return cursor{q.ReceivedAt.UnixNano(), fmt.Sprintf("%s %d %d %s %s %s", q.Client.Name(), q.Port, q.ID, q.Name, q.Type, q.Client.Node)}
}

func mergeEvents(g *Gather, from []answer[Event], to *List[Event]) {
	var all []Event
	for _, a := range from {
		for _, e := range a.Items {
			e.Node = a.node
			all = append(all, e)
		}
	}
	place(g, to, all, eventPlace, from)
}

// eventPlace is an event's place in its list.
func eventPlace(e *Event) cursor {
	return cursor{e.At.UnixNano(), fmt.Sprintf("%s %s %s %d %d %s", e.Upstream, e.Proto, e.Outcome, e.Attempt, nanoseconds(e.DurationSeconds), e.Node)}
}

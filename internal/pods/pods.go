// Package pods tells which pod a client's address belongs to.
//
// Readers take a Table, which never changes, from a Directory; whoever knows the node's pods puts a new Table
// there when they change. Neither waits for the other. Without anybody who knows them, a Table says so, and
// clients are told apart by address alone.
//
// Addresses are used again: the pod that has one now must not be shown with what another one did. So a Table knows
// since when each address is its pod's, and who had it before (tenure.go), and Directory.Turn has statistics by address
// thrown away between two Tables.
package pods

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Pod is what is known about a pod.
type Pod struct {
	Namespace    string
	Name         string
	UID          string // a name or an address can come back with another pod, a UID cannot
	WorkloadKind string // of what the pod was made for, such as Deployment; empty for a pod of its own
	WorkloadName string
	// IPs are the pod's addresses, one of each family.
	IPs []netip.Addr
	// HostNetwork pods have the node's addresses, so that the clients there cannot be told apart.
	HostNetwork bool
	// Started is when the node took the pod in, before it had an address (status.startTime); zero where unknown.
	Started time.Time
}

// Host stands for everything that asks from the node's own addresses.
var Host = Pod{Name: "host", HostNetwork: true}

// IsHost tells whether p is Host.
func (p *Pod) IsHost() bool { return p.HostNetwork && p.UID == "" }

// Table is the pods of a node at one moment. It is not changed. The nil Table knows nothing.
type Table struct {
	known  bool
	reason string
	pods   []Pod
	byAddr map[netip.Addr]tenure
	byName map[[2]string]int
	former []ended // the latest last
}

// NewTable makes a Table of the pods of this node. Their addresses count as theirs from the beginning of time; Next makes
// one that knows better. An address that two pods have belongs to the one that was started later: one that has ended may
// still be listed. An address that a pod of the node's network has as well is the node's.
func NewTable(list []Pod) *Table {
	t := &Table{known: true, pods: list, byAddr: make(map[netip.Addr]tenure, len(list)), byName: make(map[[2]string]int, len(list))}
	for i, p := range list {
		t.byName[[2]string{p.Namespace, p.Name}] = i
		for _, a := range p.IPs {
			a = a.Unmap()
			was, taken := t.byAddr[a]
			switch {
			case p.HostNetwork:
				t.byAddr[a] = tenure{pod: host}
			case !taken || was.pod != host && !p.Started.Before(list[was.pod].Started):
				t.byAddr[a] = tenure{pod: i}
			}
		}
	}
	return t
}

// Unknown makes a Table that knows no pods, for a reason that tells people what to do.
func Unknown(reason string) *Table { return &Table{reason: reason} }

// WithRemark is t with something that people should know about it, such as that it is not kept up to date any more.
func (t *Table) WithRemark(remark string) *Table {
	c := *t
	c.reason = remark
	return &c
}

// Known tells whether the pods are known; if they are not, why. For a Table with a remark, the remark.
func (t *Table) Known() (known bool, reason string) {
	if t == nil {
		return false, "nobody says which pods there are"
	}
	return t.known, t.reason
}

// Len is the number of pods.
func (t *Table) Len() int {
	if t == nil {
		return 0
	}
	return len(t.pods)
}

// Of is the pod that has an address; Host where it is the node's.
func (t *Table) Of(a netip.Addr) (Pod, bool) {
	if t == nil {
		return Pod{}, false
	}
	h, ok := t.byAddr[a.Unmap()]
	if !ok {
		return Pod{}, false
	}
	return t.holder(h), true
}

func (t *Table) holder(h tenure) Pod {
	if h.pod == host {
		return Host
	}
	return t.pods[h.pod]
}

// Named is the pod of a name.
func (t *Table) Named(namespace, name string) (Pod, bool) {
	if t == nil {
		return Pod{}, false
	}
	i, ok := t.byName[[2]string{namespace, name}]
	if !ok {
		return Pod{}, false
	}
	return t.pods[i], true
}

// Source is where a Table is taken from. It does not block.
type Source interface {
	Table() *Table
}

// Beside calls read, which reads statistics by address, until the Table does not change meanwhile, and returns that Table:
// what is read and the Table have to be of the same time, or a pod gets what the one before it with its address did. Tables
// change some times a second at most; settled is false where one did at each of so many calls.
func Beside(s Source, most int, read func()) (t *Table, settled bool) {
	t = s.Table()
	for range most {
		read()
		now := s.Table()
		if now == t {
			return t, true
		}
		t = now
	}
	return t, false
}

// Directory holds the Table of the moment. The zero value knows nothing. It is safe for concurrent use.
type Directory struct{ table atomic.Pointer[Table] }

// Store puts t in the place of what was known before.
func (d *Directory) Store(t *Table) { d.table.Store(t) }

// Table implements Source.
func (d *Directory) Table() *Table { return d.table.Load() }

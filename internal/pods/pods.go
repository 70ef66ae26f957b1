// Package pods maps client addresses to pods.
//
// Readers take a Table, which never changes, from a Directory; the code that follows the node's pods stores a new
// Table there on changes. Neither waits for the other. Without a source of pods a Table says so, and clients are
// known by address only.
//
// Addresses are reused: a pod must not be shown with the statistics of its predecessor. So a Table knows since when
// an address belongs to its pod, and which pod had it before (tenure.go), and Directory.Turn makes the statistics
// drop counts by address between two Tables.
package pods

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Pod describes a pod.
type Pod struct {
	Namespace    string
	Name         string
	UID          string // a name or an address can come back with another pod, a UID cannot
	WorkloadKind string // the kind of its owner, such as Deployment; empty for a pod without one
	WorkloadName string
	// IPs are the pod's addresses, one of each family.
	IPs []netip.Addr
	// HostNetwork pods use the node's addresses, so that clients there cannot be told apart.
	HostNetwork bool
	// Started is when the node accepted the pod, before it had an address (status.startTime); zero if unknown.
	Started time.Time
}

// Host stands for everything that asks from the node's own addresses.
var Host = Pod{Name: "host", HostNetwork: true}

// IsHost reports whether p is Host.
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

// NewTable returns a Table of the pods of this node. It takes their addresses as theirs since ever; Next returns one
// that knows more. An address of two pods belongs to the one that started later: a pod that ended may still be
// listed. An address of a pod in the node's network belongs to the node.
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

// Unknown returns a Table that knows no pods, with a reason that tells the operator what to do.
func Unknown(reason string) *Table { return &Table{reason: reason} }

// WithRemark returns t with a remark for the operator, for example that it is no longer updated.
func (t *Table) WithRemark(remark string) *Table {
	c := *t
	c.reason = remark
	return &c
}

// Known reports whether the pods are known, and if not, why. For a Table with a remark, reason is the remark.
func (t *Table) Known() (known bool, reason string) {
	if t == nil {
		return false, "no source of pods is configured"
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

// Of returns the pod that has an address; Host if it is the node's.
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

// Source provides a Table. It does not block.
type Source interface {
	Table() *Table
}

// Beside calls read, which reads statistics by address, until the Table does not change during the call, and returns
// that Table: both must be of the same time, or a pod would get the statistics of its predecessor. Tables change a
// few times a second at most; settled is false if the Table changed during each of most calls.
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

// Store replaces the Table by t.
func (d *Directory) Store(t *Table) { d.table.Store(t) }

// Table implements Source.
func (d *Directory) Table() *Table { return d.table.Load() }

package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Gather is a GET request to the servers of several nodes, whose answers are merged into one with the same envelope.
//
// Counts and histograms add up exactly. Names keep their bounds: each was counted at most Count and at least Count −
// Error times, and Floor is the most that an unlisted name can have. Upstreams are summed over the nodes, with the
// parts in PerNode. Clients stay apart: a pod is on one node only, and a client without a pod (the node itself,
// ~other, a bare address) differs on each node. Queries and events are sorted by time.
type Gather struct {
	endpoint *endpoint
	params   *params
	query    url.Values
	kind     kind
}

// Part is the answer of one process. A node has two processes during an upgrade.
type Part struct {
	Node, Version string // Version may be empty
	list          any    // *List of the kind's items
}

// Foreign is the error of an answer that no Server gave.
type Foreign struct{ Reason string }

// Error implements error.
func (e *Foreign) Error() string { return "the answer does not come from localcache: " + e.Reason }

// kind says how the answers of an endpoint are read and merged.
type kind struct {
	// whole is set if the parts of an item can come from all nodes: then each must send all of its items.
	whole bool
	read  func(body []byte) (any, error)
	merge func(g *Gather, parts []*Part, notes []string) (any, error)
}

var kinds = map[string]kind{
	"Summary":      merging(true, mergeSummaries),
	"UpstreamList": merging(true, mergeUpstreams),
	"PodList":      merging(false, mergePods),
	"PodDetail":    merging(false, mergeDetails),
	"NameList":     merging(true, mergeNames),
	"QueryList":    merging(false, mergeQueries),
	"EventList":    merging(false, mergeEvents),
	"Status":       merging(false, mergeStatus),
}

// NewGather prepares a GET of path with parameters. The error is the *Error that a Server would give.
func NewGather(path string, query url.Values) (*Gather, error) {
	e := endpointOf(path)
	if e == nil {
		return nil, &Error{Code: http.StatusNotFound, Reason: "NotFound", Message: fmt.Sprintf("there is nothing at %s", cut(path)), Hint: "GET /openapi.json lists what there is"}
	}
	k, known := kinds[e.kind]
	if !known {
		return nil, &Error{Code: http.StatusBadRequest, Reason: "OneNode", Message: fmt.Sprintf("%s is not for several nodes", cut(path)), Hint: "ask one node"}
	}
	if query.Has("continue") {
		return nil, &Error{Code: http.StatusBadRequest, Reason: "OneNode", Message: "parameter continue: it is not for several nodes", Hint: fmt.Sprintf("raise limit, up to %d", maxLimit)}
	}
	p, bad := parse(query.Encode(), e)
	if bad != nil {
		return nil, bad
	}
	return &Gather{endpoint: e, params: p, query: query, kind: k}, nil
}

// endpointOf finds the endpoint of a path.
func endpointOf(path string) *endpoint {
	parts := strings.Split(path, "/")
	for _, e := range all() {
		pattern := strings.Split(e.path, "/")
		if slices.EqualFunc(parts, pattern, func(part, want string) bool {
			return part == want || part != "" && strings.HasPrefix(want, "{")
		}) {
			return &e
		}
	}
	return nil
}

// Query returns the parameters for a process; alone says whether it is the only one on its node. The order over all
// nodes is right if each sends the first items of its own, as long as no item has parts in several answers; else each
// must send all.
func (g *Gather) Query(alone bool) url.Values {
	query := url.Values{}
	for name, values := range g.query {
		query[name] = values
	}
	takesLimit := slices.ContainsFunc(g.endpoint.params, func(p parameter) bool { return p.name == "limit" })
	if takesLimit && (g.kind.whole || !alone) {
		query.Set("limit", strconv.Itoa(maxLimit))
	}
	return query
}

// Read parses a process's answer. Fields that only another version has are ignored, and missing ones are 0. The error
// is the *Error of the answer if it is one, or a *Foreign.
func (g *Gather) Read(node, version string, body []byte) (*Part, error) {
	var head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return nil, &Foreign{err.Error()}
	}
	if !strings.HasPrefix(head.APIVersion, "diag.localcache.dev/") {
		return nil, &Foreign{"it has no apiVersion of localcache"}
	}
	if head.Kind == "Error" {
		var e ErrorBody
		if err := json.Unmarshal(body, &e); err != nil {
			return nil, &Foreign{err.Error()}
		}
		return nil, &e.Error
	}
	if head.Kind != g.endpoint.kind {
		return nil, &Foreign{fmt.Sprintf("it is of the kind %q instead of %q", cut(head.Kind), g.endpoint.kind)}
	}
	list, err := g.kind.read(body)
	if err != nil {
		return nil, &Foreign{err.Error()}
	}
	return &Part{Node: node, Version: version, list: list}, nil
}

// Merge returns one *List of the parts, of which there is at least one, with notes about missing ones. It fails if
// latencies were counted in different buckets. The list and the parts share memory.
func (g *Gather) Merge(parts []*Part, notes ...string) (any, error) {
	parts = slices.Clone(parts)
	slices.SortStableFunc(parts, func(a, b *Part) int { return strings.Compare(a.Node, b.Node) })
	return g.kind.merge(g, parts, notes)
}

// One reports whether the answer is about one client, which most nodes do not know.
func (g *Gather) One() bool { return g.endpoint.kind == "PodDetail" }

// merging returns a kind from the function that merges its lists: f fills to's items from those of the parts, in the
// order of their nodes. The metadata that all kinds share are already in to.
func merging[T any](whole bool, f func(g *Gather, from []answer[T], to *List[T])) kind {
	return kind{
		whole: whole,
		read: func(body []byte) (any, error) {
			v := new(List[T])
			return v, json.Unmarshal(body, v)
		},
		merge: func(g *Gather, parts []*Part, notes []string) (any, error) {
			to := &List[T]{APIVersion: Version, Kind: g.endpoint.kind, Metadata: Metadata{Notes: notes}, Items: []T{}}
			from := make([]answer[T], len(parts))
			about := make([]*Metadata, len(parts))
			for i, p := range parts {
				from[i] = answer[T]{p.Node, p.list.(*List[T])}
				about[i] = &from[i].Metadata
			}
			if err := to.Metadata.merge(parts, about); err != nil {
				return nil, err
			}
			f(g, from, to)
			return to, nil
		},
	}
}

// answer is the list of a part.
type answer[T any] struct {
	node string
	*List[T]
}

// merge fills m from the metadata of the parts.
func (m *Metadata) merge(parts []*Part, from []*Metadata) error {
	var notes []string
	said := map[string][]string{} // nodes by note
	nodes := make([]string, len(parts))
	first := -1 // that has bounds
	for i, o := range from {
		nodes[i] = parts[i].Node
		if o.GeneratedAt.After(m.GeneratedAt) {
			m.GeneratedAt = o.GeneratedAt
		}
		if m.Window == "" {
			m.Window = o.Window
		}
		m.WindowSeconds = max(m.WindowSeconds, o.WindowSeconds)
		m.Floor = add(m.Floor, o.Floor)
		switch {
		case first < 0:
			if len(o.LatencyBoundsSeconds) > 0 {
				first = i
				m.LatencyBoundsSeconds = o.LatencyBoundsSeconds
			}
		case !slices.Equal(m.LatencyBoundsSeconds, o.LatencyBoundsSeconds):
			return fmt.Errorf("%s and %s count latencies in different buckets, which cannot be added up: ask one node at a time until all run the same version",
				parts[first].describe(), parts[i].describe())
		}
		for _, n := range o.Notes {
			if said[n] == nil {
				notes = append(notes, n)
			}
			said[n] = append(said[n], parts[i].Node)
		}
	}
	m.Nodes = slices.Compact(nodes)
	for _, n := range notes {
		if len(said[n]) < len(parts) {
			n = NodeNames(said[n]) + ": " + n
		}
		m.Notes = append(m.Notes, n)
	}
	return nil
}

func (p *Part) describe() string {
	if p.Version == "" {
		return p.Node
	}
	return p.Node + " (" + p.Version + ")"
}

// NodeNames lists nodes for people, the first ten of them by name.
func NodeNames(nodes []string) string {
	const most = 10
	nodes = slices.Compact(slices.Sorted(slices.Values(nodes)))
	if n := len(nodes) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(nodes[:most], ", "), n)
	}
	return strings.Join(nodes, ", ")
}

// place sorts the items and cuts the list as requested. partial are nodes that sent only their first items although
// all were needed.
func place[T any](g *Gather, to *List[T], items []T, at func(*T) cursor, from []answer[T]) {
	processes := map[string]int{}
	for _, a := range from {
		processes[a.node]++
	}
	more := false
	var partial []string
	for _, a := range from {
		if a.Metadata.Continue != "" {
			more = true
			if g.kind.whole || processes[a.node] > 1 {
				partial = append(partial, a.node)
			}
		}
	}
	list, next := page(items, at, g.params)
	to.Items = list
	if more || next != "" {
		to.Metadata.Notes = append(to.Metadata.Notes, fmt.Sprintf("these are the first %d, there are more; limit says how many", len(list)))
	}
	if partial != nil {
		to.Metadata.Notes = append(to.Metadata.Notes, fmt.Sprintf("%s: only the first %d were sent, sums can lack the others", NodeNames(partial), maxLimit))
	}
}

// later is the later of two times, of which either may be unknown.
func later(a, b *time.Time) *time.Time {
	if a == nil || b != nil && b.After(*a) {
		return b
	}
	return a
}

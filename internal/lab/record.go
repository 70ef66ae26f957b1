package lab

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Query is one query that reached a server.
type Query struct {
	At        time.Time
	Server    string // the host's name
	Transport Transport
	Client    netip.AddrPort
	Name      string // as it was asked, letter case included
	Type      uint16
	ID        uint16
	EDNS      bool
	Size      uint16 // the UDP payload size offered by EDNS, 0 without EDNS
}

const (
	maxQueries = 1 << 16 // a minute of 1,000 queries a second
	maxNames   = 1 << 16
)

// Record lists the queries that a server received: the last 65,536 in full, and counters without such a bound. It is
// safe for concurrent use.
type Record struct {
	mu      sync.Mutex
	queries []Query // a ring once full; next is the oldest
	next    int
	total   map[Transport]int
	conns   int
	asked   map[string]map[Transport]int // by lower-case name; at most maxNames
	unnamed int                          // queries for names beyond that
}

func (r *Record) add(q Query) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queries) < maxQueries {
		r.queries = append(r.queries, q)
	} else {
		r.queries[r.next] = q
		r.next = (r.next + 1) % maxQueries
	}
	if r.total == nil {
		r.total, r.asked = map[Transport]int{}, map[string]map[Transport]int{}
	}
	r.total[q.Transport]++
	name := dns.CanonicalName(q.Name)
	if r.asked[name] == nil {
		if len(r.asked) == maxNames {
			r.unnamed++
			return
		}
		r.asked[name] = map[Transport]int{}
	}
	r.asked[name][q.Transport]++
}

func (r *Record) addConn() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.conns++
}

// Queries returns the recorded queries, oldest first.
func (r *Record) Queries() []Query {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(slices.Clone(r.queries[r.next:]), r.queries[:r.next]...)
}

// Total counts the queries over a transport, or over both.
func (r *Record) Total(t Transport) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sum(r.total, t)
}

// Asked counts the queries for a name (any letter case, any type) over a transport, or over both. It
// knows the first 65,536 names.
func (r *Record) Asked(name string, t Transport) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sum(r.asked[dns.CanonicalName(name)], t)
}

// AskedBelow counts the queries for a zone's own name and all names below it.
func (r *Record) AskedBelow(zone string, t Transport) int {
	zone = dns.CanonicalName(zone)
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for name, counts := range r.asked {
		if dns.IsSubDomain(zone, name) {
			n += sum(counts, t)
		}
	}
	return n
}

// Conns counts the TCP connections that were accepted.
func (r *Record) Conns() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// Reset forgets everything.
func (r *Record) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queries, r.next, r.total, r.asked, r.conns, r.unnamed = nil, 0, nil, nil, 0, 0
}

func sum(counts map[Transport]int, t Transport) int {
	if t != "" {
		return counts[t]
	}
	return counts[UDP] + counts[TCP]
}

// ResetRecords clears the records of all servers.
func (l *Lab) ResetRecords() {
	l.Upstream.Record.Reset()
	for _, s := range l.KubeDNS {
		s.Record.Reset()
	}
}

// KubeDNSTotal counts the queries that reached any kube-dns replica.
func (l *Lab) KubeDNSTotal(t Transport) int {
	n := 0
	for _, s := range l.KubeDNS {
		n += s.Record.Total(t)
	}
	return n
}

// KubeDNSAsked counts the queries for a name that reached any kube-dns replica.
func (l *Lab) KubeDNSAsked(name string, t Transport) int {
	n := 0
	for _, s := range l.KubeDNS {
		n += s.Record.Asked(strings.ToLower(name), t)
	}
	return n
}

package load

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// Expect describes the correct answer to a query.
type Expect byte

// Expectations, as rcode and number of answer records.
const (
	Anything Expect = iota // an echo
	Records                // NOERROR with at least one record
	NXDomain               // NXDOMAIN without records
)

// Query types.
const (
	A    = 1
	AAAA = 28
)

// Query is a query in wire format with room for its ID, and its expected answer.
type Query struct {
	Wire   []byte
	Expect Expect
}

// Source gives the queries of a run, one after the other.
type Source interface {
	// Next writes the next query to b, which has room for 512 bytes, and returns its length, 0 after
	// the last.
	Next(b []byte) (int, Expect)
}

// NewQuery returns a query with RD set (RFC 1035, section 4.1) for a name without a dot at its end.
func NewQuery(name string, qtype byte, expect Expect) Query {
	b := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	for _, label := range strings.Split(name, ".") {
		b = append(b, byte(len(label)))
		b = append(b, label...)
	}
	return Query{Wire: append(b, 0, 0, qtype, 0, 1), Expect: expect}
}

// namespaces is the number of namespaces that names are spread over.
const namespaces = 40

// ServiceName is the name of a Service of a cluster; i counts them.
func ServiceName(i int) string {
	return fmt.Sprintf("service-%06d.ns-%02d.svc.cluster.local", i, i%namespaces)
}

// Services asks for the A records of so many Services, and with both also for their AAAA records.
func Services(n int, both bool) []Query {
	var qs []Query
	for i := range n {
		qs = append(qs, NewQuery(ServiceName(i), A, Records))
		if both {
			qs = append(qs, NewQuery(ServiceName(i), AAAA, Records))
		}
	}
	return qs
}

// Once gives each query once, in order.
type Once struct{ Queries []Query }

// Next implements Source.
func (o *Once) Next(b []byte) (int, Expect) {
	if len(o.Queries) == 0 {
		return 0, Anything
	}
	q := o.Queries[0]
	o.Queries = o.Queries[1:]
	return copy(b, q.Wire), q.Expect
}

// Random gives the queries in random order, without end.
type Random struct {
	Queries []Query
	Rand    *rand.Rand
}

// Next implements Source.
func (r *Random) Next(b []byte) (int, Expect) {
	q := r.Queries[r.Rand.IntN(len(r.Queries))]
	return copy(b, q.Wire), q.Expect
}

// Echo gives the queries of another source for a server that sends them back.
type Echo struct{ Source }

// Next implements Source.
func (e Echo) Next(b []byte) (int, Expect) {
	n, _ := e.Source.Next(b)
	return n, Anything
}

// Serial numbers names that were never asked before. It is shared by all runs against one server.
type Serial struct{ next uint64 }

// serialDigits is the length of the first label of a name that is new.
const serialDigits = 12

// Next returns a number that was not returned before.
func (s *Serial) Next() uint64 { s.next++; return s.next }

// put writes a number over the first label of a query.
func put(q []byte, n uint64) {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	for i := serialDigits - 1; i >= 0; i-- {
		q[13+i] = digits[n%36]
		n /= 36
	}
}

var blank = strings.Repeat("0", serialDigits)

// Unique asks for the A records of Services that were never asked before, without end.
type Unique struct {
	serial *Serial
	query  Query
}

// NewUnique returns a source of names after those that serial gave.
func NewUnique(serial *Serial) *Unique {
	return &Unique{serial: serial, query: NewQuery(blank+".ns-07.svc.cluster.local", A, Records)}
}

// Next implements Source.
func (u *Unique) Next(b []byte) (int, Expect) {
	n := copy(b, u.query.Wire)
	put(b, u.serial.Next())
	return n, u.query.Expect
}

// Expansion returns the queries of a stub resolver in a pod when a program looks up an external name: with ndots:5
// (resolv.conf(5)) and the search list of namespace ns, each element of the list first and the name itself last, for
// A and for AAAA. Six of the eight answers are NXDOMAIN.
func Expansion(name, ns string) []Query {
	var qs []Query
	for _, search := range []string{"." + ns + ".svc.cluster.local", ".svc.cluster.local", ".cluster.local", ""} {
		expect := NXDomain
		if search == "" {
			expect = Records
		}
		qs = append(qs, NewQuery(name+search, A, expect), NewQuery(name+search, AAAA, expect))
	}
	return qs
}

// Mix is the load of a node of Kubernetes: pods look up external names, of which some are hot and the others were
// never asked before. The queries of a lookup follow one another.
type Mix struct {
	hits   float64 // share of lookups of hot names
	hot    [][]Query
	fresh  []Query
	serial *Serial
	rand   *rand.Rand

	lookup []Query // the rest of the current one
	number uint64  // its name's, 0 for a hot one
}

// NewMix returns a mix over so many hot names.
func NewMix(hot int, hits float64, serial *Serial, r *rand.Rand) *Mix {
	m := &Mix{hits: hits, serial: serial, rand: r, fresh: Expansion(blank+".example.net", "ns-07")}
	for i := range hot {
		m.hot = append(m.hot, Expansion(fmt.Sprintf("api-%04d.example.com", i), fmt.Sprintf("ns-%02d", i%namespaces)))
	}
	return m
}

// Hot returns the queries for all hot names.
func (m *Mix) Hot() []Query {
	var qs []Query
	for _, h := range m.hot {
		qs = append(qs, h...)
	}
	return qs
}

// Next implements Source.
func (m *Mix) Next(b []byte) (int, Expect) {
	if len(m.lookup) == 0 {
		if m.rand.Float64() < m.hits {
			m.lookup, m.number = m.hot[m.rand.IntN(len(m.hot))], 0
		} else {
			m.lookup, m.number = m.fresh, m.serial.Next()
		}
	}
	q := m.lookup[0]
	m.lookup = m.lookup[1:]
	n := copy(b, q.Wire)
	if m.number != 0 {
		put(b, m.number)
	}
	return n, q.Expect
}

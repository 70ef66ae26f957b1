package load

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/bench/internal/upstream"
)

func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// next reads the next query of a source by another implementation.
func next(t *testing.T, s Source) (dns.Question, Expect) {
	t.Helper()
	b := make([]byte, 512)
	n, expect := s.Next(b)
	m := new(dns.Msg)
	if err := m.Unpack(b[:n]); err != nil || len(m.Question) != 1 || !m.RecursionDesired {
		t.Fatalf("%x: %v, %v", b[:n], m, err)
	}
	return m.Question[0], expect
}

func TestExpansion(t *testing.T) {
	var got []string
	s := &Once{Expansion("api.example.com", "prod")}
	for range 8 {
		q, expect := next(t, s)
		if (expect == Records) != (q.Name == "api.example.com.") {
			t.Errorf("%s: expected is %v", q.Name, expect)
		}
		got = append(got, dns.TypeToString[q.Qtype]+" "+q.Name)
	}
	want := []string{
		"A api.example.com.prod.svc.cluster.local.", "AAAA api.example.com.prod.svc.cluster.local.",
		"A api.example.com.svc.cluster.local.", "AAAA api.example.com.svc.cluster.local.",
		"A api.example.com.cluster.local.", "AAAA api.example.com.cluster.local.",
		"A api.example.com.", "AAAA api.example.com.",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	if n, _ := s.Next(make([]byte, 512)); n != 0 {
		t.Error("a ninth query")
	}
}

// TestMix checks the composition of a mix, and that the upstream's answers are the expected ones.
func TestMix(t *testing.T) {
	const lookups = 5000
	serial := &Serial{}
	m := NewMix(200, 0.8, serial, source(1))
	hot := map[string]bool{}
	for _, q := range m.Hot() {
		hot[string(q.Wire[12:])] = true
	}
	if len(hot) != 1600 {
		t.Fatalf("%d hot questions, want 200 names in 8 forms", len(hot))
	}
	b := make([]byte, 512)
	var hits, negative int
	fresh := map[string]int{}
	for range lookups * 8 {
		n, expect := m.Next(b)
		q := b[:n]
		if hot[string(q[12:])] {
			hits++
		} else {
			fresh[string(q[12:])]++
		}
		if expect == NXDomain {
			negative++
		}
		if a := upstream.Answer(nil, q); !expect.met(a) {
			t.Fatalf("%q: the upstream's answer %x is not what is expected", q[12:], a)
		}
	}
	if share := float64(hits) / (lookups * 8); share < 0.77 || share > 0.83 {
		t.Errorf("%.3f of the queries are hot, want 0.8", share)
	}
	if negative != lookups*6 {
		t.Errorf("%d of %d queries expect NXDOMAIN, want 6 of 8", negative, lookups*8)
	}
	if len(fresh) != lookups*8-hits {
		t.Errorf("%d different names among %d that should be new", len(fresh), lookups*8-hits)
	}
}

func TestUniqueGoesOn(t *testing.T) {
	serial := &Serial{}
	seen := map[string]bool{}
	for range 3 { // runs
		s := NewUnique(serial)
		for range 1000 {
			q, expect := next(t, s)
			if seen[q.Name] || expect != Records {
				t.Fatalf("%s again", q.Name)
			}
			seen[q.Name] = true
		}
	}
}

func TestNoAllocationForAQuery(t *testing.T) {
	b := make([]byte, 512)
	for name, s := range map[string]Source{
		"mix":    NewMix(200, 0.8, &Serial{}, source(1)),
		"unique": NewUnique(&Serial{}),
		"echo":   Echo{&Random{Queries: Services(10, true), Rand: source(1)}},
	} {
		if n := testing.AllocsPerRun(1000, func() { s.Next(b) }); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func TestPace(t *testing.T) {
	for _, rate := range []float64{1, 3, 1000, 9999.7, 10000, 1e6} {
		p := Pace{Rate: rate}
		var before time.Duration
		for k := range uint64(20000) {
			due := p.Due(k)
			if gap := due - before; k > 0 && (float64(gap) < 1e9/rate-2 || float64(gap) > 1e9/rate+2) {
				t.Fatalf("rate %v: query %d is due %v after the one before", rate, k, gap)
			}
			before = due
			if n := p.Count(due); n != k+1 {
				t.Fatalf("rate %v: %d queries are due at the time of number %d", rate, n, k)
			}
			if n := p.Count(due - 1); n != k {
				t.Fatalf("rate %v: %d queries are due before the time of number %d", rate, n, k)
			}
		}
	}
}

func TestHistogram(t *testing.T) {
	var h Histogram
	if h.Quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
	r := source(7)
	var all []time.Duration
	for range 20000 {
		d := time.Duration(r.ExpFloat64() * float64(100*time.Microsecond))
		all = append(all, d)
		h.Add(d)
	}
	slices.Sort(all)
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		exact := all[min(int(q*float64(len(all))), len(all)-1)]
		got := h.Quantile(q)
		if diff := float64(got-exact) / float64(max(exact, 1)); (diff < -0.03 || diff > 0.03) && exact > 100 {
			t.Errorf("quantile %v is %v, exactly %v", q, got, exact)
		}
	}
	var extremes Histogram
	extremes.Add(-5)
	extremes.Add(1<<63 - 1)
	if extremes.Quantile(0) != 0 || extremes.Quantile(1) < 1<<62 || extremes.Count() != 2 {
		t.Errorf("extremes: %v %v", extremes.Quantile(0), extremes.Quantile(1))
	}
}

// Package report computes figures from samples, and renders them as a Markdown page and a plot. It is pure: measuring
// is the caller's task.
package report

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// Metric is a figure of a sample.
type Metric string

// Metrics. Not every work has all.
const (
	CPU         Metric = "cpu_us"      // CPU time of the server for an answer, µs
	Rate        Metric = "rate"        // answers a second
	P50         Metric = "p50_us"      // latency, µs
	P99         Metric = "p99_us"      // latency, µs
	Sent        Metric = "sent"        // queries
	Lost        Metric = "lost"        // queries
	Wrong       Metric = "wrong"       // answers that differ from the name's data
	WakeUps     Metric = "wakeups"     // times that a thread of the server was woken, for an answer
	Asked       Metric = "asked"       // queries that reached the upstream, for an answer
	Connections Metric = "connections" // TCP connections that the server opened to its upstream

	IdleAnonymous Metric = "idle_anon_kib" // resident memory, KiB
	IdleFile      Metric = "idle_file_kib"
	Some          Metric = "some_kib"     // with SomeNames in the cache
	Many          Metric = "many_kib"     // with ManyNames in the cache
	Entry         Metric = "entry_bytes"  // resident memory for a name of the ManyNames, bytes
	Forgotten     Metric = "forgotten"    // share of the names that were not in the cache after all
	FirstAnswer   Metric = "first_ms"     // from the start of the program, ms
	FirstCPU      Metric = "first_cpu_ms" // CPU time until then, ms
	ForeignServer Metric = "foreign_srv"  // share of the server's core that others used
	ForeignGen    Metric = "foreign_gen"  // share of the generator's core that others used
)

// Sizes of a cache at which memory is measured.
const (
	SomeNames = 10_000
	ManyNames = 100_000
)

// Work is one kind of load.
type Work string

// Works, in the order in which they are reported.
const (
	Hits      Work = "hits"
	Steady10k Work = "steady10k"
	Steady1k  Work = "steady1k"
	Mix       Work = "mix"
	Miss      Work = "miss"
	Memory    Work = "memory"
	Start     Work = "start"
)

// Works lists all.
func Works() []Work { return []Work{Hits, Steady10k, Steady1k, Mix, Miss, Memory, Start} }

// Sample is one measurement of one server.
type Sample struct {
	Work   Work               `json:"work"`
	Server string             `json:"server"`
	Round  int                `json:"round"`
	Quiet  bool               `json:"quiet"` // no other program used the cores
	Values map[Metric]float64 `json:"values"`
}

// Server is a column of the comparison.
type Server struct {
	Name    string `json:"name"`
	What    string `json:"what"`             // version and settings that matter
	Echo    bool   `json:"echo,omitempty"`   // a limit, no DNS server
	Absent  string `json:"absent,omitempty"` // why it was not measured
	Subject bool   `json:"subject,omitempty"`
}

// Names of servers that figures are compared with.
const (
	Subject     = "localcache"
	Stock       = "coredns"
	BatchedEcho = "echo-batched"
)

// Run is all that was measured.
type Run struct {
	Date    string            `json:"date"`
	Machine string            `json:"machine"`
	Rounds  int               `json:"rounds"`
	Servers []Server          `json:"servers"`
	Skipped map[string]string `json:"skipped,omitempty"` // "work server" to the reason
	Samples []Sample          `json:"samples"`
}

// Read reads what Encode wrote.
func Read(b []byte) (*Run, error) {
	var r Run
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("samples: %w", err)
	}
	return &r, nil
}

// Encode writes the run, one sample to a line, so that two runs can be compared with diff.
func (r *Run) Encode() ([]byte, error) {
	head := *r
	head.Samples = nil
	b, err := json.MarshalIndent(head, "", "  ")
	if err != nil {
		return nil, err
	}
	const none = "\"samples\": null\n}"
	b = append(b[:len(b)-len(none)], "\"samples\": ["...)
	for i, s := range r.Samples {
		line, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, "\n    "...), line...)
	}
	return append(b, "\n  ]\n}\n"...), nil
}

// Median returns the middle one of values, or the mean of the two middle ones; false if there are none.
func Median(values []float64) (float64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	v := slices.Sorted(slices.Values(values))
	m := len(v) / 2
	if len(v)%2 == 1 {
		return v[m], true
	}
	return (v[m-1] + v[m]) / 2, true
}

// of returns the samples that count: the quiet ones if they are at least half as many as the requested rounds, else
// all.
func (r *Run) of(w Work, server string) (samples []Sample, quiet int) {
	all, calm := r.taken(w, server)
	if len(calm) > 0 && 2*len(calm) >= min(r.Rounds, len(all)) {
		return calm, len(calm)
	}
	return all, len(calm)
}

// taken returns all samples, and the undisturbed ones.
func (r *Run) taken(w Work, server string) (all, calm []Sample) {
	for _, s := range r.Samples {
		if s.Work != w || s.Server != server {
			continue
		}
		all = append(all, s)
		if s.Quiet {
			calm = append(calm, s)
		}
	}
	return all, calm
}

// Value is the figure of a server: the median over the samples that count, for Lost, Wrong and Sent the sum.
func (r *Run) Value(w Work, server string, m Metric) (float64, bool) {
	samples, _ := r.of(w, server)
	var values []float64
	var sum float64
	for _, s := range samples {
		if v, ok := s.Values[m]; ok {
			values = append(values, v)
			sum += v
		}
	}
	if m == Lost || m == Wrong || m == Sent {
		return sum, len(values) > 0
	}
	return Median(values)
}

// spread is the smallest and the largest value of the samples that count.
func (r *Run) spread(w Work, server string, m Metric) (low, high float64) {
	samples, _ := r.of(w, server)
	for i, s := range samples {
		v := s.Values[m]
		if i == 0 {
			low, high = v, v
		}
		low, high = min(low, v), max(high, v)
	}
	return low, high
}

// Noisy reports whether a figure rests on disturbed samples.
func (r *Run) Noisy(w Work, server string) bool {
	samples, quiet := r.of(w, server)
	return len(samples) > quiet
}

// idle is the resident memory of a server that has answered one query, KiB.
func (r *Run) idle(server string) (float64, bool) {
	anonymous, ok := r.Value(Memory, server, IdleAnonymous)
	file, _ := r.Value(Memory, server, IdleFile)
	return anonymous + file, ok
}

// measured returns the servers that a work has samples of: the cheapest first if it is about CPU time, else in the
// run's order.
func (r *Run) measured(w Work) []Server {
	var servers []Server
	for _, s := range r.Servers {
		if samples, _ := r.of(w, s.Name); len(samples) > 0 {
			servers = append(servers, s)
		}
	}
	slices.SortStableFunc(servers, func(a, b Server) int {
		x, okX := r.Value(w, a.Name, CPU)
		y, okY := r.Value(w, b.Name, CPU)
		switch {
		case okX && okY && x < y:
			return -1
		case okX && okY && x > y:
			return 1
		}
		return 0
	})
	return servers
}

// works lists the works that there are samples of.
func (r *Run) works() []Work {
	has := map[Work]bool{}
	for _, s := range r.Samples {
		has[s.Work] = true
	}
	var ws []Work
	for _, w := range Works() {
		if has[w] {
			ws = append(ws, w)
		}
	}
	return ws
}

// skipped lists the reasons why servers have no samples of a work, sorted.
func (r *Run) skipped() []string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(r.Skipped)) {
		lines = append(lines, k+": "+r.Skipped[k])
	}
	return lines
}

package report

import (
	"fmt"
	"strconv"
	"strings"
)

// titles name the works for readers.
var titles = map[Work]string{
	Hits:      "hits, saturating",
	Steady10k: "hits at 10,000 a second",
	Steady1k:  "hits at 1,000 a second",
	Mix:       "Kubernetes mix",
	Miss:      "misses over TCP",
	Memory:    "memory",
	Start:     "start",
}

// explanations describe each work.
var explanations = map[Work]string{
	Hits:      "1,000 hot names, A and AAAA, 128 queries in flight. The server's core is busy all the time.",
	Steady10k: "The same names, evenly paced. The core sleeps between queries, and waking up is most of the work: a busy node lives here.",
	Steady1k:  "The same, as a quiet node has it.",
	Mix:       "Lookups of external names with ndots:5: 6 of 8 queries are NXDOMAIN. 80 % of the lookups are of 200 hot names, the others of names that nobody asked for before; 128 in flight, the upstream answers after 1 ms.",
	Miss:      "Every name is new, the upstream answers after 1 ms and is asked over TCP, 128 in flight.",
	Memory:    "Resident memory in MiB, after the first answer and with so many names (A records) in the cache.",
	Start:     "From the start of the program to its first answer, asked every millisecond.",
}

// Markdown returns the page.
func (r *Run) Markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\n%s, %s; %d rounds, all servers in turns in each of them; medians.\n", r.Date, r.Machine, r.Rounds)
	b.WriteString("Server and load generator have one core each. CPU is user and system time of the server for an answer, in µs.\n" +
		"Absolute figures are this machine's; ratios within one run hold elsewhere. A `~` marks figures of moments in which other programs used the two cores.\n\n")
	b.WriteString("![CPU time for an answer](plot.svg)\n\n")
	r.summary(&b)
	if goals := r.Goals(); len(goals) > 0 {
		b.WriteString("\n## Goals\n\n| goal | measured | |\n|---|---|---|\n")
		for _, g := range goals {
			verdict := "missed"
			if g.Reached {
				verdict = "reached"
			}
			fmt.Fprintf(&b, "| %s | %s%s | %s |\n", g.Text, mark(g.Noisy), g.Measured, verdict)
		}
	}
	for _, w := range r.works() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", capital(titles[w]), explanations[w])
		switch w {
		case Memory:
			r.memory(&b)
		case Start:
			r.start(&b)
		default:
			r.load(&b, w)
		}
	}
	r.servers(&b)
	return b.String()
}

// summary is the table for readers in a hurry: CPU for an answer by work.
func (r *Run) summary(b *strings.Builder) {
	var works []Work
	for _, w := range r.works() {
		if w != Memory && w != Start {
			works = append(works, w)
		}
	}
	has := map[Work]bool{}
	for _, w := range r.works() {
		has[w] = true
	}
	head := []string{"server"}
	for _, w := range works {
		head = append(head, titles[w]+", µs")
	}
	if has[Steady10k] {
		head = append(head, "p99 at 10,000 a second, µs")
	}
	if has[Memory] {
		head = append(head, "memory idle, MiB")
	}
	if has[Start] {
		head = append(head, "first answer, ms")
	}
	t := table{head: head}
	for _, s := range r.Servers {
		if s.Absent != "" {
			continue
		}
		row := []string{bold(s.Name, s.Subject)}
		for _, w := range works {
			row = append(row, r.cell(w, s.Name, CPU))
		}
		if has[Steady10k] {
			row = append(row, r.cell(Steady10k, s.Name, P99))
		}
		if has[Memory] {
			cell := "–"
			if v, ok := r.idle(s.Name); ok {
				cell = number(v / 1024)
			}
			row = append(row, cell)
		}
		if has[Start] {
			row = append(row, r.cell(Start, s.Name, FirstAnswer))
		}
		t.add(row...)
	}
	t.write(b)
}

// load is the table of a work that sends queries, the cheapest server first.
func (r *Run) load(b *strings.Builder, w Work) {
	head := []string{"server", "CPU µs", "least–most", "× coredns", "× batched echo", "answers/s", "p50 µs", "p99 µs", "lost", "wrong"}
	switch w {
	case Steady10k, Steady1k:
		head = append(head, "wake-ups/answer")
	case Mix, Miss:
		head = append(head, "asked upstream/answer", "TCP connections")
	}
	t := table{head: append(head, "quiet samples")}
	stock, _ := r.Value(w, Stock, CPU)
	echo, _ := r.Value(w, BatchedEcho, CPU)
	for _, s := range r.measured(w) {
		all, calm := r.taken(w, s.Name)
		cpu, _ := r.Value(w, s.Name, CPU)
		low, high := r.spread(w, s.Name, CPU)
		row := []string{
			bold(s.Name, s.Subject), r.cell(w, s.Name, CPU), number(low) + "–" + number(high), ratio(cpu, stock), ratio(cpu, echo),
			r.cell(w, s.Name, Rate), r.cell(w, s.Name, P50), r.cell(w, s.Name, P99), r.share(w, s.Name, Lost), r.share(w, s.Name, Wrong),
		}
		switch w {
		case Steady10k, Steady1k:
			row = append(row, r.cell(w, s.Name, WakeUps))
		case Mix, Miss:
			row = append(row, r.cell(w, s.Name, Asked), r.cell(w, s.Name, Connections))
		}
		t.add(append(row, fmt.Sprintf("%d of %d", len(calm), len(all)))...)
	}
	t.write(b)
}

func (r *Run) memory(b *strings.Builder) {
	t := table{head: []string{"server", "idle", "of it anonymous", "of it file", "10,000 names", "100,000 names", "bytes/name", "not kept"}}
	for _, s := range r.measured(Memory) {
		mib := func(m Metric) string {
			v, ok := r.Value(Memory, s.Name, m)
			if !ok {
				return "–"
			}
			return number(v / 1024)
		}
		idle, _ := r.idle(s.Name)
		forgotten := "–"
		if v, ok := r.Value(Memory, s.Name, Forgotten); ok {
			forgotten = fmt.Sprintf("%.1f %%", 100*v)
		}
		t.add(bold(s.Name, s.Subject), number(idle/1024), mib(IdleAnonymous), mib(IdleFile), mib(Some), mib(Many), r.cell(Memory, s.Name, Entry), forgotten)
	}
	t.write(b)
}

func (r *Run) start(b *strings.Builder) {
	t := table{head: []string{"server", "first answer, ms", "CPU until then, ms"}}
	for _, s := range r.measured(Start) {
		t.add(bold(s.Name, s.Subject), r.cell(Start, s.Name, FirstAnswer), r.cell(Start, s.Name, FirstCPU))
	}
	t.write(b)
}

// servers lists what was measured and what was not.
func (r *Run) servers(b *strings.Builder) {
	b.WriteString("\n## Servers\n\n")
	t := table{head: []string{"server", "what"}}
	for _, s := range r.Servers {
		what := s.What
		if s.Absent != "" {
			what = "not measured: " + s.Absent
		}
		t.add(bold(s.Name, s.Subject), what)
	}
	t.write(b)
	if lines := r.skipped(); len(lines) > 0 {
		b.WriteString("\nLeft out:\n\n")
		for _, l := range lines {
			fmt.Fprintf(b, "- %s\n", l)
		}
	}
}

// cell returns a figure, marked if it is noisy.
func (r *Run) cell(w Work, server string, m Metric) string {
	v, ok := r.Value(w, server, m)
	if !ok {
		return "–"
	}
	return mark(r.Noisy(w, server)) + number(v)
}

// share returns a count with the number of queries, if it is not 0.
func (r *Run) share(w Work, server string, m Metric) string {
	v, ok := r.Value(w, server, m)
	sent, _ := r.Value(w, server, Sent)
	if !ok || v == 0 || sent == 0 {
		return "0"
	}
	return fmt.Sprintf("%.0f (%.2g %%)", v, 100*v/sent)
}

func mark(noisy bool) string {
	if noisy {
		return "~"
	}
	return ""
}

func bold(s string, yes bool) string {
	if yes {
		return "**" + s + "**"
	}
	return s
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

func ratio(a, b float64) string {
	if b == 0 {
		return "–"
	}
	return strconv.FormatFloat(a/b, 'f', 2, 64)
}

// number writes a figure with the digits that mean something: three.
func number(v float64) string {
	switch a := max(v, -v); {
	case a >= 1000:
		s := strconv.FormatFloat(v, 'f', 0, 64)
		for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
			s = s[:i] + "," + s[i:]
		}
		return s
	case a >= 99.95:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case a >= 9.995:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strconv.FormatFloat(v, 'f', 2, 64)
	}
}

// table is a Markdown table whose first column is text and whose others are figures.
type table struct {
	head []string
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(b *strings.Builder) {
	line := func(cells []string) { b.WriteString("| " + strings.Join(cells, " | ") + " |\n") }
	line(t.head)
	rule := "|---|"
	for range t.head[1:] {
		if len(t.head) > 2 {
			rule += "--:|"
		} else {
			rule += "---|"
		}
	}
	b.WriteString(rule + "\n")
	for _, r := range t.rows {
		line(r)
	}
}

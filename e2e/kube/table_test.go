package kube

import (
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
)

// table is the test's output: for every fault, its effect on the clients of both caches.
type table struct{ rows, reasons []string }

const tableHead = `
Queries of two nodes, each 5 ms over UDP and TCP, from a socket each and from one for all; 1 s of patience
"in flight": sent up to 1 s before a process was killed, and lost with it; not in the column before
"stalled": failed while the machine stood still: a server that no fault touches did not answer either
"errors": answered with another code than NOERROR
"again": the server closed the TCP connection without an answer, and another brought it
`

// add adds a row for each class of names.
func (t *table) add(f fault, cache string, time time.Duration, s *sums) {
	name, duration := f.name, fmt.Sprintf("%.0f s", time.Seconds())
	if cache == ours {
		t.reasons = append(t.reasons, f.name+": "+f.why)
	} else {
		name, duration = "", ""
	}
	for _, names := range s.order {
		one := s.classes[names]
		t.rows = append(t.rows, strings.Join([]string{
			name, duration, cache, names, fmt.Sprint(one.queries), fmt.Sprint(one.unanswered), fmt.Sprint(one.inFlight), fmt.Sprint(one.stalled),
			fmt.Sprint(one.errors), fmt.Sprint(one.again), fmt.Sprintf("%.0f ms", float64(one.gap.Microseconds())/1000),
		}, "\t"))
		name, duration, cache = "", "", ""
	}
}

func (t *table) String() string {
	var b strings.Builder
	b.WriteString(tableHead)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tTIME\tCACHE\tNAMES\tQUERIES\tUNANSWERED\tIN FLIGHT\tSTALLED\tERRORS\tAGAIN\tLONGEST GAP")
	for _, r := range t.rows {
		fmt.Fprintln(w, r)
	}
	_ = w.Flush() // to memory
	b.WriteString("\n" + strings.Join(t.reasons, "\n") + "\n\n")
	return b.String()
}

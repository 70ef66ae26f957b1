package report

import (
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// example is a run of three servers, an echo and one that is not there.
func example() *Run {
	r := &Run{
		Date: "2026-01-02", Machine: "a <small> machine", Rounds: 3,
		Servers: []Server{
			{Name: Subject, What: "v1", Subject: true},
			{Name: Stock, What: "1.15.0"},
			{Name: "dnsdist", What: "1.7 & more"},
			{Name: "unbound", Absent: "no /usr/sbin/unbound: apt-get install unbound"},
			{Name: BatchedEcho, What: "recvmmsg", Echo: true},
		},
		Skipped: map[string]string{"miss dnsdist": "says <no>"},
	}
	load := func(w Work, server string, quiet []bool, cpu ...float64) {
		for i, c := range cpu {
			r.Samples = append(r.Samples, Sample{Work: w, Server: server, Round: i, Quiet: quiet[i], Values: map[Metric]float64{
				CPU: c, Rate: 1e6 / c, P50: 40, P99: 10 * c, Sent: 1000, Lost: 0, Wrong: float64(i), WakeUps: 0.5, Asked: 0.2, Connections: 4,
			}})
		}
	}
	calm, loud, mixed := []bool{true, true, true}, []bool{false, false, false}, []bool{true, false, true}
	for _, w := range []Work{Hits, Steady10k, Mix} {
		load(w, Subject, mixed, 2.4, 9, 2.5)
		load(w, Stock, calm, 15, 16, 15.5)
		load(w, "dnsdist", loud, 2.9, 3, 3.1)
		load(w, BatchedEcho, calm, 2.1, 2, 2.2)
	}
	for server, kib := range map[string]float64{Subject: 43000, Stock: 42000} {
		r.Samples = append(r.Samples, Sample{Work: Memory, Server: server, Quiet: true, Values: map[Metric]float64{
			IdleAnonymous: 7000, IdleFile: kib - 7000, Some: kib + 9000, Many: kib + 90000, Entry: 921.6, Forgotten: 0.0004,
		}}, Sample{Work: Start, Server: server, Quiet: true, Values: map[Metric]float64{FirstAnswer: 26.04, FirstCPU: 20}})
	}
	return r
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", path, got)
	}
}

func TestMarkdown(t *testing.T) { golden(t, "results.md", example().Markdown()) }

func TestPlot(t *testing.T) {
	svg := example().Plot()
	golden(t, "plot.svg", svg)
	d := xml.NewDecoder(strings.NewReader(svg))
	for {
		_, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("no XML: %v", err)
		}
	}
	if empty := (&Run{}).Plot(); !strings.Contains(empty, "</svg>") {
		t.Errorf("a plot of nothing: %s", empty)
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got, ok := Median(c.values); !ok || got != c.want {
			t.Errorf("%v: %v, %v", c.values, got, ok)
		}
	}
	if _, ok := Median(nil); ok {
		t.Error("nothing has a median")
	}
}

func TestQuietSamplesCount(t *testing.T) {
	r := example()
	if v, _ := r.Value(Hits, Subject, CPU); v != 2.45 || r.Noisy(Hits, Subject) {
		t.Errorf("two of three samples are quiet: %v, noisy %v", v, r.Noisy(Hits, Subject))
	}
	if v, _ := r.Value(Hits, "dnsdist", CPU); v != 3 || !r.Noisy(Hits, "dnsdist") {
		t.Errorf("no sample is quiet: %v, noisy %v", v, r.Noisy(Hits, "dnsdist"))
	}
	if v, _ := r.Value(Hits, Stock, Wrong); v != 3 {
		t.Errorf("%v wrong answers, want the sum", v)
	}
	if _, ok := r.Value(Hits, "unbound", CPU); ok {
		t.Error("a figure of what was not measured")
	}
}

func TestGoals(t *testing.T) {
	want := map[string]bool{
		"hits, saturating: CPU at most 1.20 × echo-batched":        true,
		"hits, saturating: CPU at most 0.17 × coredns":             true,
		"hits at 10,000 a second: CPU at most 1.20 × echo-batched": true,
		"hits at 10,000 a second: CPU at most 0.40 × coredns":      true,
		"Kubernetes mix: CPU at most 0.35 × coredns":               true,
		"Kubernetes mix: CPU at most 1.00 × dnsdist":               true,
		"hits, saturating: CPU less than each peer's":              true,
		"hits at 10,000 a second: p99 at most each peer's":         true,
		"memory: idle at most 5 MB more than coredns":              true,
	}
	check := func(r *Run) {
		t.Helper()
		got := map[string]bool{}
		for _, g := range r.Goals() {
			got[g.Text] = g.Reached
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("got %v", got)
		}
	}
	r := example()
	check(r)
	for i, s := range r.Samples { // a localcache that is worse than all
		if s.Server == Subject {
			for m := range s.Values {
				r.Samples[i].Values[m] *= 20
			}
		}
	}
	for text := range want {
		want[text] = false
	}
	check(r)
}

func TestSamplesSurvive(t *testing.T) {
	r := example()
	b, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Read(b)
	if err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	if !reflect.DeepEqual(r, again) {
		t.Errorf("%+v\n%+v", r, again)
	}
	if lines := strings.Count(string(b), "\n    {\"work\""); lines != len(r.Samples) {
		t.Errorf("%d lines of samples, want %d", lines, len(r.Samples))
	}
	if _, err := (&Run{}).Encode(); err != nil {
		t.Error(err)
	}
	if _, err := Read([]byte("{")); err == nil {
		t.Error("half a file is read")
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0.00", 2.888: "2.89", 9.996: "10.0", 15.04: "15.0", 99.96: "100", 999: "999", 1234: "1,234", 1234567: "1,234,567", -1234: "-1,234", -12.34: "-12.3"} {
		if got := number(v); got != want {
			t.Errorf("%v is written %q, want %q", v, got, want)
		}
	}
}

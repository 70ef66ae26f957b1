package report

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCommittedResults checks that the report and the plot in bench/results are those of the samples beside them:
// 'go run ./bench/dns -render bench/results/samples.json -out bench/results' writes them again.
func TestCommittedResults(t *testing.T) {
	read := func(name string) string {
		raw, err := os.ReadFile(filepath.Join("../../results", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	run, err := Read([]byte(read("samples.json")))
	if err != nil {
		t.Fatal(err)
	}
	if run.Markdown() != read("results.md") {
		t.Error("bench/results/results.md is not the report of samples.json")
	}
	if run.Plot() != read("plot.svg") {
		t.Error("bench/results/plot.svg is not the plot of samples.json")
	}
}

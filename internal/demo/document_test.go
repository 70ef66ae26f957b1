package demo

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// outline returns the titles and promises of the demo's output, with each number and duration replaced by #.
func outline(output string) []string {
	number := regexp.MustCompile(`[0-9]+([.,][0-9]+)*(µs|ms|s)?`)
	var lines []string
	for line := range strings.Lines(output) {
		if line = strings.TrimRight(line, " \n"); line != "" && (line[0] != ' ' || strings.HasPrefix(line, "  ok ")) {
			lines = append(lines, number.ReplaceAllString(line, "#"))
		}
	}
	return lines
}

// checkDocument compares the output of a run with the one shown in doc/demo.md; README shows a part of that.
func checkDocument(t *testing.T, output string) {
	t.Helper()
	page, err := os.ReadFile("../../doc/demo.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(page), "```text\n")
	shown, _, _ = strings.Cut(shown, "```")
	if got, want := outline(output), outline(shown); !slices.Equal(got, want) {
		t.Errorf("doc/demo.md does not show what the demo prints. The demo:\n%s\ndoc/demo.md:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

package kube

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// manual is the page whose commands the tests run.
const manual = "doc/operations.md"

// commandsOf returns the shell commands of a section of a page, in their order. A block in a list is indented
// with it.
func commandsOf(page, section string) []string {
	var blocks []string
	var block *strings.Builder
	inside, indent := false, ""
	for line := range strings.Lines(page) {
		trimmed := strings.TrimSpace(line)
		switch {
		case block != nil && trimmed == "```":
			blocks = append(blocks, block.String())
			block = nil
		case block != nil:
			block.WriteString(strings.TrimPrefix(line, indent))
		case strings.HasPrefix(line, "## "):
			inside = strings.TrimSpace(line[3:]) == section
		case inside && trimmed == "```sh":
			block, indent = new(strings.Builder), line[:strings.Index(line, "`")]
		}
	}
	return blocks
}

// manualCommands reads the commands of a section of the manual.
func manualCommands(t *testing.T, section string) []string {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, manual))
	must(t, err)
	commands := commandsOf(string(page), section)
	if len(commands) == 0 {
		t.Fatalf("%s has no commands in a section %q", manual, section)
	}
	return commands
}

func TestCommandsOf(t *testing.T) {
	const page = "# Page\n## One\ntext\n```sh\na\n  b\n```\n```\nnot a command\n```\n1. list\n\n   ```sh\n   c\n     d\n   ```\n## Two\n```sh\ne\n```\n"
	got := commandsOf(page, "One")
	if len(got) != 2 || got[0] != "a\n  b\n" || got[1] != "c\n  d\n" {
		t.Errorf("commands of One: %q", got)
	}
	if got := commandsOf(page, "Two"); len(got) != 1 || got[0] != "e\n" {
		t.Errorf("commands of Two: %q", got)
	}
	if got := commandsOf(page, "Three"); len(got) != 0 {
		t.Errorf("commands of no section: %q", got)
	}
}

// Every section has its commands, whether or not a cluster is there to run them.
func TestManual(t *testing.T) {
	for section, n := range map[string]int{"Install": 1, "Check that it works": 3, "Upgrade": 1, "Roll back": 2, "Uninstall": 2} {
		if got := len(manualCommands(t, section)); got != n {
			t.Errorf("section %q has %d blocks of commands, want %d", section, got, n)
		}
	}
}

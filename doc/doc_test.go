// Package doc_test checks the pages that readers follow: links, paths, make targets, commands, flags and figures in README and
// doc/ exist in the tree and in the program. It needs no network and no root.
package doc_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// root is the root of the repository, seen from this folder.
const root = ".."

// maxReadme bounds the README, in lines: longer ones are not read to the end.
const maxReadme = 200

// page is a Markdown page.
type page struct {
	name string // path below root
	text string
}

// block is a fenced block of code. kind is the word behind the fence; "text" marks output.
type block struct{ kind, text string }

// pages returns README and every other Markdown page of the repository.
func pages(t *testing.T) []page {
	t.Helper()
	var all []page
	for _, pattern := range []string{"*.md", "doc/*.md", "doc/*/*.md", "bench/*/*.md"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			relative, err := filepath.Rel(root, name)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, page{filepath.ToSlash(relative), read(t, relative)})
		}
	}
	if len(all) < 20 {
		t.Fatalf("found only %d pages", len(all))
	}
	return all
}

// read returns a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

var span = regexp.MustCompile("`([^`\n]+)`")

// split returns the fenced blocks of a page and the text outside of them.
func (p page) split() (blocks []block, prose string) {
	var outside strings.Builder
	inside := false
	for line := range strings.Lines(p.text) {
		trimmed := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(trimmed, "```"):
			if inside = !inside; inside {
				blocks = append(blocks, block{kind: trimmed[3:]})
			}
		case inside:
			blocks[len(blocks)-1].text += line
		default:
			outside.WriteString(line)
		}
	}
	return blocks, outside.String()
}

// code returns every line of the page's fenced blocks but those of output, and every code span.
func (p page) code() []string {
	blocks, prose := p.split()
	var lines []string
	for _, b := range blocks {
		if b.kind != "text" {
			lines = append(lines, strings.Split(b.text, "\n")...)
		}
	}
	for _, m := range span.FindAllStringSubmatch(prose, -1) {
		lines = append(lines, m[1])
	}
	return lines
}

func TestReadmeLength(t *testing.T) {
	if n := strings.Count(read(t, "README.md"), "\n"); n > maxReadme {
		t.Errorf("README.md has %d lines, at most %d are wanted: move details to doc/", n, maxReadme)
	}
}

// anchors returns the fragments under which GitHub links to the headings of a page.
func anchors(p page) map[string]bool {
	_, prose := p.split()
	found := map[string]bool{}
	for line := range strings.Lines(prose) {
		title := strings.TrimLeft(line, "#")
		if title == line || !strings.HasPrefix(title, " ") {
			continue
		}
		title = strings.ToLower(strings.TrimSpace(title))
		title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")
		found[strings.ReplaceAll(title, " ", "-")] = true
	}
	return found
}

func TestLinks(t *testing.T) {
	all := pages(t)
	byName := map[string]page{}
	for _, p := range all {
		byName[p.name] = p
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	for _, p := range all {
		_, prose := p.split()
		for _, m := range link.FindAllStringSubmatch(prose, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, fragment, _ := strings.Cut(m[1], "#")
			target := p.name
			if file != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(p.name), file))
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s links to %s: %v", p.name, m[1], err)
				continue
			}
			if fragment != "" && !anchors(byName[target])[fragment] {
				t.Errorf("%s links to %s: no such heading in %s", p.name, m[1], target)
			}
		}
	}
}

// TestEveryPageIsIndexed checks that doc/README.md names each page of doc/.
func TestEveryPageIsIndexed(t *testing.T) {
	index := read(t, "doc/README.md")
	for _, p := range pages(t) {
		if name, ok := strings.CutPrefix(p.name, "doc/"); ok && !strings.Contains(name, "/") && name != "README.md" && !strings.Contains(index, "("+name) {
			t.Errorf("doc/README.md does not name %s", name)
		}
	}
}

// TestPaths checks that files and folders of the repository that a page names exist.
func TestPaths(t *testing.T) {
	path := regexp.MustCompile(`^(?:bench|cmd|deploy|doc|e2e|internal|plugin|\.ci)/[A-Za-z0-9_./-]*$`)
	for _, p := range pages(t) {
		for _, code := range p.code() {
			for _, word := range strings.Fields(code) {
				if !path.MatchString(word) {
					continue
				}
				if _, err := os.Stat(filepath.Join(root, word)); err != nil {
					t.Errorf("%s names %s: %v", p.name, word, err)
				}
			}
		}
	}
}

func TestMakeTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z0-9-]+):`).FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	command := regexp.MustCompile(`(?:^|\s)make((?:\s+[a-z0-9-]+)+)`)
	seen := 0
	for _, p := range pages(t) {
		for _, code := range p.code() {
			code, _, _ = strings.Cut(code, "#")
			m := command.FindStringSubmatch(code)
			if m == nil {
				continue
			}
			for _, target := range strings.Fields(m[1]) {
				seen++
				if !targets[target] {
					t.Errorf("%s shows 'make %s', which is no target", p.name, target)
				}
			}
		}
	}
	if seen < 20 {
		t.Errorf("found only %d uses of make", seen)
	}
}

// TestTestNames checks that the tests exist that pages tell the reader to run.
func TestTestNames(t *testing.T) {
	var tests strings.Builder
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			raw, err := os.ReadFile(path)
			tests.Write(raw)
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	const coreDNSTests = "doc/design/0006-fast-path.md" // names tests of CoreDNS
	name := regexp.MustCompile(`\bTest[A-Z]\w*`)
	for _, p := range pages(t) {
		blocks, prose := p.split()
		for _, b := range blocks {
			prose += b.text
		}
		for _, test := range name.FindAllString(prose, -1) {
			if !strings.Contains(tests.String(), "func "+test) && p.name != coreDNSTests {
				t.Errorf("%s names %s, which no file has", p.name, test)
			}
		}
	}
}

// help runs the program's help for a subcommand, or the overview for "".
var help = func() func(t *testing.T, subcommand string) string {
	var mu sync.Mutex
	program, known := "", map[string]string{}
	return func(t *testing.T, subcommand string) string {
		t.Helper()
		mu.Lock()
		defer mu.Unlock()
		if program == "" {
			program = filepath.Join(t.TempDir(), "localcache")
			build := exec.Command("go", "build", "-o", program, "./cmd/localcache")
			build.Dir = root
			if out, err := build.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
		}
		if _, ok := known[subcommand]; !ok {
			out, err := exec.Command(program, strings.Fields("help "+subcommand)...).CombinedOutput()
			if err != nil {
				t.Fatalf("localcache help %s: %v\n%s", subcommand, err, out)
			}
			known[subcommand] = string(out)
		}
		return known[subcommand]
	}
}()

// flags returns the flags in a help text, without dashes.
func flags(help string) map[string]bool {
	found := map[string]bool{"h": true, "help": true}
	for _, m := range regexp.MustCompile(`(?m)^\s+--?([A-Za-z][A-Za-z0-9.-]*)`).FindAllStringSubmatch(help, -1) {
		found[m[1]] = true
	}
	return found
}

// TestCommands checks subcommands and flags of localcache, as far as pages show them.
func TestCommands(t *testing.T) {
	subcommands := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z]+)  +\S`).FindAllStringSubmatch(help(t, ""), -1) {
		subcommands[m[1]] = true
	}
	command := regexp.MustCompile(`(?:^\s*(?:bin/)?|\s/|kubectl )localcache((?: +[^\s|;)]+)+)`)
	flag := regexp.MustCompile(`^--?([A-Za-z][A-Za-z0-9.-]*)`)
	every := map[string]bool{}
	for name := range subcommands {
		maps.Copy(every, flags(help(t, name)))
	}
	seen := 0
	for _, p := range pages(t) {
		if p.name == "CHANGELOG.md" { // also names what is gone
			continue
		}
		for _, code := range p.code() {
			code, _, _ = strings.Cut(code, "#")
			if m := command.FindStringSubmatch(code); m != nil {
				words := strings.Fields(m[1])
				subcommand := "serve"
				if !strings.HasPrefix(words[0], "-") {
					subcommand = words[0]
				}
				if !subcommands[subcommand] {
					t.Errorf("%s shows %q: no such subcommand", p.name, code)
					continue
				}
				seen++
				known := flags(help(t, subcommand))
				for _, word := range words {
					if f := flag.FindStringSubmatch(word); f != nil && !known[f[1]] {
						t.Errorf("%s shows %q: 'localcache help %s' has no flag %s", p.name, code, subcommand, word)
					}
				}
			}
			// Flags in the text of the pages about flags.
			if f := flag.FindStringSubmatch(code); f != nil && slices.Contains([]string{"README.md", "doc/configure.md", "doc/diag.md"}, p.name) && !every[f[1]] {
				t.Errorf("%s names the flag %s, which no subcommand has", p.name, code)
			}
		}
	}
	if seen < 20 {
		t.Errorf("found only %d commands", seen)
	}
}

// TestKubernetesNames checks that the DaemonSets in commands are those of deploy/.
func TestKubernetesNames(t *testing.T) {
	named := map[string]bool{}
	err := filepath.WalkDir(filepath.Join(root, "deploy"), func(path string, d os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".yaml") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^\s*(?:name|value): (\S+)$`).FindAllStringSubmatch(string(raw), -1) {
			named[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	object := regexp.MustCompile(`(?:\bdaemonset[/ ]|\bds/)([a-z-]+)`)
	for _, p := range pages(t) {
		for _, code := range p.code() {
			for _, m := range object.FindAllStringSubmatch(code, -1) {
				if !named[m[1]] {
					t.Errorf("%s shows %q: deploy/ has no DaemonSet %s", p.name, code, m[1])
				}
			}
		}
	}
}

// TestReadmeCorefile checks that the Corefile in README is part of Corefile.example, which other tests run.
func TestReadmeCorefile(t *testing.T) {
	example := map[string]bool{}
	for line := range strings.Lines(read(t, "Corefile.example")) {
		example[strings.TrimSpace(line)] = true
	}
	blocks, _ := page{"README.md", read(t, "README.md")}.split()
	seen := false
	for _, b := range blocks {
		if b.kind != "corefile" {
			continue
		}
		seen = true
		for line := range strings.Lines(b.text) {
			line, _, _ = strings.Cut(line, "#")
			if line = strings.TrimSpace(line); line != "" && !example[line] {
				t.Errorf("README.md shows %q, which Corefile.example does not have", line)
			}
		}
	}
	if !seen {
		t.Error("README.md shows no Corefile")
	}
}

// TestReadmeOutput checks that the shortened output in README is part of the whole output in doc/demo.md.
func TestReadmeOutput(t *testing.T) {
	output := func(name string) (lines []string) {
		blocks, _ := page{name, read(t, name)}.split()
		for _, b := range blocks {
			if b.kind == "text" {
				lines = append(lines, strings.Split(b.text, "\n")...)
			}
		}
		if len(lines) < 10 {
			t.Fatalf("%s shows only %d lines of output", name, len(lines))
		}
		return lines
	}
	whole := output("doc/demo.md")
	for _, line := range output("README.md") {
		if !slices.Contains(whole, line) {
			t.Errorf("README.md shows a line that doc/demo.md does not have:\n%s", line)
		}
	}
}

// tables returns every row of the tables of a page by header, and by the first cell without bold and version.
func tables(text string) map[string]map[string]string {
	cells := func(line string) []string {
		parts := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range parts {
			parts[i] = strings.Trim(parts[i], " *")
		}
		return parts
	}
	all := map[string]map[string]string{}
	var head []string
	for line := range strings.Lines(text) {
		switch {
		case !strings.HasPrefix(line, "|"):
			head = nil
		case head == nil:
			head = cells(line)
		case !strings.HasPrefix(line, "|--"):
			row := cells(line)
			name, _, _ := strings.Cut(row[0], " ")
			name = strings.TrimSuffix(name, ":")
			for i := 1; i < min(len(row), len(head)); i++ {
				header := strings.TrimSuffix(strings.TrimSuffix(head[i], ", µs"), ", MiB")
				if all[header] == nil {
					all[header] = map[string]string{}
				}
				if _, ok := all[header][name]; !ok {
					all[header][name] = row[i]
				}
			}
		}
	}
	return all
}

// TestReadmeFigures checks README's table of figures against bench/results.
func TestReadmeFigures(t *testing.T) {
	_, section, ok := strings.Cut(read(t, "README.md"), "\n## How fast\n")
	if !ok {
		t.Fatal("README.md has no section \"How fast\"")
	}
	shown, measured := tables(section), tables(read(t, "bench/results/results.md"))
	compared := 0
	for header, column := range shown {
		for server, figure := range column {
			want, ok := measured[header][server]
			if !ok && figure == "–" {
				continue
			}
			if compared++; figure != want {
				t.Errorf("README.md, %s, %s: %s, bench/results has %q", header, server, figure, want)
			}
		}
	}
	if compared < 30 {
		t.Errorf("only %d figures were compared", compared)
	}
}

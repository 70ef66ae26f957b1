package forward

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

// onPurpose are the inputs of CoreDNS's own tables that end otherwise here, with the words that our
// answer has to hold. doc/forward.md gives the reasons.
var onPurpose = map[string]string{
	"forward . https://127.0.0.1 \n":   "not built into localcache's forward",
	"forward . quic://127.0.0.1 \n":    "not built into localcache's forward",
	"forward . https://1.1.1.1/ \n":    "not built into localcache's forward",
	"quic://127.0.0.1%doq.example:853": "not built into localcache's forward",
}

// TestStockTables takes the tables of Corefile snippets out of the tests of the CoreDNS release that
// go.mod names, and holds our parser to them.
func TestStockTables(t *testing.T) {
	dir := filepath.Join(stockDir(t), "plugin", "forward")
	cases := 0
	for _, name := range []string{"setup_test.go", "setup_policy_test.go", "resolve_test.go"} {
		for _, sc := range stockCases(t, filepath.Join(dir, name)) {
			cases++
			t.Run(name+":"+strconv.Itoa(sc.line), func(t *testing.T) {
				p := newTestPlugin(t)
				_, err := p.parse(caddy.NewTestController("dns", sc.input))
				for part, words := range onPurpose {
					if strings.Contains(sc.input, part) {
						if err == nil || !strings.Contains(err.Error(), words) {
							t.Fatalf("%q: error %v, want one that says %q", sc.input, err, words)
						}
						return
					}
				}
				switch {
				case sc.wrong && err == nil:
					t.Errorf("%q parses; CoreDNS refuses it", sc.input)
				case !sc.wrong && err != nil:
					t.Errorf("%q: %v; CoreDNS takes it", sc.input, err)
				case sc.wrong && !strings.Contains(err.Error(), sc.words):
					t.Errorf("%q: %v\nCoreDNS says %q", sc.input, err, sc.words)
				}
			})
		}
	}
	// Fewer would mean that the tables are not found any more.
	if cases < 80 {
		t.Errorf("%d cases found, want at least 80", cases)
	}
}

type stockCase struct {
	line  int
	input string
	wrong bool
	words string // of the error
}

// stockCases finds the composite literals of structs with a field input. The value of a field may be
// any constant string; an entry whose input is computed is left out.
func stockCases(t *testing.T, file string) []stockCase {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var cases []stockCase
	ast.Inspect(f, func(n ast.Node) bool {
		table, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		array, ok := table.Type.(*ast.ArrayType)
		if !ok {
			return true
		}
		if id, ok := array.Elt.(*ast.Ident); ok && id.Name == "string" { // testsInvalid
			for _, e := range table.Elts {
				if s, ok := constant(e); ok && strings.HasPrefix(s, "forward ") {
					cases = append(cases, stockCase{line: fset.Position(e.Pos()).Line, input: s, wrong: true})
				}
			}
			return true
		}
		fields, ok := array.Elt.(*ast.StructType)
		if !ok {
			return true
		}
		var names []string
		for _, fl := range fields.Fields.List {
			for _, id := range fl.Names {
				names = append(names, id.Name)
			}
		}
		for _, e := range table.Elts {
			sc := stockCase{line: fset.Position(e.Pos()).Line}
			for i, v := range e.(*ast.CompositeLit).Elts {
				name := ""
				if kv, ok := v.(*ast.KeyValueExpr); ok {
					name, v = kv.Key.(*ast.Ident).Name, kv.Value
				} else {
					name = names[i]
				}
				switch name {
				case "input":
					sc.input, _ = constant(v)
				case "shouldErr":
					id, _ := v.(*ast.Ident)
					sc.wrong = sc.wrong || id != nil && id.Name == "true"
				case "expectedErr", "wantError":
					sc.words, _ = constant(v)
					// "plugin" stands in an entry that is right.
					sc.wrong = sc.wrong || sc.words != "" && sc.words != "plugin"
				}
			}
			if strings.HasPrefix(sc.input, "forward ") {
				cases = append(cases, sc)
			}
		}
		return true
	})
	return cases
}

func constant(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// stockDir is where the CoreDNS release of go.mod is unpacked.
func stockDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// stockMetrics are the full names of the metrics that CoreDNS's forward declares.
func stockMetrics(t *testing.T) []string {
	t.Helper()
	var names []string
	for _, file := range []string{"plugin/forward/metrics.go", "plugin/pkg/proxy/metrics.go"} {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(stockDir(t), file), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			opts, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			var subsystem, name string
			for _, e := range opts.Elts {
				kv, ok := e.(*ast.KeyValueExpr)
				if !ok {
					continue
				}
				switch key, _ := kv.Key.(*ast.Ident); key.Name {
				case "Subsystem":
					subsystem, _ = constant(kv.Value)
				case "Name":
					name, _ = constant(kv.Value)
				}
			}
			if name != "" {
				names = append(names, "coredns_"+subsystem+"_"+name)
			}
			return true
		})
	}
	if len(names) != 6 {
		t.Fatalf("CoreDNS declares %v; 6 metrics are known", names)
	}
	return names
}

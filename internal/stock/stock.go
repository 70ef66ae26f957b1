// Package stock reads the tests and sources of the CoreDNS release that go.mod names, for tests of directives that stand
// in the place of CoreDNS's own: what its tables of Corefile snippets say, and what its metrics are called.
package stock

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Dir is where the release is unpacked.
func Dir() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/coredns/coredns").Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Case is an entry of a table.
type Case struct {
	Line  int
	Input string
	Wrong bool   // it has to be refused
	Words string // of the error, where the table says them
}

// Cases finds the composite literals of structs with a field input in a file of the release. The value of a field may be
// any constant string; an entry whose input is computed, and tables of nothing but strings, are left out.
func Cases(dir, file string) ([]Case, error) {
	var cases []Case
	err := tables(dir, file, func(line lineOf, elem ast.Expr, table *ast.CompositeLit) {
		fields, ok := elem.(*ast.StructType)
		if !ok {
			return
		}
		names := fieldNames(fields)
		for _, e := range table.Elts {
			c := Case{Line: line(e)}
			for i, v := range e.(*ast.CompositeLit).Elts {
				name := ""
				if kv, ok := v.(*ast.KeyValueExpr); ok {
					name, v = kv.Key.(*ast.Ident).Name, kv.Value
				} else {
					name = names[i]
				}
				c.set(name, v)
			}
			if c.Input != "" {
				cases = append(cases, c)
			}
		}
	})
	return cases, err
}

func (c *Case) set(field string, v ast.Expr) {
	switch field {
	case "input":
		c.Input, _ = constant(v)
	case "shouldErr":
		id, _ := v.(*ast.Ident)
		c.Wrong = c.Wrong || id != nil && id.Name == "true"
	case "expectedErr", "wantError":
		c.Words, _ = constant(v)
		// "plugin" stands in an entry that is right.
		c.Wrong = c.Wrong || c.Words != "" && c.Words != "plugin"
	}
}

// Strings finds the entries of a file's tables of strings that begin with prefix.
func Strings(dir, file, prefix string) ([]Case, error) {
	var cases []Case
	err := tables(dir, file, func(line lineOf, elem ast.Expr, table *ast.CompositeLit) {
		if id, ok := elem.(*ast.Ident); !ok || id.Name != "string" {
			return
		}
		for _, e := range table.Elts {
			if s, ok := constant(e); ok && strings.HasPrefix(s, prefix) {
				cases = append(cases, Case{Line: line(e), Input: s})
			}
		}
	})
	return cases, err
}

type lineOf func(ast.Node) int

// tables calls found with each literal of a slice or an array in a file, and the type of its elements.
func tables(dir, file string, found func(line lineOf, elem ast.Expr, table *ast.CompositeLit)) error {
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, filepath.Join(dir, file), nil, 0)
	if err != nil {
		return err
	}
	line := func(n ast.Node) int { return fset.Position(n.Pos()).Line }
	ast.Inspect(f, func(n ast.Node) bool {
		if table, ok := n.(*ast.CompositeLit); ok {
			if array, ok := table.Type.(*ast.ArrayType); ok {
				found(line, array.Elt, table)
			}
		}
		return true
	})
	return nil
}

func fieldNames(s *ast.StructType) []string {
	var names []string
	for _, f := range s.Fields.List {
		for _, id := range f.Names {
			names = append(names, id.Name)
		}
	}
	return names
}

func constant(e ast.Expr) (string, bool) {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return "", false
	}
	s, err := strconv.Unquote(lit.Value)
	return s, err == nil
}

// Metrics are the full names of the metrics that the files declare, and their help.
func Metrics(dir string, files ...string) (map[string]string, error) {
	metrics := map[string]string{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, 0)
		if err != nil {
			return nil, err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			opts, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			said := map[string]string{}
			for _, e := range opts.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok {
					if key, ok := kv.Key.(*ast.Ident); ok {
						said[key.Name], _ = constant(kv.Value)
					}
				}
			}
			if said["Name"] != "" {
				metrics["coredns_"+said["Subsystem"]+"_"+said["Name"]] = said["Help"]
			}
			return true
		})
	}
	return metrics, nil
}

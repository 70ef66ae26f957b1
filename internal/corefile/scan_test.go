package corefile

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// The expected tokens are what caddy's lexer gives.
func TestScan(t *testing.T) {
	for _, tc := range []struct {
		src      string
		want     string // "line:text" for each token, comma separated
		unclosed int
	}{
		{"", "", 0},
		{"a b\nc", "1:a,1:b,2:c", 0},
		{"\ufeffa", "1:a", 0},
		{"a\ufeff", "1:a\ufeff", 0},
		{"a\r\nb\r\n", "1:a,2:b", 0},
		{"a\rb", "1:ab", 0},
		{"a\u00a0b\u2003c", "1:a,1:b,1:c", 0},
		{"# a b\nc", "2:c", 0},
		{"a # b \"c\nd", "1:a,2:d", 0},
		{"a#b c\nd", "1:a,1:c,2:d", 0},
		{"a#\"b c\" d", "1:a,1:c\",1:d", 0},
		{`"a b" c`, "1:a b,1:c", 0},
		{`"a"b`, "1:a,1:b", 0},
		{`a"b c"`, `1:a"b,1:c"`, 0},
		{`"a\"b\n\\"`, `1:a"b\n\\`, 0},
		{`""`, "1:", 0},
		{"\"a\n#b\"\nc", "1:a\n#b,3:c", 0},
		{"\"a\r\"", "1:a\r", 0},
		{"x\n\"a\nb", "1:x,2:a\nb", 2},
		{"a \"", "1:a", 1},
		{"a{b {", "1:a{b,1:{", 0},
		{"\xff", "1:\ufffd", 0},
	} {
		tokens, unclosed := scan([]byte(tc.src))
		var got []string
		for _, tok := range tokens {
			got = append(got, fmt.Sprintf("%d:%s", tok.line, tok.text))
		}
		if g := strings.Join(got, ","); g != tc.want || unclosed != tc.unclosed {
			t.Errorf("scan(%q) = %q, %d, want %q, %d", tc.src, g, unclosed, tc.want, tc.unclosed)
		}
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte("\ufeffa, b:53 {\r\n bind \"1.2.3.4\" # c\n}\n(s) {\nimport x\n}\n"))
	f.Add([]byte("\"a\\\"\n\\\\b\" c#d e\n{ } }"))
	f.Fuzz(func(t *testing.T, src []byte) {
		tokens, unclosed := scan(src)
		lines := 1 + bytes.Count(src, []byte("\n"))
		at, line := 0, 1
		for _, tok := range tokens {
			if tok.start < at || tok.end <= tok.start || tok.end > len(src) {
				t.Fatalf("token %+v overlaps or is empty; the one before ended at %d of %d", tok, at, len(src))
			}
			if want := 1 + bytes.Count(src[:tok.start], []byte("\n")); tok.line != want || tok.line < line || tok.lastLine < tok.line || tok.lastLine > lines {
				t.Fatalf("token %+v is on line %d", tok, want)
			}
			at, line = tok.end, tok.lastLine
		}
		if unclosed > lines {
			t.Fatalf("the open quote is on line %d of %d", unclosed, lines)
		}
		keys := 0
		for _, b := range serverBlocks(tokens) {
			if len(b.keys) == 0 {
				t.Fatal("a server block without keys")
			}
			keys += len(b.keys) + len(b.binds)
			b.reaches([]netip.Addr{netip.MustParseAddr("1.2.3.4")})
			for _, k := range b.keys {
				splitKey(k.text, 53)
			}
		}
		if keys > len(tokens) {
			t.Fatalf("%d keys and addresses of %d tokens", keys, len(tokens))
		}
	})
}

func TestServerBlocks(t *testing.T) {
	for _, tc := range []struct{ src, want string }{
		{"a:53 {\n bind 1.1.1.1 lo\n}\nb {\n}\n", "1 [a:53] bind [1.1.1.1 lo];4 [b] bind []"},
		{"a, b,\nc {\n}", "1 [a b c] bind []"},
		{"a b {\n bind 1.1.1.1 {\n  except 2.2.2.2\n }\n bind 3.3.3.3\n}", "1 [a b] bind [1.1.1.1 3.3.3.3] except"},
		{"(snip) {\n bind 9.9.9.9\n}\nimport x\n. {\n import snip\n}\n", "5 [.] bind []"},
		{"a {\n hosts {\n  bind x\n }\n}\n", "1 [a] bind []"},
		{".\nbind 1.1.1.1\nerrors\n", "1 [.] bind [1.1.1.1] bare"},
		{". {\n errors\n", "1 [.] bind [] open"},
		{". { bind 1.1.1.1\n}", "1 [.] bind [1.1.1.1]"},
		{"# a {\n. {\n} # }\nb {\n}", "2 [.] bind [];4 [b] bind []"},
	} {
		tokens, _ := scan([]byte(tc.src))
		var got []string
		for _, b := range serverBlocks(tokens) {
			s := fmt.Sprintf("%d %v bind %v", b.line(), texts(b.keys), texts(b.binds))
			if b.except {
				s += " except"
			}
			if !b.braces {
				s += " bare"
			} else if !b.closed {
				s += " open"
			}
			got = append(got, s)
		}
		if g := strings.Join(got, ";"); g != tc.want {
			t.Errorf("serverBlocks(%q) = %q, want %q", tc.src, g, tc.want)
		}
	}
}

func texts(tokens []token) []string {
	var s []string
	for _, t := range tokens {
		s = append(s, t.text)
	}
	return s
}

func TestSplitKey(t *testing.T) {
	for _, tc := range []struct {
		key, zone string
		port      uint16
		ok        bool
	}{
		{"Acme.Local.:53", "acme.local", 53, true},
		{"acme.local", "acme.local", 1053, true},
		{"dns://acme.local:5353", "acme.local", 5353, true},
		{".:53", "", 53, true},
		{"tls://acme.local", "", 0, false},
		{"10.0.0.0/8:53", "", 0, false},
		{"acme.local:70000", "", 0, false},
		{"acme.local:", "", 0, false},
	} {
		zone, port, ok := splitKey(tc.key, 1053)
		if zone != tc.zone || port != tc.port || ok != tc.ok {
			t.Errorf("splitKey(%q) = %q, %d, %t, want %q, %d, %t", tc.key, zone, port, ok, tc.zone, tc.port, tc.ok)
		}
	}
}

func TestReaches(t *testing.T) {
	local := []netip.Addr{netip.MustParseAddr("169.254.20.10")}
	for src, want := range map[string]bool{
		". {\n}":                                   true,
		". {\n bind 127.0.0.1\n}":                  false,
		". {\n bind 127.0.0.1 169.254.20.10\n}":    true,
		". {\n bind lo\n}":                         true,
		". {\n bind 127.0.0.1 {\n except lo\n}\n}": true,
	} {
		tokens, _ := scan([]byte(src))
		blocks := serverBlocks(tokens)
		if len(blocks) != 1 {
			t.Fatalf("%d blocks in %q", len(blocks), src)
		}
		if got := blocks[0].reaches(local); got != want {
			t.Errorf("reaches of %q = %t, want %t", src, got, want)
		}
	}
}

package apiclient

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
)

// hostile contains text that controls terminals: DEL, CSI and OSC in 8 bits, as runes and as bytes.
const hostile = "{\"a\":\"x\u007f\u0080\u009b31m\u009d\u009f\x9b\x1f\u00a0é\\u001b\"}"

func steers(s string) bool {
	return !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\n' || r >= 0x7f && r < 0xa0 })
}

// TestDocumentsCannotControlTerminal checks documents for machines, because people look at them too.
func TestDocumentsCannotControlTerminal(t *testing.T) {
	document := strings.Replace(hostile, "\x1f", "", 1) // that one is no JSON
	for _, output := range []string{"json", "yaml"} {
		var b bytes.Buffer
		a := &Command{stdout: &b, output: output}
		if done, err := a.Print([]byte(document)); !done || err != nil {
			t.Fatalf("%s: %v", output, err)
		}
		got := b.String()
		if steers(got) || !strings.Contains(got, `\u007f`) || !strings.Contains(got, `\u009b31m`) || !strings.Contains(got, "\u00a0é") {
			t.Errorf("-o %s: got %q", output, got)
		}
	}
	var b bytes.Buffer
	if err := render.PrintLine(&b, []byte("{\n \"k\u009b\": [\"\u009b\", 1 ]\n}\n")); err != nil || b.String() != `{"k\u009b":["\u009b",1]}`+"\n" {
		t.Errorf("raw: got %q, %v", b.String(), err)
	}
	if err := render.PrintLine(&b, []byte(hostile)); err == nil {
		t.Error("what is no JSON was printed as if it were")
	}
	for _, output := range []string{"json", "yaml", "table"} {
		b.Reset()
		f := &queriesFlags{Command: &Command{stdout: &b, output: output}}
		if err := f.line(&api.Query{Name: "a\u009b31m\u007f."}, false); err != nil || steers(b.String()) {
			t.Errorf("--follow -o %s: got %q, %v", output, b.String(), err)
		}
	}
	b.Reset()
	if err := render.WriteYAML(&b, []byte("{\"k\u009b\":1}")); err != nil || b.String() != "\"k\\u009b\": 1\n" {
		t.Errorf("a key: got %q, %v", b.String(), err)
	}
}

// FuzzEscape checks that the output is the same document, with nothing that controls a terminal.
func FuzzEscape(f *testing.F) {
	f.Add([]byte(hostile))
	f.Add([]byte(`{"a":[1,{"b":"` + "\u0085" + `"}]}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		var want, got any
		if json.Unmarshal(document, &want) != nil {
			return
		}
		var b bytes.Buffer
		if err := render.PrintLine(&b, document); err != nil {
			t.Fatalf("%q: %v", document, err)
		}
		line := b.Bytes()
		if steers(string(line)) || bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("%q becomes %q", document, line)
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%q becomes %q: %v", document, line, err)
		}
		a, _ := json.Marshal(want)
		c, _ := json.Marshal(got)
		if !slices.Equal(a, c) {
			t.Errorf("%q becomes %q", document, line)
		}
	})
}

package observe

import (
	"bytes"
	"strings"
	"testing"
)

func TestNameText(t *testing.T) {
	long := strings.Repeat("x", 63)
	for wire, want := range map[string]string{
		"\x00":                                ".",
		"\x03www\x07example\x00":              "www.example.",
		"\x04_tcp\x01*\x00":                   "_tcp.*.",
		"\x03a.b\x00":                         `a\.b.`,
		"\x05\\\"$@;\x00":                     `\\\"\$\@\;.`,
		"\x04\x00\x09 \x7f\x01\xff\x00":       `\000\009\032\127.\255.`,
		"\x02\xc3\xa4\x00":                    `\195\164.`,
		"\x3f" + long + "\x00":                long + ".",
		"":                                    "~",
		"\x03www":                             "www.~",
		"\x03ww":                              "ww~",
		"\x03www\xc0\x0c":                     "www.~",
		"\x01~\x00":                           `\~.`,
		"\x01a\x00\x01b\x00":                  "a.~",
		"\x40" + long + "\x00":                "~",
		strings.Repeat("\x01a", 127) + "\x00": strings.Repeat("a.", 127),
		strings.Repeat("\x01a", 128) + "\x00": strings.Repeat("a.", 128) + "~",
	} {
		if got := NameText([]byte(wire)); got != want {
			t.Errorf("%q is %q, want %q", wire, got, want)
		}
	}
}

// parseText is the way back, for names that are complete.
func parseText(t *testing.T, text string) []byte {
	if text == "." {
		return []byte{0}
	}
	var wire, label []byte
	for i := 0; i < len(text); i++ {
		switch b := text[i]; {
		case b == '.':
			wire = append(append(wire, byte(len(label))), label...)
			label = nil
		case b == '\\' && text[i+1] >= '0' && text[i+1] <= '9':
			label = append(label, (text[i+1]-'0')*100+(text[i+2]-'0')*10+text[i+3]-'0')
			i += 3
		case b == '\\':
			i++
			label = append(label, text[i])
		default:
			label = append(label, b)
		}
	}
	if label != nil {
		t.Fatalf("%q does not end with a dot", text)
	}
	return append(wire, 0)
}

func FuzzNameText(f *testing.F) {
	for _, s := range []string{"\x00", "\x03www\x07example\x00", "\x03a.b\x01\\\x00", "\x03\x00\xff~\x00", "\xc0\x0c", "\x3fabc", "\x01a\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		text := NameText(wire)
		for i := range len(text) {
			if text[i] <= ' ' || text[i] > '~' {
				t.Fatalf("%q has byte %#x", text, text[i])
			}
		}
		if len(text) > 4*len(wire)+2 {
			t.Fatalf("%d bytes became %d", len(wire), len(text))
		}
		cut := strings.HasSuffix(text, "~") // a whole name ends with a dot
		if valid := validName(wire); valid == cut {
			t.Fatalf("%q: valid %t, but %q", wire, valid, text)
		}
		if !cut {
			if back := parseText(t, text); !bytes.Equal(back, wire) {
				t.Fatalf("%q became %q and that %q", wire, text, back)
			}
		}
	})
}

func validName(wire []byte) bool {
	i := 0
	for i < len(wire) && wire[i] != 0 {
		if wire[i] > 63 {
			return false
		}
		i += 1 + int(wire[i])
	}
	return i == len(wire)-1 && len(wire) <= maxName
}

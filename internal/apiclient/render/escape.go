package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"
)

// Escape writes what can steer a terminal as JSON writes it in strings: DEL and the control characters of 8 bits
// (ECMA-48, section 8.3), which JSON lets through as they are (RFC 8259, section 7), and bytes that are no UTF-8, which
// some terminals take for those. In a JSON document they are nowhere but in strings. What is below the space is escaped
// in strings by JSON itself.
func Escape(document []byte) []byte {
	out := make([]byte, 0, len(document))
	for len(document) > 0 {
		r, n := utf8.DecodeRune(document)
		switch {
		case r >= 0x7f && r < 0xa0:
			out = fmt.Appendf(out, `\u%04x`, r)
		case r == utf8.RuneError && n == 1:
			out = append(out, `\ufffd`...)
		default:
			out = append(out, document[:n]...)
		}
		document = document[n:]
	}
	return out
}

// PrintLine writes a JSON document in one line.
func PrintLine(w io.Writer, document []byte) error {
	var line bytes.Buffer
	if err := json.Compact(&line, document); err != nil {
		return fmt.Errorf("the answer is no JSON: %w", err)
	}
	_, err := w.Write(append(Escape(line.Bytes()), '\n'))
	return err
}

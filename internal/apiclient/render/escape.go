// Package render prints tables, JSON and YAML for terminals. Text from the network cannot control the terminal.
package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"unicode/utf8"
)

// Escape escapes bytes that can control a terminal as JSON would in strings: DEL and the 8-bit control characters
// (ECMA-48, section 8.3), which JSON leaves as they are (RFC 8259, section 7), and invalid UTF-8, which some
// terminals take for those. In a JSON document they occur only in strings. JSON itself escapes characters below the
// space.
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

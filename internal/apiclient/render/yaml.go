package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// WriteYAML writes a JSON document as YAML, with the fields in their order. Strings are quoted as in JSON, which
// YAML 1.2 understands (section 7.3.1 of its specification), so that no name is ever a number or a boolean.
func WriteYAML(w io.Writer, document []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(document))
	decoder.UseNumber()
	y := yamlWriter{decoder: decoder}
	if err := y.value(0, false); err != nil {
		return err
	}
	_, err := w.Write(y.out.Bytes())
	return err
}

type yamlWriter struct {
	decoder *json.Decoder
	out     bytes.Buffer
}

// value writes the next value. inline is true behind a key or a dash, on whose line a scalar goes on.
func (y *yamlWriter) value(depth int, afterKey bool) error {
	token, err := y.decoder.Token()
	if err != nil {
		return err
	}
	delim, nested := token.(json.Delim)
	if !nested {
		text, err := json.Marshal(token)
		if err != nil {
			return err
		}
		if afterKey {
			y.out.WriteByte(' ')
		}
		y.out.Write(Escape(text))
		y.out.WriteByte('\n')
		return nil
	}
	if !y.decoder.More() {
		fmt.Fprintf(&y.out, " %s\n", map[json.Delim]string{'{': "{}", '[': "[]"}[delim])
		_, err := y.decoder.Token()
		return err
	}
	if afterKey {
		y.out.WriteByte('\n')
	}
	for first := true; y.decoder.More(); first = false {
		if !first || afterKey {
			y.out.WriteString(strings.Repeat("  ", depth))
		}
		if delim == '[' {
			y.out.WriteString("- ")
			if err := y.value(depth+1, false); err != nil {
				return err
			}
			continue
		}
		key, err := y.decoder.Token()
		if err != nil {
			return err
		}
		fmt.Fprintf(&y.out, "%s:", yamlKey(key.(string)))
		next := depth + 1
		if err := y.value(next, true); err != nil {
			return err
		}
	}
	_, err = y.decoder.Token()
	return err
}

// yamlKey quotes a key that is not plainly a word.
func yamlKey(key string) string {
	for _, r := range key {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '_' {
			text, _ := json.Marshal(key) // a string has a JSON form
			return string(Escape(text))
		}
	}
	switch key {
	case "", "true", "false", "null", "yes", "no", "on", "off", "y", "n":
		return fmt.Sprintf("%q", key)
	}
	return key
}

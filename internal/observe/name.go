package observe

import "strconv"

// maxName is the longest domain name in wire format (RFC 1035, section 3.1).
const maxName = 255

// NameText returns a domain name in wire format, without compression, in presentation format (RFC 1035, section 5.1):
// with a dot at the end, "." for the root, every byte that is not a visible character as \DDD, and characters with a
// meaning in zone files after a backslash. A malformed or cut name is written as far as it can be read, followed by
// "~".
func NameText(wire []byte) string {
	if len(wire) == 1 && wire[0] == 0 {
		return "."
	}
	text := make([]byte, 0, len(wire)+8)
	rest := wire
	for len(rest) > 0 && rest[0] != 0 {
		n := int(rest[0])
		if n > 63 {
			return string(append(text, '~'))
		}
		label := rest[1:min(1+n, len(rest))]
		for _, b := range label {
			text = appendEscaped(text, b)
		}
		if len(label) < n {
			return string(append(text, '~'))
		}
		text = append(text, '.')
		rest = rest[1+n:]
	}
	if len(rest) != 1 || len(wire) > maxName {
		text = append(text, '~')
	}
	return string(text)
}

func appendEscaped(text []byte, b byte) []byte {
	switch {
	case b <= ' ' || b > '~':
		text = append(text, '\\')
		if b < 100 {
			text = append(text, '0')
		}
		if b < 10 {
			text = append(text, '0')
		}
		return strconv.AppendUint(text, uint64(b), 10)
	case b == '.' || b == '\\' || b == '"' || b == ';' || b == '(' || b == ')' || b == '@' || b == '$' || b == '~':
		return append(text, '\\', b)
	}
	return append(text, b)
}

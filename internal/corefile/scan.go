package corefile

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// token is one word of a Corefile, with its position in the source.
type token struct {
	text       string // as CoreDNS sees it: without enclosing quotes and carriage returns
	start, end int    // octets of the source, enclosing quotes included
	line       int    // of the first octet, from 1
	lastLine   int    // of the last octet: a quoted token may span lines
}

// byteOrderMark is dropped at the beginning of a file, as caddy's lexer does.
var byteOrderMark = []byte("\ufeff")

// scan splits src into tokens exactly as caddy's lexer does (github.com/coredns/caddy, caddyfile/lexer.go), oddities
// included, because a token seen differently here would be a missed placeholder or a changed comment:
//
//   - White space, by Unicode's definition, separates tokens, but a carriage return is dropped.
//   - A quote begins a quoted token only where a token may begin, and the closing quote ends the token without white
//     space. Within it, \" is a quote and any other backslash is literal.
//   - A # begins a comment up to the end of the line. Within a token it only ends the token, up to the next white
//     space.
//   - A quote that is never closed ends with the file. unclosed is the line where it begins, else 0.
func scan(src []byte) (tokens []token, unclosed int) {
	i, line := 0, 1
	if bytes.HasPrefix(src, byteOrderMark) {
		i = len(byteOrderMark)
	}
	for i < len(src) {
		r, size := utf8.DecodeRune(src[i:])
		switch {
		case r == '\n':
			line++
			i++
		case unicode.IsSpace(r):
			i += size
		case r == '#':
			for i < len(src) && src[i] != '\n' {
				i++
			}
		default:
			var t token
			if r == '"' {
				var closed bool
				if t, closed = scanQuoted(src, i, line); !closed {
					unclosed = line
				}
				i = t.end
			} else {
				t, i = scanBare(src, i, line)
			}
			line = t.lastLine
			if t.text != "" || unclosed == 0 {
				tokens = append(tokens, t)
			}
		}
	}
	return tokens, unclosed
}

// scanQuoted reads the token whose opening quote is at start.
func scanQuoted(src []byte, start, line int) (t token, closed bool) {
	t = token{start: start, line: line, lastLine: line}
	var text []byte
	escaped := false
	for i := start + 1; i < len(src); {
		r, size := utf8.DecodeRune(src[i:])
		i += size
		if !escaped {
			if r == '\\' {
				escaped = true
				continue
			}
			if r == '"' {
				t.text, t.end = string(text), i
				return t, true
			}
		}
		if r == '\n' {
			t.lastLine++
		}
		if escaped && r != '"' {
			text = append(text, '\\')
		}
		text = utf8.AppendRune(text, r)
		escaped = false
	}
	t.text, t.end = string(text), len(src)
	return t, false
}

// scanBare reads the token that begins at start without a quote, and returns where reading continues: at the white
// space after it, past a comment that may have ended it.
func scanBare(src []byte, start, line int) (t token, next int) {
	t = token{start: start, end: start, line: line, lastLine: line}
	var text []byte
	comment := false
	i := start
	for i < len(src) {
		r, size := utf8.DecodeRune(src[i:])
		if r == '\r' {
			i += size
			continue
		}
		if unicode.IsSpace(r) {
			break
		}
		comment = comment || r == '#'
		i += size
		if !comment {
			text = utf8.AppendRune(text, r)
			t.end = i
		}
	}
	t.text = string(text)
	return t, i
}

// startsLine reports whether tokens[i] is the first of its line.
func startsLine(tokens []token, i int) bool {
	return i == 0 || tokens[i-1].lastLine < tokens[i].line
}

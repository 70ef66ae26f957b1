package corefile

import "strings"

// AddDirective adds word, a directive without arguments, to each server block of src that serves plain DNS and does
// not have it. It is added after the opening brace, so that lines keep their numbers. skipped are the lines of blocks
// without a place for it: those whose first directive is on the line of the brace, and one without braces.
//
// Snippets and imported files stay unchanged: a block that imports the directive then has it twice.
func AddDirective(src []byte, word string) (out []byte, skipped []int) {
	tokens, unclosed := scan(src)
	if unclosed > 0 {
		return src, nil // CoreDNS refuses it
	}
	var edits []edit
	for i := 0; i < len(tokens); {
		if tokens[i].text == "import" {
			i += 2
			continue
		}
		var b serverBlock
		var brace int
		b.keys, i = blockKeys(tokens, i)
		if i < len(tokens) && tokens[i].text == "{" {
			b.braces = true
			brace = i
			i++
		}
		first := i
		i = b.directives(tokens, i)
		if len(b.keys) == 0 || b.snippet() || !b.servesDNS() || hasDirective(tokens[first:i], word) {
			continue
		}
		if b.braces && first < len(tokens) && tokens[first].text == "{" {
			continue // CoreDNS refuses it, and would take this brace for our word's
		}
		if !b.braces || first < len(tokens) && tokens[first].line == tokens[brace].lastLine {
			skipped = append(skipped, b.line())
			continue
		}
		end := tokens[brace].end
		edits = append(edits, edit{end, end, " " + word})
	}
	return applyEdits(src, edits), skipped
}

// servesDNS reports whether one of the block's addresses is for plain DNS, which is the meaning of an address without
// a scheme.
func (b *serverBlock) servesDNS() bool {
	for _, k := range b.keys {
		if scheme, _, found := strings.Cut(k.text, "://"); !found || strings.EqualFold(scheme, "dns") {
			return true
		}
	}
	return false
}

// hasDirective reports whether word begins a line of tokens, a block's directives, outside of inner braces.
func hasDirective(tokens []token, word string) bool {
	depth := 0
	for i, t := range tokens {
		switch {
		case t.text == "{" && i > 0:
			depth++
		case t.text == "}":
			depth--
		case depth == 0 && t.text == word && startsLine(tokens, i):
			return true
		}
	}
	return false
}

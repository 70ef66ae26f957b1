package corefile

import "strings"

// dropForceTCP returns the edits that remove force_tcp from the forward blocks that use the placeholder of the
// upstream servers. node-cache does so if upstreamNameservers are given: the node's own resolvers are asked over TCP,
// but listed servers may speak UDP only. Line breaks stay.
func dropForceTCP(tokens []token) []edit {
	var edits []edit
	for i := 0; i < len(tokens); i++ {
		if tokens[i].text != "forward" || !startsDirective(tokens, i) {
			continue
		}
		custom := false
		for i++; i < len(tokens) && !startsLine(tokens, i) && tokens[i].text != "{"; i++ {
			custom = custom || strings.Contains(tokens[i].text, placeUpstream)
		}
		if i == len(tokens) || tokens[i].text != "{" || startsLine(tokens, i) {
			i-- // no block: this token may itself be a forward
			continue
		}
		for depth := 1; depth > 0 && i+1 < len(tokens); {
			i++
			switch t := tokens[i]; {
			case t.text == "{":
				depth++
			case t.text == "}":
				depth--
			case custom && t.text == "force_tcp" && startsDirective(tokens, i):
				edits = append(edits, edit{t.start, t.end, ""})
			}
		}
	}
	return edits
}

// startsDirective reports whether tokens[i] may be the name of a directive or option.
func startsDirective(tokens []token, i int) bool {
	return startsLine(tokens, i) || tokens[i-1].text == "{"
}

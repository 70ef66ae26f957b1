package corefile

import (
	"net/netip"
	"strconv"
	"strings"
)

// serverBlock is a server block of a Corefile, as far as a stub domain block may clash with it.
type serverBlock struct {
	keys   []token
	braces bool    // the directives are enclosed in braces
	closed bool    // and the closing one is there
	binds  []token // arguments of the bind directives
	except bool    // a bind directive has a block of its own
}

// serverBlocks groups tokens as caddy's parser does (caddyfile/parse.go). It reports no errors: for a Corefile that
// CoreDNS refuses the grouping is arbitrary, and CoreDNS's message is better.
func serverBlocks(tokens []token) []serverBlock {
	var blocks []serverBlock
	for i := 0; i < len(tokens); {
		var b serverBlock
		if tokens[i].text == "import" {
			i += 2
			continue
		}
		b.keys, i = blockKeys(tokens, i)
		if i < len(tokens) && tokens[i].text == "{" {
			b.braces = true
			i++
		}
		i = b.directives(tokens, i)
		if len(b.keys) > 0 && !b.snippet() {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// blockKeys reads the addresses at tokens[i]: all of the line, and of the next where a comma ends it.
func blockKeys(tokens []token, i int) (keys []token, next int) {
	more := false
	for first := i; i < len(tokens); i++ {
		t := tokens[i]
		if t.text == "{" || i > first && !more && startsLine(tokens, i) {
			break
		}
		if t.text == "" {
			continue
		}
		t.text, more = strings.CutSuffix(t.text, ",")
		keys = append(keys, t)
	}
	return keys, i
}

// directives reads the directives from tokens[i] to the end of the block, which is the closing brace or the end of
// the file. The first word of a line outside of inner braces names a directive, except an opening brace, which
// belongs to the directive before.
func (b *serverBlock) directives(tokens []token, i int) (next int) {
	depth := 0
	bind := false // within the arguments of bind
	for start := i; i < len(tokens); i++ {
		switch t := tokens[i]; {
		case t.text == "}" && depth == 0:
			b.closed = true
			return i + 1
		case t.text == "{" && i > start:
			depth++
			b.except = b.except || bind
			bind = false
		case depth == 0 && (i == start || startsLine(tokens, i)):
			bind = t.text == "bind"
		case t.text == "}":
			depth--
		case bind:
			b.binds = append(b.binds, t)
		}
	}
	return i
}

// snippet reports whether the block is not a server but text for import, as "(name) { … }".
func (b *serverBlock) snippet() bool {
	k := b.keys[0].text
	return b.braces && len(b.keys) == 1 && strings.HasPrefix(k, "(") && strings.HasSuffix(k, ")")
}

// line returns the line where the block begins.
func (b *serverBlock) line() int { return b.keys[0].line }

// reaches reports whether the block may listen on one of ips. Without bind it listens everywhere; an interface name
// or an exception may mean any address.
func (b *serverBlock) reaches(ips []netip.Addr) bool {
	if len(b.binds) == 0 || len(ips) == 0 || b.except {
		return true
	}
	for _, t := range b.binds {
		addr, err := netip.ParseAddr(t.text)
		if err != nil {
			return true
		}
		for _, ip := range ips {
			if addr == ip {
				return true
			}
		}
	}
	return false
}

// splitKey parses the address of a server block: "[scheme://]zone[:port]" (CoreDNS, plugin/normalize.go). ok is false
// for a key of another transport than plain DNS, or a reverse zone written as a prefix: these cannot collide with a
// stub domain.
func splitKey(key string, defaultPort uint16) (zone string, port uint16, ok bool) {
	if scheme, rest, found := strings.Cut(key, "://"); found {
		if !strings.EqualFold(scheme, "dns") {
			return "", 0, false
		}
		key = rest
	}
	zone, port = key, defaultPort
	if i := strings.LastIndexByte(key, ':'); i >= 0 {
		n, err := strconv.ParseUint(key[i+1:], 10, 16)
		if err != nil {
			return "", 0, false
		}
		zone, port = key[:i], uint16(n)
	}
	if strings.Contains(zone, "/") {
		return "", 0, false
	}
	return canonicalDomain(zone), port, true
}

// canonicalDomain is the form in which equal domains are equal strings: lower case, no final dot.
func canonicalDomain(s string) string {
	return strings.ToLower(strings.TrimSuffix(s, "."))
}

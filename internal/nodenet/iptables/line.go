package iptables

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// RuleLine is one line of `iptables -S`, the language of which is that of the command's own options.
type RuleLine struct {
	Command string   // -A, -N or -P
	Chain   string   // the chain that the command is about
	Args    []string // the rest, unquoted
}

// parseRuleLine reads a line of `iptables -S`. Lines that are no command, such as the remarks of
// iptables-nft on tables that it cannot read, are not ok.
func parseRuleLine(s string) (l RuleLine, ok bool) {
	words, ok := splitWords(s)
	if !ok || len(words) < 2 || words[0] != "-A" && words[0] != "-N" && words[0] != "-P" {
		return RuleLine{}, false
	}
	return RuleLine{Command: words[0], Chain: words[1], Args: words[2:]}, true
}

// String renders the line as iptables would.
func (l RuleLine) String() string {
	words := make([]string, 0, 2+len(l.Args))
	for _, w := range append([]string{l.Command, l.Chain}, l.Args...) {
		words = append(words, quoteWord(w))
	}
	return strings.Join(words, " ")
}

// splitWords splits s at blanks. Double quotes hold a word together; a backslash takes away the
// meaning of the character after it (xtables_save_string in libxtables). It is not ok where a quote is
// not closed.
func splitWords(s string) (words []string, ok bool) {
	var word []byte
	inWord, quoted := false, false
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && i+1 < len(s):
			i++
			word, inWord = append(word, s[i]), true
		case c == '"':
			quoted, inWord = !quoted, true
		case !quoted && (c == ' ' || c == '\t' || c == '\n' || c == '\r'):
			if inWord {
				words, word, inWord = append(words, string(word)), word[:0], false
			}
		default:
			word, inWord = append(word, c), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words, !quoted
}

// quoteWord quotes w where splitWords would not return it whole.
func quoteWord(w string) string {
	if w != "" && !strings.ContainsAny(w, " \t\n\r\"'\\") {
		return w
	}
	var b strings.Builder
	b.WriteByte('"')
	for i := range len(w) {
		if strings.IndexByte(`"'\`, w[i]) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(w[i])
	}
	b.WriteByte('"')
	return b.String()
}

// Option returns the word that follows name in the arguments.
func (l RuleLine) Option(names ...string) string {
	for i, a := range l.Args[:max(len(l.Args)-1, 0)] {
		if slices.Contains(names, a) {
			return l.Args[i+1]
		}
	}
	return ""
}

// canonicalRule brings the arguments of a rule into one form, so that two spellings of a rule compare
// equal: matches in alphabetical order, each with its options, numbers and addresses in their shortest
// form, no counters, and NOTRACK for the target that is also spelled CT --notrack.
func canonicalRule(args []string) string {
	var groups []string
	var group []string
	flush := func() {
		if len(group) > 0 {
			groups = append(groups, strings.Join(group, " "))
		}
		group = nil
	}
	negate := ""
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "!" {
			negate = "! "
			continue
		}
		switch a {
		case "-c", "--set-counters": // two numbers follow
			i += 2
			negate = ""
			continue
		case "-m", "--match", "-j", "--jump", "-g", "--goto", "-p", "--protocol", "-s", "--source",
			"-d", "--destination", "-i", "--in-interface", "-o", "--out-interface":
			flush()
		}
		group = append(group, negate+quoteWord(canonicalWord(a)))
		negate = ""
	}
	flush()
	for i, g := range groups {
		if g == "-j NOTRACK" {
			groups[i] = "-j CT --notrack"
		}
	}
	slices.Sort(groups)
	return strings.Join(groups, " ")
}

// canonicalWord shortens a word that is an address, a mask of all ones, or a decimal fraction.
func canonicalWord(w string) string {
	switch w {
	case "--protocol":
		return "-p"
	case "--match":
		return "-m"
	case "--jump":
		return "-j"
	case "--goto":
		return "-g"
	case "--source":
		return "-s"
	case "--destination":
		return "-d"
	}
	host, mask, cut := strings.Cut(w, "/")
	if a, err := netip.ParseAddr(host); err == nil {
		if !cut || mask == strconv.Itoa(a.BitLen()) || isOnes(mask, a) {
			return a.String()
		}
		return a.String() + "/" + mask
	}
	if ap, err := netip.ParseAddrPort(w); err == nil {
		return ap.String()
	}
	if strings.Trim(w, "0123456789.") == "" && strings.Count(w, ".") == 1 {
		return strings.TrimSuffix(strings.TrimRight(w, "0"), ".")
	}
	return w
}

// isOnes tells whether mask is the one of a single address of a's family.
func isOnes(mask string, a netip.Addr) bool {
	m, err := netip.ParseAddr(mask)
	if err != nil || m.BitLen() != a.BitLen() {
		return false
	}
	for _, b := range m.AsSlice() {
		if b != 0xff {
			return false
		}
	}
	return true
}

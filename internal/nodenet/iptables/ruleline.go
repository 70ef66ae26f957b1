package iptables

import (
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ruleLine is one line of `iptables -S`, which is written in the options of the command itself.
type ruleLine struct {
	Command string   // -A, -N or -P
	Chain   string   // the chain that the command changes
	Args    []string // the rest, unquoted
}

// parseRuleLines reads the output of `iptables -S`.
func parseRuleLines(text iter.Seq[string]) []ruleLine {
	var lines []ruleLine
	for s := range text {
		if l, ok := parseRuleLine(s); ok {
			lines = append(lines, l)
		}
	}
	return lines
}

// parseRuleLine reads a line of `iptables -S`. ok is false for lines that are no command, such as the
// remarks of iptables-nft on tables that it cannot read.
func parseRuleLine(s string) (l ruleLine, ok bool) {
	words, ok := splitWords(s)
	if !ok || len(words) < 2 || words[0] != "-A" && words[0] != "-N" && words[0] != "-P" {
		return ruleLine{}, false
	}
	return ruleLine{Command: words[0], Chain: words[1], Args: words[2:]}, true
}

// String renders the line as iptables does.
func (l ruleLine) String() string {
	words := make([]string, 0, 2+len(l.Args))
	for _, w := range append([]string{l.Command, l.Chain}, l.Args...) {
		words = append(words, quoteWord(w))
	}
	return strings.Join(words, " ")
}

// splitWords splits s at blanks. Double quotes hold a word together; a backslash takes away the special
// meaning of the next character (xtables_save_string in libxtables). ok is false where a quote is not
// closed.
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

// quoteWord returns w, quoted where splitWords would not return it whole.
func quoteWord(w string) string {
	if w != "" && !strings.ContainsAny(w, " \t\n\r\"'\\") {
		return w
	}
	return `"` + strings.NewReplacer(`"`, `\"`, `'`, `\'`, `\`, `\\`).Replace(w) + `"`
}

// option returns the word that follows one of names in the arguments, or "".
func (l ruleLine) option(names ...string) string {
	for i, a := range l.Args[:max(len(l.Args)-1, 0)] {
		if slices.Contains(names, a) {
			return l.Args[i+1]
		}
	}
	return ""
}

// target returns the target or chain that the rule jumps or goes to.
func (l ruleLine) target() string { return l.option("-j", "-g") }

// canonicalRule returns the arguments of a rule in one form, so that two spellings of a rule compare
// equal: matches in alphabetical order, each with its options, numbers and addresses in their shortest
// form, no counters, and CT --notrack for the target that is also spelled NOTRACK.
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

// canonicalWord returns the short form of an option, of an address with or without a mask of all ones, and
// of a decimal fraction. Other words stay as they are.
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
		if !cut || mask == strconv.Itoa(a.BitLen()) || isHostMask(mask, a) {
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

// isHostMask reports whether mask, in the form of an address, is the mask of a single address of a's family.
func isHostMask(mask string, a netip.Addr) bool {
	m, err := netip.ParseAddr(mask)
	return err == nil && m.BitLen() == a.BitLen() && !slices.ContainsFunc(m.AsSlice(), func(b byte) bool { return b != 0xff })
}

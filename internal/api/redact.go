package api

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"localcache.dev/localcache/internal/observe"
)

// Redaction is what the API does not tell.
type Redaction uint32

// The redactions. RedactClients includes RedactNames.
const (
	RedactNone Redaction = iota
	RedactNames
	RedactClients
)

var redactionNames = [...]string{"none", "names", "clients"}

// String is the redaction's name in the Corefile.
func (r Redaction) String() string {
	if int(r) < len(redactionNames) {
		return redactionNames[r]
	}
	return fmt.Sprintf("redaction(%d)", uint32(r))
}

// ParseRedaction reads a redaction's name.
func ParseRedaction(s string) (Redaction, bool) {
	for r, name := range redactionNames {
		if name == s {
			return Redaction(r), true
		}
	}
	return 0, false
}

// SetRedaction changes what is told from now on.
func (s *Server) SetRedaction(r Redaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.redact.Store(uint32(r))
	s.latest = nil // its messages are those of before
}

// Redaction is what is in force.
func (s *Server) Redaction() Redaction { return Redaction(s.redact.Load()) }

func newSecret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return b
}

// pseudonym stands for a name or client for as long as the process lives: the same for the same, so that what belongs
// together can be seen. Nobody who lacks the secret can try names out.
func (s *Server) pseudonym(text string) string {
	m := hmac.New(sha256.New, s.secret)
	m.Write([]byte(text))
	return "redacted-" + hex.EncodeToString(m.Sum(nil)[:6])
}

func (s *Server) redactName(name string) string {
	if s.Redaction() == RedactNone {
		return name
	}
	return s.pseudonym(name)
}

func (s *Server) redactClient(c Client) Client {
	if s.Redaction() != RedactClients || c.Overflow {
		return c
	}
	if c.PodName != "" {
		return Client{Addresses: []string{}, PodName: s.pseudonym(c.UID)}
	}
	for i, a := range c.Addresses {
		c.Addresses[i] = s.pseudonym(a)
	}
	return c
}

// upstreamSnapshots are the statistics of upstreams, with the messages of failures as they may be told.
func (s *Server) upstreamSnapshots() []observe.UpstreamSnapshot {
	list := s.options.Upstreams.Snapshot()
	if s.Redaction() != RedactNone {
		for i := range list {
			for j := range list[i].Failures { // these are copies
				e := &list[i].Failures[j]
				e.Err = s.redactText(e.Err, e.Upstream)
			}
		}
	}
	return list
}

// redactText replaces what looks like a domain name or a client's address in a message for people, such as that of a
// failed exchange. None that localcache makes has one in it; but many come from the kernel, from libraries and from
// upstreams, where that is nobody's promise. What belongs to the upstream itself stays.
func (s *Server) redactText(text, upstream string) string {
	r := s.Redaction()
	if r == RedactNone {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		n := strings.IndexFunc(text, inWord)
		if n < 0 {
			n = len(text)
		}
		b.WriteString(text[:n])
		text = text[n:]
		if n = strings.IndexFunc(text, func(r rune) bool { return !inWord(r) }); n < 0 {
			n = len(text)
		}
		b.WriteString(s.redactWord(text[:n], upstream, r))
		text = text[n:]
	}
	return b.String()
}

// inWord tells whether a rune can be part of a name or an address with its port. What else may be in a label, as any octet
// may (RFC 2181, section 11), is escaped with a backslash in texts.
func inWord(r rune) bool {
	return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= 0x80 || strings.ContainsRune(`._-*:[]%\`, r)
}

func (s *Server) redactWord(word, upstream string, r Redaction) string {
	core := strings.TrimRight(word, "-:") // of "ADDRESS->ADDRESS:"
	rest := word[len(core):]
	if core == "" || core == upstream {
		return word
	}
	addr, isAddr := addressIn(core)
	switch home, _ := addressIn(upstream); {
	case isAddr && (r != RedactClients || addr == home):
		return word
	case isAddr:
		return s.pseudonym(addr.String()) + rest
	}
	if host, port, ok := strings.Cut(core, ":"); ok {
		core, rest = host, ":"+port+rest
	}
	if !looksLikeName(core) {
		return word
	}
	return s.pseudonym(strings.TrimRight(core, ".")+".") + rest
}

// addressIn is the IP address of a word, which may have a port.
func addressIn(word string) (netip.Addr, bool) {
	if a, err := netip.ParseAddrPort(word); err == nil {
		return a.Addr().Unmap(), true
	}
	a, err := netip.ParseAddr(strings.Trim(word, "[]."))
	return a.Unmap(), err == nil
}

// looksLikeName tells whether a word is a domain name of more than one label; "1.5s" and "v1.2" are none.
func looksLikeName(word string) bool {
	word = strings.TrimRight(word, ".")
	i := strings.LastIndexByte(word, '.')
	if i <= 0 || len(word)-i < 3 {
		return false
	}
	last := word[i+1]
	return last|0x20 >= 'a' && last|0x20 <= 'z' || last == '\\' || last >= 0x80 || last == '_'
}

// refuseRedacted refuses filters by which names and clients could be guessed one by one.
func (s *Server) refuseRedacted(p *params) *Error {
	r := s.Redaction()
	what := ""
	switch {
	case p.name != "" && r != RedactNone:
		what = "name"
	case p.namespace != "" && r == RedactClients:
		what = "namespace"
	default:
		return nil
	}
	return &Error{Code: http.StatusForbidden, Reason: "Redacted", Message: "parameter " + what + ": it is not possible while " + r.String() + " are redacted",
		Hint: "leave it out; 'diag { redact none }' in the Corefile would show all"}
}

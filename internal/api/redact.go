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

// Redaction says what the API hides.
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

// SetRedaction changes the redaction from now on.
func (s *Server) SetRedaction(r Redaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.redact.Store(uint32(r))
	s.latest = nil // its messages are those of before
}

// Redaction returns the current redaction.
func (s *Server) Redaction() Redaction { return Redaction(s.redact.Load()) }

func newSecret() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails, see crypto/rand
	return b
}

// pseudonym returns a replacement for a name or client that stays the same for the life of the process, so that
// related entries can be recognized. Without the secret nobody can test guesses.
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

// upstreamSnapshots returns the statistics of upstreams, with failure messages redacted as configured.
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

// redactText replaces everything that looks like a domain name or a client's address in a message for people, such as
// that of a failed exchange. Messages of localcache contain none; but many come from the kernel, from libraries and
// from upstreams, which make no such promise. The upstream's own name and address stay.
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

// inWord reports whether a rune can be part of a name or an address with its port. Other octets of a label (RFC 2181,
// section 11) are escaped with a backslash in texts.
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

// looksLikeName reports whether a word is a domain name of more than one label; "1.5s" and "v1.2" are not.
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

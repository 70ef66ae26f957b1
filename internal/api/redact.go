package api

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
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
func (s *Server) SetRedaction(r Redaction) { s.redact.Store(uint32(r)) }

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

package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

const (
	minToken = 16   // bytes of a token; shorter ones can be guessed
	maxToken = 4096 // of its file
	// tokenAge is how long a token is used before its file is read again.
	tokenAge = time.Second
)

// Access decides which requests are allowed.
type Access interface {
	// check returns an error unless the request comes from a user with the role. Everybody has RolePublic.
	check(r *http.Request, role Role) *Error
	// String says it in the list of listeners.
	String() string
}

// Open returns an Access that allows every request.
func Open() Access { return open{} }

type open struct{}

func (open) check(*http.Request, Role) *Error { return nil }
func (open) String() string                   { return "open" }

// Token is an Access for users who know the content of a file. The file is read again when a request arrives, at most
// once a second: a token can be changed, or withdrawn by removing the file, without a restart.
type Token struct {
	path string

	mu   sync.Mutex
	hash [sha256.Size]byte
	err  error
	read time.Time
}

// NewToken returns an Access by the token in a file: its text without surrounding white space, at least 16 bytes. It
// fails if the file cannot be used now.
func NewToken(path string) (*Token, error) {
	t := &Token{path: path}
	_, err := t.current(time.Now())
	return t, err
}

// String implements Access.
func (t *Token) String() string { return "token " + t.path }

// current is the hash of the token as the file has it.
func (t *Token) current(now time.Time) ([sha256.Size]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.read.IsZero() || now.Sub(t.read) >= tokenAge {
		t.hash, t.err = hashToken(t.path)
		t.read = now
	}
	return t.hash, t.err
}

func hashToken(path string) (hash [sha256.Size]byte, err error) {
	text, err := ReadToken(path)
	if err != nil {
		return hash, err
	}
	return sha256.Sum256([]byte(text)), nil
}

// ReadToken reads a token's file.
func ReadToken(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("the token cannot be read: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", fmt.Errorf("the token cannot be read: %w", err)
	}
	text := strings.TrimSpace(string(data))
	switch {
	case len(data) > maxToken:
		return "", fmt.Errorf("the token in %s is too long: at most %d bytes are read", path, maxToken)
	case len(text) < minToken:
		return "", fmt.Errorf("the token in %s has %d bytes: at least %d are needed, such as 'openssl rand -hex 32' writes", path, len(text), minToken)
	}
	return text, nil
}

// check implements Access: the token has all roles.
func (t *Token) check(r *http.Request, role Role) *Error {
	if role == RolePublic {
		return nil
	}
	want, err := t.current(time.Now())
	if err != nil {
		return &Error{Code: http.StatusServiceUnavailable, Reason: "NoToken", Message: "access is refused: the token of this listener cannot be read", Hint: "look at the file that 'access token' names in the Corefile"}
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	got := sha256.Sum256([]byte(strings.TrimSpace(token)))
	same := subtle.ConstantTimeCompare(got[:], want[:]) == 1
	if !strings.EqualFold(scheme, "Bearer") || !same {
		return &Error{Code: http.StatusUnauthorized, Reason: "Unauthorized", Message: "the token is missing or wrong", Hint: "send the header 'Authorization: Bearer TOKEN'"}
	}
	return nil
}

// checkSite refuses what a browser sends on behalf of another site: by host name, since a name can be made to resolve
// here (DNS rebinding), and by the headers that browsers send about it.
func checkSite(r *http.Request, node string) *Error {
	forbidden := func(message, hint string) *Error {
		return &Error{Code: http.StatusForbidden, Reason: "Forbidden", Message: message, Hint: hint}
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); err != nil && !strings.EqualFold(host, "localhost") && (node == "" || !strings.EqualFold(host, node)) {
		return forbidden(fmt.Sprintf("the host %q is not this one", cut(r.Host)), "ask by IP address, by localhost or by the node's name")
	}
	if origins := r.Header.Values("Origin"); len(origins) > 0 {
		o, err := url.Parse(origins[0])
		if len(origins) > 1 || err != nil || !strings.EqualFold(o.Host, r.Host) {
			return forbidden("requests for other sites are refused", "ask without the header Origin")
		}
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return forbidden("requests for other sites are refused", "ask from a page of this server")
	}
	return nil
}

package upstream

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// Cause is why a question got no answer.
type Cause uint8

// The causes.
const (
	CauseTimeout     Cause = iota // every attempt was silent to the end of its time
	CauseUnreachable              // refused, reset or no way there
	CauseBadReply                 // the reply was not an answer to the question
	CauseAllDown                  // all servers are down and the block fails fast
	CauseOverloaded               // too many questions in flight
	CauseInvalid                  // the query cannot be sent
	CauseCanceled                 // the client's context ended first
	CauseClosed                   // the group was closed
)

var causeNames = [...]string{"timeout", "unreachable", "bad_reply", "all_down", "overloaded", "invalid", "canceled", "closed"}

// String is the cause's name in metrics and logs.
func (c Cause) String() string {
	if int(c) < len(causeNames) {
		return causeNames[c]
	}
	return fmt.Sprintf("cause(%d)", uint8(c))
}

// Errors to test for with errors.Is.
var (
	// ErrOverloaded: GroupConfig.MaxConcurrent or Limits.Queries is reached.
	ErrOverloaded = errors.New("too many queries in flight")
	// ErrInvalidQuery: the client's message cannot be packed, or has no question.
	ErrInvalidQuery = errors.New("the query cannot be sent")
	// ErrAllDown: no server is up and the block fails fast.
	ErrAllDown = errors.New("all upstreams are down")
	// ErrClosed: the group is closed.
	ErrClosed = errors.New("the forwarder is closed")
)

// Error describes a query without an answer. All clients of a flight share it: it is read-only.
type Error struct {
	Cause   Cause
	Elapsed time.Duration
	Err     error // the sentinel or the context's error; nil if Attempts tell the cause
	Report
}

// Error names the cause and each attempt.
func (e *Error) Error() string {
	var b strings.Builder
	switch {
	case e.Err != nil:
		b.WriteString(e.Err.Error())
	default:
		fmt.Fprintf(&b, "no answer in %s", e.Elapsed.Round(time.Millisecond))
	}
	for i, a := range e.Attempts {
		b.WriteString([]string{": ", "; "}[min(i, 1)])
		fmt.Fprintf(&b, "%s over %s %s after %s", a.Upstream, a.Proto, a.Outcome, a.Duration.Round(time.Millisecond))
		if a.Err != "" {
			fmt.Fprintf(&b, " (%s)", a.Err)
		}
	}
	return b.String()
}

// Unwrap returns the sentinel or the context's error.
func (e *Error) Unwrap() error { return e.Err }

// ExtendedError is the Extended DNS Error for the client (RFC 8914, section 4): the code and a text
// that names the upstreams, short enough for a 512-byte answer.
func (e *Error) ExtendedError() (code uint16, text string) {
	switch e.Cause {
	case CauseTimeout, CauseAllDown:
		code = dns.ExtendedErrorCodeNoReachableAuthority
	case CauseUnreachable:
		code = dns.ExtendedErrorCodeNetworkError
	case CauseBadReply:
		code = dns.ExtendedErrorCodeInvalidData
	default:
		code = dns.ExtendedErrorCodeOther
	}
	if e.Err != nil {
		return code, e.Err.Error()
	}
	var b strings.Builder
	seen := make(map[string]bool)
	for _, a := range e.Attempts {
		part := fmt.Sprintf("%s/%s %s", a.Upstream, a.Proto, a.Outcome)
		if seen[part] || a.Outcome.Answer() {
			continue
		}
		if b.Len()+len(part) > 200 {
			b.WriteString(", ...")
			break
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		seen[part] = true
		b.WriteString(part)
	}
	return code, b.String()
}

// causeOf summarizes attempts: silence outweighs fast failures, since it took the time.
func causeOf(attempts []Attempt) Cause {
	cause := CauseTimeout
	for _, a := range attempts {
		switch a.Outcome {
		case observe.Timeout:
			return CauseTimeout
		case observe.BadReply:
			cause = CauseBadReply
		case observe.ConnRefused, observe.Unreachable, observe.Reset:
			if cause != CauseBadReply {
				cause = CauseUnreachable
			}
		}
	}
	return cause
}

package observe

import "fmt"

// Outcome says how an exchange ended. The first five are answers: the upstream is alive and replied. The others are
// failures: no usable reply arrived.
type Outcome uint8

// The outcomes. Their order is part of the API: answers come first.
const (
	NoError     Outcome = iota // RCODE 0, with or without data
	NXDomain                   // RCODE 3
	ServFail                   // RCODE 2
	Refused                    // RCODE 5
	OtherRcode                 // any other RCODE
	Timeout                    // no reply in time
	ConnRefused                // TCP reset or ICMP port unreachable at the first contact
	Unreachable                // no route, ICMP host or network unreachable, or no socket available
	Reset                      // an established connection ended before the answer
	BadReply                   // the reply was not the answer to the question

	// NumOutcomes is the number of outcomes, for arrays that are indexed by them.
	NumOutcomes = int(BadReply) + 1
)

var outcomeNames = [NumOutcomes]string{
	"noerror", "nxdomain", "servfail", "refused", "other_rcode",
	"timeout", "conn_refused", "unreachable", "reset", "bad_reply",
}

// String is the outcome's name in metrics, logs and the API.
func (o Outcome) String() string { return nameOf(outcomeNames[:], "outcome", uint8(o)) }

// Answer reports whether the upstream answered, whatever the RCODE.
func (o Outcome) Answer() bool { return o <= OtherRcode }

// MarshalText writes the name, for JSON.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// OutcomeOf returns the outcome of an answer with the given RCODE (RFC 1035, section 4.1.1, and RFC 6891 for those
// above 15).
func OutcomeOf(rcode int) Outcome {
	switch rcode {
	case 0:
		return NoError
	case 2:
		return ServFail
	case 3:
		return NXDomain
	case 5:
		return Refused
	}
	return OtherRcode
}

// Proto is the transport of an exchange.
type Proto uint8

// The transports.
const (
	UDP Proto = iota
	TCP
	TLS
)

var protoNames = [...]string{"udp", "tcp", "tls"}

// String is the transport's name in metrics, logs and the API.
func (p Proto) String() string { return nameOf(protoNames[:], "proto", uint8(p)) }

// MarshalText writes the name, for JSON.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Drop says why a packet or reply was dropped without ending an exchange.
type Drop uint8

// The reasons.
const (
	DropWrongID       Drop = iota // no query with this ID is waiting: a late or a spoofed answer
	DropWrongQuestion             // a datagram with the right ID and another question
	DropMalformed                 // a datagram that is no DNS response
	DropLate                      // an answer on a stream after its exchange had timed out

	// NumDrops is the number of reasons.
	NumDrops = int(DropLate) + 1
)

var dropNames = [NumDrops]string{"wrong_id", "wrong_question", "malformed", "late"}

// String is the reason's name in metrics, logs and the API.
func (d Drop) String() string { return nameOf(dropNames[:], "drop", uint8(d)) }

// MarshalText writes the name, for JSON.
func (d Drop) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// nameOf returns the name of a value, or KIND(N) for a value without one.
func nameOf(names []string, kind string, i uint8) string {
	if int(i) < len(names) {
		return names[i]
	}
	return fmt.Sprintf("%s(%d)", kind, i)
}

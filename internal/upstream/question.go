package upstream

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/miekg/dns"
)

const (
	headerLen = 12
	// ednsSize is the UDP payload size that is offered to upstreams: it passes without fragmentation on any sane path
	// (DNS flag day 2020).
	ednsSize = 1232

	bitTC = 0x02 // in the third octet of the header
	bitQR = 0x80
)

// question is a query in the form in which it is sent, with ID 0. It does not change while a flight
// lasts: calls on several paths read it at the same time.
type question struct {
	wire []byte
	// end is the offset behind the question section.
	end int
	// asked is the question, if it is shareable.
	asked dns.Question
	// shareable is false for a message that is forwarded unchanged: another opcode than QUERY, a signature, records
	// in unusual sections.
	shareable bool
	// bare is true if the query has no OPT record, so that its client gets none.
	bare bool
}

// newQuestion packs the question of m. EDNS is hop-by-hop (RFC 6891, section 6.1.1), so the OPT record is this
// server's own: always present, so that clients with and without one share an exchange; with the client's DO bit and
// options, except those about the client's own connection.
func newQuestion(m *dns.Msg) (*question, error) {
	q := new(question)
	if err := q.pack(m); err != nil {
		return nil, err
	}
	return q, nil
}

// pack makes q the question of m. It reuses the memory of q.
func (q *question) pack(m *dns.Msg) error {
	if m == nil || len(m.Question) == 0 {
		return fmt.Errorf("%w: it has no question", ErrInvalidQuery)
	}
	if !ordinary(m) {
		return q.verbatim(m)
	}
	asked := &m.Question[0]
	if asked.Name == "" {
		return fmt.Errorf("%w: its question has no name", ErrInvalidQuery)
	}
	var flags [2]byte
	if m.RecursionDesired {
		flags[0] |= 0x01
	}
	if m.AuthenticatedData {
		flags[1] |= 0x20
	}
	if m.CheckingDisabled {
		flags[1] |= 0x10
	}
	wire := append(q.wire[:0], 0, 0, flags[0], flags[1], 0, 1, 0, 0, 0, 0, 0, 1)
	wire, err := appendName(wire, asked.Name)
	if err != nil {
		return fmt.Errorf("%w: name %q: %w", ErrInvalidQuery, asked.Name, err)
	}
	wire = binary.BigEndian.AppendUint16(wire, asked.Qtype)
	wire = binary.BigEndian.AppendUint16(wire, asked.Qclass)
	end := len(wire)
	var opt *dns.OPT
	if len(m.Extra) > 0 {
		opt, _ = m.Extra[0].(*dns.OPT)
	}
	if wire, err = appendOPT(wire, opt); err != nil {
		return fmt.Errorf("%w: its EDNS options: %w", ErrInvalidQuery, err)
	}
	q.wire, q.end, q.shareable, q.bare = wire, end, true, opt == nil
	q.asked = *asked
	return nil
}

// appendName appends a name in wire format. Names without escapes, nearly all, are written here; the library handles
// the rest, malformed names included.
func appendName(dst []byte, name string) ([]byte, error) {
	const most = 255 // octets of a name (RFC 1035, section 3.1)
	if name == "." {
		return append(dst, 0), nil
	}
	start := len(dst)
	length := start // where the length of the current label goes
	dst = append(dst, 0)
	for i := range len(name) {
		switch b := name[i]; b {
		case '.':
			n := len(dst) - length - 1
			if n == 0 || n > 63 {
				return packName(dst[:start], name)
			}
			dst[length] = byte(n)
			length = len(dst)
			dst = append(dst, 0)
		case '\\':
			return packName(dst[:start], name)
		default:
			dst = append(dst, b)
		}
	}
	if length != len(dst)-1 || len(name) == 0 || len(dst)-start > most {
		return packName(dst[:start], name)
	}
	return dst, nil
}

func packName(dst []byte, name string) ([]byte, error) {
	start := len(dst)
	dst = slices.Grow(dst, len(name)+2)
	end, err := dns.PackDomainName(name, dst[:cap(dst)], start, nil, false)
	return dst[:end], err
}

// ordinary reports whether m is a plain question: nothing in it but one question and EDNS version 0.
func ordinary(m *dns.Msg) bool {
	if m.Opcode != dns.OpcodeQuery || m.Response || m.Rcode != 0 || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 {
		return false
	}
	switch len(m.Extra) {
	case 0:
		return true
	case 1:
		opt, ok := m.Extra[0].(*dns.OPT)
		return ok && opt.Version() == 0
	}
	return false
}

// verbatim packs m as it is.
func (q *question) verbatim(m *dns.Msg) error {
	c := *m
	c.Id = 0
	wire, err := c.Pack()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidQuery, err)
	}
	if len(wire) > dns.MaxMsgSize {
		return fmt.Errorf("%w: %d octets", ErrInvalidQuery, len(wire))
	}
	end := headerLen
	for range c.Question {
		_, after, err := dns.UnpackDomainName(wire, end)
		if err != nil || after+4 > len(wire) {
			return fmt.Errorf("%w: its question section cannot be read back", ErrInvalidQuery)
		}
		end = after + 4
	}
	q.wire, q.end, q.shareable, q.bare = wire, end, false, false
	return nil
}

// appendOPT appends this server's OPT record, with what the client's OPT record, if any, tells the upstream.
func appendOPT(wire []byte, client *dns.OPT) ([]byte, error) {
	do := false
	if client != nil {
		do = client.Do()
		if options := forwardedOptions(client.Option); len(options) > 0 {
			return appendOptions(wire, do, options)
		}
	}
	var flags byte
	if do {
		flags = 0x80
	}
	return append(wire, 0, 0, byte(dns.TypeOPT), ednsSize>>8, ednsSize&0xff, 0, 0, flags, 0, 0, 0), nil
}

// forwardedOptions returns the options that do not end at this hop.
func forwardedOptions(all []dns.EDNS0) (options []dns.EDNS0) {
	for _, o := range all {
		switch o.Option() {
		case dns.EDNS0COOKIE, dns.EDNS0TCPKEEPALIVE, dns.EDNS0PADDING: // RFC 7873, 7828 and 7830
		default:
			options = append(options, o)
		}
	}
	return options
}

func appendOptions(wire []byte, do bool, options []dns.EDNS0) ([]byte, error) {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT}, Option: options}
	opt.SetUDPSize(ednsSize)
	opt.SetDo(do)
	record := make([]byte, dns.Len(opt))
	n, err := dns.PackRR(opt, record, 0, nil, false)
	if err != nil {
		return nil, err
	}
	return append(wire, record[:n]...), nil
}

// key is equal for questions that have the same answer: flags, name in lower case, type, class, DO and
// options.
func (q *question) key(dst []byte) []byte {
	dst = append(dst, q.wire[2:4]...)
	for _, b := range q.wire[headerLen : q.end-4] {
		dst = append(dst, lower(b)) // a label's length is below 'A'
	}
	return append(dst, q.wire[q.end-4:]...)
}

// withoutEDNS returns the question for a server that takes no OPT record.
func (q *question) withoutEDNS() []byte {
	if !q.shareable {
		return q.wire
	}
	plain := bytes.Clone(q.wire[:q.end])
	plain[11] = 0
	return plain
}

// verdict says what a received message means for the waiting call.
type verdict uint8

const (
	accepted verdict = iota
	malformed
	wrongID
	wrongQuestion
)

// judge reports whether msg, as received, is an answer to q. Checking the ID is left to its owner. It reads no
// further than the question section.
func (q *question) judge(msg []byte) verdict {
	if len(msg) < headerLen || msg[2]&bitQR == 0 {
		return malformed
	}
	if (msg[2]^q.wire[2])&0x78 != 0 { // opcode
		return malformed
	}
	switch binary.BigEndian.Uint16(msg[4:]) {
	case 0:
		// A server that could not, or would not, read the question need not repeat it.
		switch msg[3] & 0x0f {
		case dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused:
			return accepted
		}
		return wrongQuestion
	case binary.BigEndian.Uint16(q.wire[4:]):
	default:
		return wrongQuestion
	}
	if len(msg) < q.end {
		return wrongQuestion
	}
	if !q.shareable {
		if !bytes.Equal(msg[headerLen:q.end], q.wire[headerLen:q.end]) {
			return wrongQuestion
		}
		return accepted
	}
	for i := headerLen; i < q.end-4; i++ {
		if msg[i] != q.wire[i] && lower(msg[i]) != lower(q.wire[i]) {
			return wrongQuestion
		}
	}
	if !bytes.Equal(msg[q.end-4:q.end], q.wire[q.end-4:q.end]) {
		return wrongQuestion
	}
	return accepted
}

func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}

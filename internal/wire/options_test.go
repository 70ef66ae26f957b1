package wire

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func options(o ...dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(1232, true)
		m.IsEdns0().Option = o
	}
}

func queriesWithOptions(t testing.TB) map[string][]byte {
	version := func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }
	return map[string][]byte{
		"cookie":  pack(t, "example.org.", dns.TypeA, options(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})),
		"two":     pack(t, "WWW.example.org.", dns.TypeAAAA, options(&dns.EDNS0_NSID{Code: dns.EDNS0NSID}, &dns.EDNS0_PADDING{Padding: make([]byte, 100)})),
		"version": pack(t, longName, dns.TypeA, version),
		"root":    pack(t, ".", dns.TypeNS, options(&dns.EDNS0_LOCAL{Code: 65001, Data: []byte("x")})),
	}
}

func TestHasOptions(t *testing.T) {
	for title, msg := range queriesWithOptions(t) {
		if !HasOptions(msg) {
			t.Errorf("%s is refused", title)
		}
		if new(Query).Parse(msg) {
			t.Errorf("%s is plain", title)
		}
		for n := range len(msg) {
			if HasOptions(msg[:n]) {
				t.Errorf("%s: the first %d octets of %d are accepted", title, n, len(msg))
			}
		}
	}
	cookie := options(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
	with := func(edit func(*dns.Msg)) []byte {
		return pack(t, "example.org.", dns.TypeA, func(m *dns.Msg) { cookie(m); edit(m) })
	}
	for title, msg := range map[string][]byte{
		"no OPT":        pack(t, "example.org.", dns.TypeA, nil),
		"response":      with(func(m *dns.Msg) { m.Response = true }),
		"NOTIFY":        with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"two questions": with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"two OPTs":      with(func(m *dns.Msg) { m.Extra = append(m.Extra, m.Extra[0]) }),
		"signed":        with(func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 1) }),
		"other record":  pack(t, "example.org.", dns.TypeA, func(m *dns.Msg) { m.Extra = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeA}}} }),
		"more behind":   append(with(func(*dns.Msg) {}), 0),
		"with answer":   with(func(m *dns.Msg) { m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: "a.", Rrtype: dns.TypeA}}} }),
	} {
		if HasOptions(msg) {
			t.Errorf("%s is accepted", title)
		}
	}
}

func TestQuestion(t *testing.T) {
	for title, msg := range plainQueries(t) {
		q, ok := Question(msg)
		var p Query
		if !ok || !p.Parse(msg) || !bytes.Equal(q, p.Question()) || !bytes.Equal(LowerName(nil, q), p.Name()) {
			t.Errorf("%s: %x, %v", title, q, ok)
		}
	}
	tooLong := append(make([]byte, headerSize), bytes.Repeat(append([]byte{63}, strings.Repeat("a", 63)...), 4)...)
	tooLong = append(tooLong, 0, 0, 1, 0, 1)
	binary.BigEndian.PutUint16(tooLong[4:], 1)
	pointer := append(make([]byte, headerSize), 0xc0, 0x0c, 0, 1, 0, 1)
	binary.BigEndian.PutUint16(pointer[4:], 1)
	for title, msg := range map[string][]byte{
		"nothing": nil, "header": make([]byte, headerSize), "no question": make([]byte, 40), "name of 257 octets": tooLong, "pointer": pointer,
	} {
		if q, ok := Question(msg); ok {
			t.Errorf("%s: %x", title, q)
		}
	}
}

// FuzzHasOptions has miekg/dns as its oracle: what is accepted is read there as one question and one OPT record, or refused
// for the options themselves.
func FuzzHasOptions(f *testing.F) {
	for _, msg := range queriesWithOptions(f) {
		f.Add(msg)
	}
	for _, msg := range plainQueries(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		question, ok := Question(msg)
		if ok {
			var m dns.Msg
			head := append([]byte(nil), msg[:headerSize+len(question)]...)
			binary.BigEndian.PutUint64(head[4:], 1<<48)
			if err := m.Unpack(head); err != nil || len(m.Question) != 1 {
				t.Fatalf("a question that is none: %x: %v", head, err)
			}
			wire := make([]byte, 300)
			n, err := dns.PackDomainName(m.Question[0].Name, wire, 0, nil, false)
			if err != nil || !bytes.Equal(LowerName(nil, wire[:n+4]), LowerName(nil, question)) {
				t.Fatalf("the name %q of %x: %v", m.Question[0].Name, question, err)
			}
		}
		if !HasOptions(msg) {
			return
		}
		var m dns.Msg
		if err := m.Unpack(msg); err != nil {
			return
		}
		if m.Response || m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 || len(m.Extra) != 1 || m.IsEdns0() == nil || m.IsTsig() != nil {
			t.Fatalf("accepted: %v", &m)
		}
	})
}

package upstream

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzFrames cuts a stream that comes in pieces of any size, and compares with cutting it at once.
func FuzzFrames(f *testing.F) {
	answer := reply(ask("a.example."), fault{})
	framed := append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)
	f.Add(framed, uint8(1))
	f.Add(bytes.Repeat(framed, 60), uint8(200))
	f.Add(append([]byte{0, 1}, framed...), uint8(7))
	f.Add([]byte("HTTP/1.1 400 Bad Request"), uint8(3))
	f.Add([]byte{0xff, 0xff, 0, 0, 0x80}, uint8(1))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint8) {
		var want [][]byte
		bad := false
		for rest := stream; len(rest) >= 2; {
			n := int(binary.BigEndian.Uint16(rest))
			if n < headerLen || len(rest) > 4 && rest[4]&bitQR == 0 {
				bad = true
				break
			}
			if len(rest) < 2+n {
				break
			}
			want = append(want, rest[2:2+n])
			rest = rest[2+n:]
		}

		var in frames
		var got [][]byte
		var failed error
		for rest := stream; len(rest) > 0 && failed == nil; {
			space := in.space()
			if len(space) == 0 {
				t.Fatal("no space to read into")
			}
			n := copy(space[:min(len(space), int(piece)+1)], rest)
			rest = rest[n:]
			in.filled(n)
			for {
				msg, err := in.next()
				if err != nil {
					failed = err
				}
				if msg == nil {
					break
				}
				got = append(got, bytes.Clone(msg))
			}
			if len(in.buffer) > frameMost {
				t.Fatalf("the buffer has %d octets", len(in.buffer))
			}
		}
		if len(got) != len(want) || (failed != nil) != bad {
			t.Fatalf("%d messages and error %v, want %d and %t", len(got), failed, len(want), bad)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("message %d is %x, want %x", i, got[i], want[i])
			}
		}
	})
}

// FuzzJudge compares what is taken for an answer with what miekg/dns reads in the message.
func FuzzJudge(f *testing.F) {
	m := ask("Www.Example.")
	m.Id = 0x1234
	for _, fl := range []fault{{}, {wrongID: true}, {wrongQuestion: true}, {truncate: true}, {rcode: 5}, {size: 400}} {
		f.Add("Www.Example.", uint16(1), reply(m, fl))
	}
	f.Add("www.example.", uint16(1), reply(m, fault{}))
	f.Add(".", uint16(2), []byte{0x12, 0x34, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, name string, qtype uint16, msg []byte) {
		query := new(dns.Msg)
		query.Question = []dns.Question{{Name: dns.Fqdn(name), Qtype: qtype, Qclass: dns.ClassINET}}
		query.RecursionDesired = true
		q, err := newQuestion(query)
		if err != nil {
			return
		}
		// What was packed is what the oracle reads back.
		var sent dns.Msg
		if err := sent.Unpack(q.wire); err != nil || len(sent.Question) != 1 || sent.Question[0].Qtype != qtype || sent.IsEdns0() == nil {
			t.Fatalf("the query %x is %v, %v", q.wire, &sent, err)
		}
		got := q.judge(msg, 0x1234)

		var read dns.Msg
		err = read.Unpack(msg)
		matches := err == nil && read.Id == 0x1234 && read.Response && read.Opcode == dns.OpcodeQuery &&
			len(read.Question) == 1 && read.Question[0].Qtype == qtype && read.Question[0].Qclass == dns.ClassINET &&
			strings.EqualFold(read.Question[0].Name, sent.Question[0].Name)
		// A name of the question that is compressed, or has letters that only Unicode folds, is not
		// what a server repeats; ours says no where the oracle may say yes.
		if got == accepted && err == nil && len(read.Question) == 1 && !matches {
			t.Fatalf("%x is taken for the answer to %s %d: %v", msg, name, qtype, &read)
		}
		if plain := bytes.HasPrefix(msg[min(len(msg), headerLen):], q.wire[headerLen:q.end]); matches && plain && got != accepted {
			t.Fatalf("%x is the answer to %s %d and was refused: %d", msg, name, qtype, got)
		}
	})
}

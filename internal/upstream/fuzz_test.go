package upstream

import (
	"bytes"
	"encoding/binary"
	"reflect"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// FuzzFrames cuts a stream that arrives in pieces of any size, and compares with cutting it at once.
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

// FuzzJudge compares what counts as an answer with miekg/dns's view of the message.
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
		got := q.judge(msg)

		var read dns.Msg
		err = read.Unpack(msg)
		matches := err == nil && read.Response && read.Opcode == dns.OpcodeQuery &&
			len(read.Question) == 1 && read.Question[0].Qtype == qtype && read.Question[0].Qclass == dns.ClassINET &&
			strings.EqualFold(read.Question[0].Name, sent.Question[0].Name)
		// A server does not compress the name of the question, nor change letters that only Unicode folds; judge may
		// refuse such a message although the oracle accepts it.
		if got == accepted && err == nil && len(read.Question) == 1 && !matches {
			t.Fatalf("%x is taken for the answer to %s %d: %v", msg, name, qtype, &read)
		}
		if plain := bytes.HasPrefix(msg[min(len(msg), headerLen):], q.wire[headerLen:q.end]); matches && plain && got != accepted {
			t.Fatalf("%x is the answer to %s %d and was refused: %d", msg, name, qtype, got)
		}
	})
}

// FuzzPack compares the query that is written by hand with miekg/dns's packing of the same message.
func FuzzPack(f *testing.F) {
	f.Add("www.Example.", uint16(1), uint16(1), uint8(0x3f))
	f.Add(".", uint16(2), uint16(1), uint8(1))
	f.Add(`a\.b\032.example.`, uint16(28), uint16(255), uint8(9))
	f.Add("no.dot", uint16(1), uint16(1), uint8(0))
	f.Add("..", uint16(1), uint16(1), uint8(0))
	f.Add(strings.Repeat("a", 63)+".", uint16(1), uint16(1), uint8(0))
	f.Add(strings.Repeat("a", 64)+".", uint16(1), uint16(1), uint8(0))
	f.Add(strings.Repeat("abcdefg.", 31)+"abcde.", uint16(1), uint16(1), uint8(0))
	f.Add(strings.Repeat("abcdefg.", 31)+"abcdef.", uint16(1), uint16(1), uint8(0))
	f.Add(strings.Repeat("abcdefg.", 32), uint16(1), uint16(1), uint8(0))
	used := new(question) // the room of the one before must not show
	f.Fuzz(func(t *testing.T, name string, qtype, qclass uint16, flags uint8) {
		m := new(dns.Msg)
		m.Question = []dns.Question{{Name: name, Qtype: qtype, Qclass: qclass}}
		m.RecursionDesired, m.AuthenticatedData, m.CheckingDisabled = flags&1 != 0, flags&2 != 0, flags&4 != 0
		if flags&8 != 0 {
			m.SetEdns0(4096, flags&16 != 0)
		}
		oracle := m.Copy()
		oracle.Extra = nil
		oracle.SetEdns0(ednsSize, flags&8 != 0 && flags&16 != 0)
		want, wantErr := oracle.Pack()
		err := used.pack(m)
		if name == "" {
			if err == nil {
				t.Fatal("a question without a name was packed") // the library does
			}
			return
		}
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("%q: error %v, the library's %v", name, err, wantErr)
		}
		if err == nil && !bytes.Equal(used.wire, want) {
			t.Fatalf("%q is %x, want %x", name, used.wire, want)
		}
	})
}

// FuzzDecode checks that messages unpacked by hand equal those unpacked by miekg/dns.
func FuzzDecode(f *testing.F) {
	query := ask("Www.Example.")
	for _, fl := range []fault{{}, {truncate: true}, {rcode: 3}, {size: 400}} {
		f.Add("Www.Example.", reply(query, fl))
	}
	m := new(dns.Msg).SetReply(query)
	for _, text := range []string{
		"Www.Example. 60 IN CNAME target.example.", "target.example. 60 IN A 192.0.2.1", "target.example. 60 IN AAAA 2001:db8::1",
		"example. 5 IN SOA ns.dns.example. hostmaster.example. 1 2 3 4 5", "t.example. 60 IN TXT text", ". 5 IN SOA . . 1 2 3 4 5",
		`x\\.y.example. 60 IN A 192.0.2.1`, "a_b-c.example. 60 IN A 192.0.2.1",
	} {
		rr, err := dns.NewRR(text)
		if err != nil {
			f.Fatal(err)
		}
		m.Answer = append(m.Answer, rr)
		for _, compress := range []bool{false, true} {
			for _, edns := range []bool{false, true} {
				c := m.Copy()
				c.Compress = compress
				if edns {
					c.SetEdns0(1232, true)
					c.IsEdns0().SetExtendedRcode(16)
				}
				c.Ns, c.Answer = c.Answer[:len(c.Answer)/2], c.Answer[len(c.Answer)/2:]
				wire, err := c.Pack()
				if err != nil {
					f.Fatal(err)
				}
				f.Add("Www.Example.", wire)
			}
		}
	}
	f.Fuzz(func(t *testing.T, name string, msg []byte) {
		q, err := newQuestion(ask(dns.Fqdn(name)))
		if err != nil {
			return
		}
		q.bare = false
		got, ok := q.decode(msg, &q.asked)
		q.bare = true
		bare, bareOK := q.decode(msg, &q.asked)
		if bareOK != ok {
			t.Fatalf("%x is read %t with an OPT record and %t without", msg, ok, bareOK)
		}
		if !ok {
			return
		}
		checkBare(t, got, bare)
		want := new(dns.Msg)
		if err := want.Unpack(msg); err != nil {
			t.Fatalf("%x is read as %v, the library says %v", msg, got, err)
		}
		// The name of the question is as it was asked, be it with other escapes.
		if want.Question[0].Name != name && got.Question[0].Name == dns.Fqdn(name) {
			return
		}
		for _, section := range []*[]dns.RR{&want.Answer, &want.Ns, &want.Extra} {
			if len(*section) == 0 {
				*section = nil
			}
			for _, rr := range *section {
				if opt, ok := rr.(*dns.OPT); ok && len(opt.Option) == 0 {
					opt.Option = nil
				}
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%x is read as\n%v\nand not as\n%v", msg, got, want)
		}
	})
}

// checkBare checks that without the OPT record of the additional section everything else is the same, and that the
// record stays if it matters.
func checkBare(t *testing.T, whole, bare *dns.Msg) {
	t.Helper()
	want := *whole
	if whole.Rcode == dns.RcodeSuccess || whole.Rcode == dns.RcodeNameError {
		want.Extra = nil
		for _, rr := range whole.Extra {
			if _, isOPT := rr.(*dns.OPT); !isOPT {
				want.Extra = append(want.Extra, rr)
			}
		}
	}
	if !reflect.DeepEqual(bare, &want) {
		t.Fatalf("%v without its OPT record is read as\n%v", whole, bare)
	}
}

// TestDecodeAllocates: the message with its question, the record with its address, and the list that it is in.
func TestDecodeAllocates(t *testing.T) {
	query := ask("www.example.")
	q, err := newQuestion(query)
	if err != nil {
		t.Fatal(err)
	}
	answer := reply(query.SetEdns0(1232, false), fault{})
	if n := testing.AllocsPerRun(100, func() { q.decode(answer, &q.asked) }); n > 3 {
		t.Errorf("%v allocations", n)
	}
}

// TestDecodeCommonAnswers: the usual answers do not need the library.
func TestDecodeCommonAnswers(t *testing.T) {
	query := ask("Www.Example.")
	q, err := newQuestion(query)
	if err != nil {
		t.Fatal(err)
	}
	for _, fl := range []fault{{}, {rcode: 3}} {
		if m, ok := q.decode(reply(query, fl), &q.asked); !ok {
			t.Errorf("%+v is left to the library: %v", fl, m)
		}
	}
}

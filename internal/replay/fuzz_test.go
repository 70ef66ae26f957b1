package replay

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire"
	"localcache.dev/localcache/internal/wire/wiretest"
)

// FuzzReplay stores answer, whatever it is, and replays it after some time to a client that writes the
// question in other letters. What miekg/dns reads in the replay is what it reads in answer, but for the ID,
// the question's letters, the age of the TTLs, and a rotation of addresses within their RRset.
func FuzzReplay(f *testing.F) {
	const name = "www.example.org."
	edns := func(m *dns.Msg) { m.SetEdns0(1232, true) }
	f.Add(reply(f, name, dns.TypeA, nil, name+" 30 A 192.0.2.1"), uint64(0), uint16(1), int64(0), true)
	f.Add(reply(f, name, dns.TypeA, edns, name+" 30 A 192.0.2.1", name+" 30 A 192.0.2.2", name+" 30 A 192.0.2.3"),
		^uint64(0), uint16(0xffff), 3*second, true)
	f.Add(reply(f, name, dns.TypeAAAA, nil, name+" 300 CNAME a.cdn.example.", "a.cdn.example. 20 AAAA 2001:db8::1", "a.cdn.example. 20 AAAA 2001:db8::2"),
		uint64(0x5555), uint16(2), 18*second+1, false)
	f.Add(reply(f, name, dns.TypeA, rcode(dns.RcodeNameError), "|", soa), uint64(0xaaaa), uint16(3), 29*second, true)
	f.Add(reply(f, "_dns._udp.a.cluster.local.", dns.TypeSRV, nil, "_dns._udp.a.cluster.local. 5 SRV 0 50 53 b.a.cluster.local.", "|", "|",
		"b.a.cluster.local. 5 A 10.0.0.1", "c.a.cluster.local. 5 A 10.0.0.2", "b.a.cluster.local. 5 A 10.0.0.3"),
		uint64(7), uint16(4), 5*second, true)
	f.Add(reply(f, "WWW.example.org.", dns.TypeMX, nil, name+" 30 MX 1 a.example.org.", name+" 30 MX 1 b.example.org."),
		uint64(1), uint16(5), second/2, true)
	f.Add(reply(f, "example.org.", dns.TypeANY, edns, "example.org. 30 HTTPS 1 . alpn=h2", "example.org. 40 NSEC a.example.org. A",
		"example.org. 50 RRSIG A 8 2 30 20300101000000 20200101000000 1 example.org. aaaa", "example.org. 30 A 192.0.2.1", "example.org. 31 A 192.0.2.2"),
		uint64(9), uint16(6), 7*second, false)
	f.Fuzz(tryReplay)
}

func tryReplay(t *testing.T, answer []byte, letters uint64, id uint16, age int64, rotate bool) {
	kept := bytes.Clone(answer)
	a, err := wire.ParseAnswer(answer)
	if err != nil {
		return
	}
	age %= int64(min(a.MinTTL, 1<<30)+3) * second
	if age < 0 {
		age = -age
	}
	asked := query(answer[headerSize:headerSize+a.Question], 0)
	var q wire.Query
	if !q.Parse(asked) {
		t.Fatalf("a question that can be answered is refused: %x", asked)
	}
	s := New(4, 1<<16)
	stored := s.Put(&q, answer, PutOptions{Now: start, Rotate: rotate})
	lower := bytes.Equal(q.Question(), q.Key()[:a.Question])
	if want := a.MinTTL > 1 && (!rotate || a.Rotatable) && (!a.Truncated || lower); stored != want {
		t.Fatalf("stored %v, want %v: %+v", stored, want, a)
	}
	other := query(q.Question(), letters)
	binary.BigEndian.PutUint16(other, id)
	var q2 wire.Query
	if !q2.Parse(other) {
		t.Fatalf("refused in other letters: %x", other)
	}
	now := start + age
	e := s.Get(&q2, now)
	old := uint32((age + second - 1) / second)
	if want := stored && old < a.MinTTL; (e != nil) != want {
		t.Fatalf("found %v, want %v: %+v at %d", e != nil, want, a, age)
	}
	if e == nil {
		return
	}
	buf := bytes.Repeat([]byte{0xee}, len(answer)+32)
	msg := e.Append(buf[:16], &q2, now)[16:]
	if len(msg) != len(answer) || &msg[0] != &buf[16] {
		t.Fatalf("%d octets of %d, in place %v", len(msg), len(answer), &msg[0] == &buf[16])
	}
	guard := bytes.Repeat([]byte{0xee}, 16)
	if !bytes.Equal(buf[:16], guard) || !bytes.Equal(buf[16+len(answer):], guard) {
		t.Fatal("written outside")
	}
	if !bytes.Equal(kept, answer) {
		t.Fatal("the message that was stored was changed")
	}
	if want := [2]byte{byte(id >> 8), byte(id)}; [2]byte(msg) != want {
		t.Fatalf("ID %x, want %x", msg[:2], want)
	}
	if !bytes.Equal(msg[headerSize:headerSize+a.Question], q2.Question()) {
		t.Fatalf("question %x, want %x", msg[headerSize:headerSize+a.Question], q2.Question())
	}
	compareOctets(t, answer, msg, &a, old, rotate)
	compareMessages(t, answer, msg, old)
}

// query asks question, with the letters changed that mask has a bit for.
func query(question []byte, mask uint64) []byte {
	msg := append([]byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, question...)
	for i := range len(question) - 4 {
		if b := msg[headerSize+i] | 0x20; b >= 'a' && b <= 'z' && mask>>(i%64)&1 != 0 {
			msg[headerSize+i] ^= 0x20
		}
	}
	return msg
}

// compareOctets compares what neither ID, question, TTL nor a rotated address has.
func compareOctets(t *testing.T, answer, msg []byte, a *wire.Answer, old uint32, rotate bool) {
	t.Helper()
	want := bytes.Clone(answer)
	copy(want, msg[:2])
	copy(want[headerSize:], msg[headerSize:headerSize+a.Question])
	for _, off := range a.TTLs {
		binary.BigEndian.PutUint32(want[off:], binary.BigEndian.Uint32(want[off:])-old)
	}
	if rotate {
		for _, s := range a.Sets {
			for _, off := range s.RDATA {
				copy(want[off:off+s.Size], msg[off:off+s.Size])
			}
		}
	}
	if !bytes.Equal(want, msg) {
		t.Fatalf("got  %x\nwant %x", msg, want)
	}
}

// compareMessages compares as miekg/dns reads.
func compareMessages(t *testing.T, answer, msg []byte, old uint32) {
	t.Helper()
	was, is := new(dns.Msg), new(dns.Msg)
	if wasErr, isErr := was.Unpack(answer), is.Unpack(msg); wasErr != nil || isErr != nil {
		if (wasErr == nil) != (isErr == nil) {
			t.Fatalf("stored: %v, replayed: %v", wasErr, isErr)
		}
		return
	}
	was.Id = is.Id
	if was.MsgHdr != is.MsgHdr || len(was.Answer) != len(is.Answer) || len(was.Ns) != len(is.Ns) || len(was.Extra) != len(is.Extra) {
		t.Fatalf("got\n%v\nwant\n%v", is, was)
	}
	for i, section := range [][]dns.RR{was.Answer, was.Ns, was.Extra} {
		replayed := [][]dns.RR{is.Answer, is.Ns, is.Extra}[i]
		before, after := map[string][]string{}, map[string][]string{}
		for j, r := range section {
			got := replayed[j]
			if r.Header().Rrtype != dns.TypeOPT {
				r.Header().Ttl -= old
			}
			// Names that point at the question have its letters.
			want := strings.ToLower(r.String())
			have := strings.ToLower(got.String())
			kind := r.Header().Rrtype
			if kind != dns.TypeA && kind != dns.TypeAAAA {
				if have != want {
					t.Fatalf("got %s\nwant %s", have, want)
				}
				continue
			}
			set := strings.ToLower(r.Header().String())
			if got := strings.ToLower(got.Header().String()); got != set {
				t.Fatalf("got %s\nwant %s", got, set)
			}
			set = fmt.Sprint(strings.ToLower(r.Header().Name), kind, r.Header().Class)
			before[set] = append(before[set], want)
			after[set] = append(after[set], have)
		}
		for set, want := range before {
			if !rotation(want, after[set]) {
				t.Fatalf("got %q\nwant %q", after[set], want)
			}
		}
	}
}

// rotation reports whether b is a rotated.
func rotation(a, b []string) bool {
	for i := range a {
		if slices.Equal(slices.Concat(a[i:], a[:i]), b) {
			return true
		}
	}
	return len(a) == 0 && len(b) == 0
}

var soak = flag.Int("soak", 5_000, "how many damaged answers TestSoak stores and replays")

// TestSoak is FuzzReplay without the fuzzer: many more answers, made from those that it has found.
func TestSoak(t *testing.T) {
	seeds := wiretest.Corpus(t, "FuzzReplay")
	s := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d answers to start from", s, len(seeds))
	r := rand.New(rand.NewPCG(s, s))
	var buf []byte
	for range *soak {
		buf = wiretest.Mutate(r, seeds, buf)
		tryReplay(t, buf, r.Uint64(), uint16(r.Uint32()), int64(r.Uint64()), r.IntN(2) == 0)
	}
}

package wire

import (
	"bytes"
	"encoding/binary"
	"flag"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire/wiretest"
)

// FuzzParse compares Parse with miekg/dns: what it accepts is a plain query there, with the same
// properties, and the key is made of those; what is plain there is accepted, once it is packed.
func FuzzParse(f *testing.F) {
	for _, msg := range plainQueries(f) {
		f.Add(msg)
	}
	f.Add(pack(f, "example.org.", dns.TypeA, option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})))
	f.Add(pack(f, "example.org.", dns.TypeSOA, func(m *dns.Msg) { m.SetNotify("example.org.") }))
	f.Fuzz(tryParse)
}

func tryParse(t *testing.T, msg []byte) {
	var used Query
	var q Query
	ok := q.Parse(msg)
	if ok {
		checkQuery(t, &q, msg)
		// Nothing of an earlier query, ID or case is in the key.
		other := bytes.Clone(msg)
		other[0] ^= 0xff
		for i, b := range q.Question()[:len(q.Name())] {
			if c := b | 0x20; c >= 'a' && c <= 'z' {
				other[headerSize+i] ^= 0x20
			}
		}
		if !used.Parse(other) || !bytes.Equal(used.Key(), q.Key()) || used.Hash() != q.Hash() || !q.Asks(used.Question()) {
			t.Fatalf("key %x, with another ID and case %x", q.Key(), used.Key())
		}
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil || !plain(m) {
		return
	}
	packed, err := m.Pack()
	if err != nil {
		t.Fatalf("cannot be packed again: %v: %v", err, m)
	}
	if !q.Parse(packed) {
		t.Fatalf("plain, but refused: %x", packed)
	}
	checkQuery(t, &q, packed)
	if ok && !bytes.Equal(packed, msg) {
		t.Fatalf("accepted %x, which is packed as %x", msg, packed)
	}
}

// FuzzParseAnswer compares ParseAnswer with miekg/dns.
func FuzzParseAnswer(f *testing.F) {
	for _, msg := range goodAnswers(f) {
		f.Add(msg)
	}
	f.Add(reply(f, "a.example.org.", dns.TypeMX, nil, "a.example.org. 30 MX 1 m1.example.org.", "a.example.org. 30 MX 1 m2.example.org."))
	f.Add(reply(f, "example.org.", dns.TypeANY, edns(1232, true),
		"example.org. 30 HTTPS 1 . alpn=h2", "example.org. 30 NSEC a.example.org. A", "example.org. 30 SRV 1 2 3 a.example.org.",
		`example.org. 30 NAPTR 100 10 "u" "E2U+sip" "" .`, testSIG, testSOA, "example.org. 30 A 192.0.2.1", "example.org. 31 A 192.0.2.2"))
	f.Fuzz(tryParseAnswer)
}

func tryParseAnswer(t *testing.T, msg []byte) {
	kept := bytes.Clone(msg)
	a, err := ParseAnswer(msg)
	if !bytes.Equal(kept, msg) {
		t.Fatal("the message was changed")
	}
	if err != nil {
		return
	}
	checkAnswer(t, msg, a)
	// TTLs and addresses lie in the message, apart from each other, and after the question.
	used := make([]bool, len(msg))
	take := func(off uint16, size int) {
		for i := int(off); i < int(off)+size; i++ {
			if i < headerSize+a.Question || used[i] {
				t.Fatalf("octet %d of %+v", i, a)
			}
			used[i] = true
		}
	}
	for _, off := range a.TTLs {
		take(off, 4)
		if ttl := binary.BigEndian.Uint32(msg[off:]); ttl < a.MinTTL || ttl > 1<<31-1 {
			t.Fatalf("a TTL of %d in %+v", ttl, a)
		}
	}
	for _, s := range a.Sets {
		if len(s.RDATA) < 2 || s.Size != 4 && s.Size != 16 {
			t.Fatalf("%+v", a)
		}
		for _, off := range s.RDATA {
			take(off, int(s.Size))
		}
	}
}

var soak = flag.Int("soak", 20_000, "how many damaged messages TestSoak tries on each parser")

// TestSoak is the fuzz targets without the fuzzer: many more messages, made from those that it has found.
func TestSoak(t *testing.T) {
	seeds := wiretest.Corpus(t, "FuzzParse", "FuzzParseAnswer")
	for _, made := range []map[string][]byte{plainQueries(t), goodAnswers(t)} {
		seeds = slices.AppendSeq(seeds, maps.Values(made))
	}
	s := uint64(time.Now().UnixNano())
	t.Logf("seed %d, %d messages to start from", s, len(seeds))
	r := rand.New(rand.NewPCG(s, s))
	var buf []byte
	for range *soak {
		buf = wiretest.Mutate(r, seeds, buf)
		tryParse(t, buf)
		tryParseAnswer(t, buf)
	}
}

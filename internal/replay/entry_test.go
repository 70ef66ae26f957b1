package replay

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire"
)

// parsed is a query that was read.
func parsed(t testing.TB, name string, kind uint16, edit func(*dns.Msg)) *wire.Query {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, kind)
	if edit != nil {
		edit(m)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatalf("packing a query for %s: %v", name, err)
	}
	q := new(wire.Query)
	if !q.Parse(msg) {
		t.Fatalf("%s is no plain query", name)
	}
	return q
}

// reply packs the answer to a question as CoreDNS does. Records are of the answer section, up to a "|",
// then of the authority section, up to another, then additional ones.
func reply(t testing.TB, name string, kind uint16, edit func(*dns.Msg), records ...string) []byte {
	t.Helper()
	m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(name, kind))
	m.Compress = true
	sections := []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra}
	for _, s := range records {
		if s == "|" {
			sections = sections[1:]
			continue
		}
		r, err := dns.NewRR(s)
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		*sections[0] = append(*sections[0], r)
	}
	if edit != nil {
		edit(m)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatalf("packing the answer for %s: %v", name, err)
	}
	return msg
}

func unpack(t testing.TB, msg []byte) *dns.Msg {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("%v: %x", err, msg)
	}
	return m
}

// start is a time of the caller's clock. Nothing depends on which.
const start = 17*second + 123456789

func rcode(code int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = code } }

const soa = "cluster.local. 30 SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 30"

func TestReplay(t *testing.T) {
	const name = "www.example.org."
	for title, answer := range map[string][]byte{
		"address": reply(t, name, dns.TypeA, nil, name+" 30 A 192.0.2.1", name+" 30 A 192.0.2.2"),
		"alias": reply(t, name, dns.TypeA, nil, name+" 300 CNAME a.cdn.example.", "a.cdn.example. 20 A 192.0.2.1",
			"|", "cdn.example. 4000 NS ns.cdn.example.", "|", "ns.cdn.example. 50 A 192.0.2.3"),
		"NODATA":    reply(t, name, dns.TypeA, func(m *dns.Msg) { m.SetEdns0(1232, true) }, "|", soa),
		"NXDOMAIN":  reply(t, name, dns.TypeA, rcode(dns.RcodeNameError), "|", soa),
		"truncated": reply(t, name, dns.TypeA, func(m *dns.Msg) { m.Truncated = true }, name+" 30 A 192.0.2.1"),
	} {
		t.Run(title, func(t *testing.T) {
			s := New(10, 1<<20)
			if !s.Put(parsed(t, name, dns.TypeA, nil), answer, PutOptions{Now: start, Class: 7}) {
				t.Fatal("refused")
			}
			want := unpack(t, answer)
			q := parsed(t, "wWw.Example.ORG.", dns.TypeA, func(m *dns.Msg) { m.Id = 0xbeef })
			now := start + 3*second
			e := s.Get(q, now)
			if e == nil {
				t.Fatal("not found")
			}
			if e.Class() != 7 || e.Len() != len(answer) {
				t.Errorf("class %d, length %d", e.Class(), e.Len())
			}
			prefix := []byte("prefix")
			msg := e.Append(prefix, q, now)
			if !bytes.HasPrefix(msg, prefix) || len(msg) != len(prefix)+len(answer) {
				t.Fatalf("%d octets appended, want %d: %x", len(msg)-len(prefix), len(answer), msg)
			}
			got := unpack(t, msg[len(prefix):])
			if got.Id != 0xbeef || got.Question[0].Name != "wWw.Example.ORG." {
				t.Errorf("ID %#x and name %s", got.Id, got.Question[0].Name)
			}
			want.Id, want.Question = got.Id, got.Question
			for _, section := range [][]dns.RR{want.Answer, want.Ns, want.Extra} {
				for _, r := range section {
					if r.Header().Rrtype != dns.TypeOPT {
						r.Header().Ttl -= 3
					}
				}
			}
			if !strings.EqualFold(got.String(), want.String()) {
				t.Errorf("got\n%v\nwant\n%v", got, want)
			}
			if e.Append(nil, q, now); !bytes.Equal(e.data[e.key:int(e.key)+len(answer)], answer) {
				t.Error("the entry was changed")
			}
		})
	}
}

func TestPutRefuses(t *testing.T) {
	const name = "www.example.org."
	good := name + " 30 A 192.0.2.1"
	for title, c := range map[string]struct {
		answer []byte
		o      PutOptions
	}{
		"no answer":        {[]byte{1, 2, 3}, PutOptions{}},
		"SERVFAIL":         {reply(t, name, dns.TypeA, rcode(dns.RcodeServerFailure), "|", soa), PutOptions{}},
		"no TTL":           {reply(t, name, dns.TypeA, nil), PutOptions{}},
		"other name":       {reply(t, "example.org.", dns.TypeA, nil, good), PutOptions{}},
		"other type":       {reply(t, name, dns.TypeAAAA, nil, good), PutOptions{}},
		"other class":      {reply(t, name, dns.TypeA, func(m *dns.Msg) { m.Question[0].Qclass = 3 }, good), PutOptions{}},
		"name of a prefix": {reply(t, "www.example.orgx.", dns.TypeA, nil, good), PutOptions{}},
		"last second":      {reply(t, name, dns.TypeA, nil, name+" 1 A 192.0.2.1"), PutOptions{}},
		"passes at once":   {reply(t, name, dns.TypeA, nil, good), PutOptions{PassAfter: start}},
		"not rotatable":    {reply(t, name, dns.TypeA, nil, good, name+" 31 A 192.0.2.2"), PutOptions{Rotate: true}},
		"truncated for its case": {reply(t, "WWW.example.org.", dns.TypeA, func(m *dns.Msg) { m.Truncated = true }, good),
			PutOptions{}},
	} {
		t.Run(title, func(t *testing.T) {
			s := New(10, 1<<20)
			q := parsed(t, name, dns.TypeA, nil)
			o := c.o
			o.Now = start
			if s.Put(q, c.answer, o) {
				t.Fatal("stored")
			}
			if s.Get(q, start) != nil {
				t.Error("found")
			}
			// The chain has another answer now, so an older one is not said any more.
			if !s.Put(q, reply(t, name, dns.TypeA, nil, good), PutOptions{Now: start}) || s.Get(q, start) == nil {
				t.Fatal("a good one is refused")
			}
			if s.Put(q, c.answer, o) || s.Get(q, start) != nil {
				t.Error("the older answer is still there")
			}
			if got, want := s.Stats(), (Stats{Stored: 1, Refused: 2}); got != want {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
}

// An answer is for the very key that it was stored under, also where all hashes are the same.
func TestGetComparesKeys(t *testing.T) {
	s := New(100, 1<<20)
	a, b := parsed(t, "a.example.org.", dns.TypeA, nil), parsed(t, "b.example.org.", dns.TypeA, nil)
	if !s.Put(a, reply(t, "a.example.org.", dns.TypeA, nil, "a.example.org. 30 A 192.0.2.1"), PutOptions{Now: start}) {
		t.Fatal("refused")
	}
	e := s.Get(a, start)
	e.hash = b.Hash()
	// Into a store of its own: where a's and b's chains are one, e would follow itself in this one.
	other := New(100, 1<<20)
	other.shard(b.Hash()).insert(e)
	if other.Get(b, start) != nil {
		t.Error("a's answer for b")
	}
}

// chain is a cache of a record: it counts whole seconds since it stored it.
type chain struct {
	stored int64
	ttl    uint32
}

func (c chain) at(now int64) int64 { return int64(c.ttl) - (now-c.stored)/second }

// A replayed TTL is never more than the chain would say, and at most 1 s less; and while the chain has
// more than 1 s, there is an answer.
func TestTTLsFollowTheChain(t *testing.T) {
	const name = "www.example.org."
	q := parsed(t, name, dns.TypeA, nil)
	rnd := rand.New(rand.NewPCG(3, 4))
	s := New(10, 1<<20)
	equal, less := 0, 0
	for range 5000 {
		c := chain{stored: start + rnd.Int64N(2*second), ttl: 2 + rnd.Uint32N(8)}
		life := int64(c.ttl) * second
		learnt := c.stored + rnd.Int64N(life) // when the chain read its clock
		if rnd.IntN(4) == 0 {
			learnt -= (learnt - c.stored) % second // as its second begins
		}
		said := c.at(learnt)
		late := rnd.Int64N(2) * rnd.Int64N(second/2) // how long before that the query was received
		answer := reply(t, name, dns.TypeA, nil, fmt.Sprintf("%s %d A 192.0.2.1", name, said), fmt.Sprintf("%s %d A 192.0.2.2", name, said+5))
		stored := s.Put(q, answer, PutOptions{Now: learnt - late})
		if stored != (said > 1) {
			t.Fatalf("an answer for %d s is stored: %v", said, stored)
		}
		for range 20 {
			now := learnt + rnd.Int64N(life+2*second)
			if rnd.IntN(4) == 0 {
				now += (second - (now-learnt)%second) % second // a whole second later
			}
			want := c.at(now)
			e := s.Get(q, now)
			if e == nil {
				if want > 1 && late == 0 {
					t.Fatalf("nothing for %d s more (%+v, learnt %d, now %d)", want, c, learnt, now)
				}
				continue
			}
			m := unpack(t, e.Append(nil, q, now))
			got := int64(m.Answer[0].Header().Ttl)
			if got < 1 || got > want || late == 0 && got < want-1 || got < want-2 {
				t.Fatalf("%d s, the chain says %d (%+v, learnt %d, late %d, now %d)", got, want, c, learnt, late, now)
			}
			if second := int64(m.Answer[1].Header().Ttl); second != got+5 {
				t.Fatalf("TTLs %d and %d", got, second)
			}
			if got == want {
				equal++
			} else {
				less++
			}
		}
	}
	if equal < 1000 || less < 1000 {
		t.Errorf("%d times the chain's TTL, %d times less: both should be frequent", equal, less)
	}
}

func TestPassAfter(t *testing.T) {
	const name = "www.example.org."
	q := parsed(t, name, dns.TypeA, nil)
	answer := reply(t, name, dns.TypeA, nil, name+" 30 A 192.0.2.1")
	pass := start + 20*second
	for _, c := range []struct {
		pass, now int64
		want      bool
	}{
		{pass, start, true}, {pass, pass - 1, true}, {pass, pass, false}, {pass, pass + 1, false},
		{0, start + 29*second, true}, {0, start + 29*second + 1, false},
		{start + 40*second, start + 29*second, true}, {start + 40*second, start + 29*second + 1, false},
	} {
		s := New(10, 1<<20)
		if !s.Put(q, answer, PutOptions{Now: start, PassAfter: c.pass}) {
			t.Fatal("refused")
		}
		if got := s.Get(q, c.now) != nil; got != c.want {
			t.Errorf("pass after %d, now %d: found %v", c.pass-start, c.now-start, got)
		}
	}
}

func TestRotate(t *testing.T) {
	const name = "www.example.org."
	q := parsed(t, name, dns.TypeANY, nil)
	answer := reply(t, name, dns.TypeANY, nil, name+" 30 TXT x", name+" 30 A 192.0.2.0", name+" 30 A 192.0.2.1", name+" 30 A 192.0.2.2",
		name+" 30 AAAA 2001:db8::0", name+" 30 AAAA 2001:db8::1", "|", "|",
		"a.example.org. 30 A 192.0.2.0", "b.example.org. 30 A 192.0.2.7", "a.example.org. 30 A 192.0.2.1")
	s := New(10, 1<<20)
	if !s.Put(q, answer, PutOptions{Now: start, Rotate: true}) {
		t.Fatal("refused")
	}
	e := s.Get(q, start)
	seen := map[string]int{}
	for range 2000 {
		m := unpack(t, e.Append(nil, q, start))
		last := func(r dns.RR) int {
			if a, ok := r.(*dns.A); ok {
				return int(a.A[3])
			}
			return int(r.(*dns.AAAA).AAAA[15])
		}
		a, aaaa, extra := last(m.Answer[1]), last(m.Answer[4]), last(m.Extra[0])
		for i := range 3 {
			if last(m.Answer[1+i]) != (a+i)%3 {
				t.Fatalf("no rotation: %v", m)
			}
		}
		if last(m.Answer[5]) != 1-aaaa || last(m.Extra[2]) != 1-extra || last(m.Extra[1]) != 7 {
			t.Fatalf("no rotation: %v", m)
		}
		seen[fmt.Sprint("A ", a)]++
		seen[fmt.Sprint("AAAA ", aaaa)]++
		seen[fmt.Sprint("additional ", extra)]++
	}
	for _, position := range []string{"A 0", "A 1", "A 2", "AAAA 0", "AAAA 1", "additional 0", "additional 1"} {
		if seen[position] < 400 { // of 667 or 1000 on average, by more than ten standard deviations
			t.Errorf("%s is first in %d of 2000 replays", position, seen[position])
		}
	}
	if !s.Put(q, answer, PutOptions{Now: start}) {
		t.Fatal("refused")
	}
	e = s.Get(q, start)
	for range 100 {
		if msg := e.Append(nil, q, start); !bytes.Equal(msg[2:], answer[2:]) {
			t.Fatal("rotated without having been asked to")
		}
	}
}

// An entry is immutable, and a late Append does not wrap a TTL around.
func TestAppendAfterItsTime(t *testing.T) {
	const name = "www.example.org."
	q := parsed(t, name, dns.TypeA, nil)
	s := New(10, 1<<20)
	s.Put(q, reply(t, name, dns.TypeA, nil, name+" 30 A 192.0.2.1"), PutOptions{Now: start})
	e := s.Get(q, start)
	for now, want := range map[int64]uint32{start - 5*second: 30, start + 30*second: 0, start + int64(100*24*time.Hour): 0} {
		msg := e.Append(nil, q, now)
		if got := unpack(t, msg).Answer[0].Header().Ttl; got != want {
			t.Errorf("%d s after the answer its TTL is %d, want %d", (now-start)/second, got, want)
		}
		if binary.BigEndian.Uint16(msg) != q.ID() {
			t.Error("other ID")
		}
	}
}

func TestHitAllocatesNothing(t *testing.T) {
	const name = "www.example.org."
	msg, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var q wire.Query
	q.Parse(msg)
	s := New(10, 1<<20)
	s.Put(&q, reply(t, name, dns.TypeA, nil, name+" 30 A 192.0.2.1", name+" 30 A 192.0.2.2"), PutOptions{Now: start, Rotate: true})
	buf := make([]byte, 0, 512)
	if n := testing.AllocsPerRun(100, func() {
		q.Parse(msg)
		e := s.Get(&q, start+second)
		if len(e.Append(buf, &q, start+second)) == 0 {
			t.Fatal("no answer")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

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
		*sections[0] = append(*sections[0], rr(t, s))
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

func rcode(code int) func(*dns.Msg) { return func(m *dns.Msg) { m.Rcode = code } }

const (
	testSOA = "example.org. 30 SOA ns.example.org. hostmaster.example.org. 1 7200 1800 86400 30"
	testSIG = "example.org. 30 RRSIG A 8 2 30 20300101000000 20200101000000 1 example.org. aaaa"
)

func goodAnswers(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"address":   reply(t, "www.example.org.", dns.TypeA, nil, "www.example.org. 30 A 192.0.2.1"),
		"addresses": reply(t, "www.example.org.", dns.TypeA, nil, "www.example.org. 30 A 192.0.2.1", "www.example.org. 30 A 192.0.2.2", "www.example.org. 30 A 192.0.2.3"),
		"AAAA":      reply(t, "www.example.org.", dns.TypeAAAA, edns(1232, false), "www.example.org. 5 AAAA 2001:db8::1", "www.example.org. 5 AAAA 2001:db8::2"),
		"alias":     reply(t, "www.example.org.", dns.TypeA, nil, "www.example.org. 300 CNAME a.cdn.example.", "a.cdn.example. 20 A 192.0.2.1", "a.cdn.example. 20 A 192.0.2.2"),
		"NODATA":    reply(t, "www.example.org.", dns.TypeAAAA, edns(1232, true), "|", testSOA, testSIG),
		"NXDOMAIN":  reply(t, "www.example.org.", dns.TypeA, rcode(dns.RcodeNameError), "|", testSOA),
		"alias to NXDOMAIN": reply(t, "www.example.org.", dns.TypeA, rcode(dns.RcodeNameError),
			"www.example.org. 9 CNAME gone.example.org.", "|", testSOA),
		"service": reply(t, "_dns._udp.kube-dns.svc.cluster.local.", dns.TypeSRV, nil,
			"_dns._udp.kube-dns.svc.cluster.local. 30 SRV 0 50 53 a.kube-dns.svc.cluster.local.",
			"_dns._udp.kube-dns.svc.cluster.local. 30 SRV 0 50 53 b.kube-dns.svc.cluster.local.", "|", "|",
			"a.kube-dns.svc.cluster.local. 30 A 10.0.0.1", "b.kube-dns.svc.cluster.local. 30 A 10.0.0.2"),
		"truncated":               reply(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) { m.Truncated = true }, "www.example.org. 30 A 192.0.2.1"),
		"root":                    reply(t, ".", dns.TypeNS, nil, ". 3600 NS a.root-servers.net.", ". 3600 NS b.root-servers.net.", "|", "|", "a.root-servers.net. 3600 A 198.41.0.4"),
		"case":                    reply(t, "WwW.example.org.", dns.TypeA, nil, "www.example.org. 30 A 192.0.2.1", "www.example.org. 30 A 192.0.2.2"),
		"NXDOMAIN with addresses": reply(t, "www.example.org.", dns.TypeA, rcode(dns.RcodeNameError), "www.example.org. 9 A 192.0.2.1", "www.example.org. 9 A 192.0.2.2"),
		"scattered":               reply(t, "a.example.org.", dns.TypeANY, nil, "a.example.org. 30 A 192.0.2.1", "a.example.org. 30 AAAA 2001:db8::1", "a.example.org. 30 A 192.0.2.2"),
		"owner written twice": reply(t, "b.example.org.", dns.TypeNS, nil, "b.example.org. 30 NS c.", "|", "|",
			"a.example.org. 30 A 192.0.2.1", "A.example.org. 30 A 192.0.2.2", "a.example.org. 30 A 192.0.2.3"),
		"largest TTL": reply(t, "www.example.org.", dns.TypeA, nil, "www.example.org. 2147483647 A 192.0.2.1"),
	}
}

func TestParseAnswer(t *testing.T) {
	for name, want := range map[string]Answer{
		"address": {Question: 21, MinTTL: 30, TTLs: []uint16{39}, Rotatable: true},
		"addresses": {Question: 21, MinTTL: 30, TTLs: []uint16{39, 55, 71}, Rotatable: true,
			Sets: []Set{{4, []uint16{45, 61, 77}}}},
		"AAAA": {Question: 21, MinTTL: 5, TTLs: []uint16{39, 67}, Rotatable: true,
			Sets: []Set{{16, []uint16{45, 73}}}},
		"alias": {Question: 21, MinTTL: 20, TTLs: []uint16{39, 66, 82}, Rotatable: true,
			Sets: []Set{{4, []uint16{72, 88}}}},
		"NODATA":            {Question: 21, MinTTL: 30, TTLs: []uint16{39, 89}, Rotatable: true},
		"NXDOMAIN":          {Question: 21, MinTTL: 30, TTLs: []uint16{39}, Rcode: 3, Rotatable: true},
		"alias to NXDOMAIN": {Question: 21, MinTTL: 9, TTLs: []uint16{39, 58}, Rcode: 3, Rotatable: true},
		"service":           {Question: 42, MinTTL: 30, TTLs: []uint16{60, 108, 156, 172}, Rotatable: true},
		"truncated":         {Question: 21, MinTTL: 30, TTLs: []uint16{39}, Truncated: true, Rotatable: true},
		"root":              {Question: 5, MinTTL: 3600, TTLs: []uint16{22, 53, 69}, Rotatable: true},
		"case": {Question: 21, MinTTL: 30, TTLs: []uint16{43, 59}, Rotatable: true,
			Sets: []Set{{4, []uint16{49, 65}}}},
		"NXDOMAIN with addresses": {Question: 21, MinTTL: 9, TTLs: []uint16{39, 55}, Rcode: 3, Rotatable: true},
		"scattered": {Question: 19, MinTTL: 30, TTLs: []uint16{37, 53, 81}, Rotatable: true,
			Sets: []Set{{4, []uint16{43, 87}}}},
		"owner written twice": {Question: 19, MinTTL: 30, TTLs: []uint16{37, 54, 72, 88}, Rotatable: true,
			Sets: []Set{{4, []uint16{60, 78, 94}}}},
		"largest TTL": {Question: 21, MinTTL: 1<<31 - 1, TTLs: []uint16{39}, Rotatable: true},
	} {
		t.Run(name, func(t *testing.T) {
			msg := goodAnswers(t)[name]
			got, err := ParseAnswer(msg)
			if err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			checkAnswer(t, msg, got)
		})
	}
}

// checkAnswer compares a with what miekg/dns reads in msg. It does nothing where that reads nothing.
func checkAnswer(t *testing.T, msg []byte, a Answer) {
	t.Helper()
	m := new(dns.Msg)
	if m.Unpack(msg) != nil {
		return // RDATA that is wrong in its own ways is not read here
	}
	if !m.Response || m.Opcode != dns.OpcodeQuery || m.Rcode != a.Rcode || m.Truncated != a.Truncated || len(m.Question) != 1 {
		t.Fatalf("%+v for %v", a, m)
	}
	if name := wireName(t, m.Question[0].Name); a.Question != len(name)+4 {
		t.Fatalf("a question of %d octets: %v", a.Question, m.Question[0])
	}
	var ttls []uint32
	for _, r := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		if r.Header().Rrtype != dns.TypeOPT {
			ttls = append(ttls, r.Header().Ttl)
		}
	}
	if len(ttls) != len(a.TTLs) || slices.Min(ttls) != a.MinTTL {
		t.Fatalf("%d TTLs, the least %d, for %v", len(a.TTLs), a.MinTTL, m)
	}
	for i, off := range a.TTLs {
		if got := binary.BigEndian.Uint32(msg[off:]); got != ttls[i] {
			t.Fatalf("TTL %d is %d, want %d", i, got, ttls[i])
		}
	}
	for _, r := range slices.Concat(m.Answer, m.Ns, m.Extra) {
		switch r := r.(type) {
		case *dns.OPT:
			if len(r.Option) != 0 || r.Version() != 0 {
				t.Fatalf("accepted %v", r)
			}
		case *dns.TSIG, *dns.TKEY, *dns.SIG:
			t.Fatalf("accepted %v", r)
		}
	}
	checkSets(t, m, a)
}

// checkSets counts the RRsets of addresses, by names and not by octets.
func checkSets(t *testing.T, m *dns.Msg, a Answer) {
	t.Helper()
	if !a.Rotatable {
		if a.Sets != nil {
			t.Fatalf("not rotatable, but %v", a.Sets)
		}
		return
	}
	if m.Rcode != 0 {
		if a.Sets != nil {
			t.Fatalf("%v, which nobody rotates: %v", a.Sets, m)
		}
		return
	}
	var want, got []int
	for _, section := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		counts := map[string]int{}
		ttls := map[string]uint32{}
		exchangers := 0
		for _, r := range section {
			h := r.Header()
			switch h.Rrtype {
			case dns.TypeMX:
				exchangers++
			case dns.TypeA, dns.TypeAAAA:
				key := fmt.Sprint(strings.ToLower(h.Name), h.Rrtype, h.Class)
				if counts[key]++; counts[key] > 1 && ttls[key] != h.Ttl {
					t.Fatalf("rotatable with TTLs that differ: %v", m)
				}
				ttls[key] = h.Ttl
			}
		}
		if exchangers > 1 {
			t.Fatalf("rotatable with mail exchangers: %v", m)
		}
		for _, n := range counts {
			if n > 1 {
				want = append(want, n)
			}
		}
	}
	for _, s := range a.Sets {
		got = append(got, len(s.RDATA))
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("sets of %v addresses, want %v: %v", got, want, m)
	}
}

func TestParseAnswerNotRotatable(t *testing.T) {
	many := []string{"|", "|"}
	for i := range maxSets + 1 {
		many = append(many, fmt.Sprintf("a%d.example.org. 30 A 192.0.2.1", i))
	}
	for name, msg := range map[string][]byte{
		"TTLs differ":      reply(t, "a.example.org.", dns.TypeA, nil, "a.example.org. 30 A 192.0.2.1", "a.example.org. 31 A 192.0.2.2"),
		"mail exchangers":  reply(t, "a.example.org.", dns.TypeMX, nil, "a.example.org. 30 MX 1 m1.example.org.", "a.example.org. 30 MX 1 m2.example.org."),
		"too many to tell": reply(t, "b.example.org.", dns.TypeTXT, nil, append([]string{"b.example.org. 30 TXT x"}, many...)...),
	} {
		a, err := ParseAnswer(msg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a.Rotatable || a.Sets != nil {
			t.Errorf("%s: %+v", name, a)
		}
		checkAnswer(t, msg, a)
	}
}

func TestParseAnswerRefuses(t *testing.T) {
	address := "www.example.org. 30 A 192.0.2.1"
	with := func(edit func(*dns.Msg), records ...string) []byte {
		return reply(t, "www.example.org.", dns.TypeA, edit, records...)
	}
	raw := func(edit func([]byte) []byte, records ...string) []byte { return edit(with(nil, records...)) }
	set := func(off int, b byte) []byte {
		return raw(func(m []byte) []byte { m[off] = b; return m }, address)
	}
	const question, record = headerSize, headerSize + 21 // where address has its question and its record
	for name, msg := range map[string][]byte{
		"empty":             {},
		"query":             with(func(m *dns.Msg) { m.Response = false }, address),
		"notify":            with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }, address),
		"Z":                 with(func(m *dns.Msg) { m.Zero = true }, address),
		"SERVFAIL":          with(rcode(dns.RcodeServerFailure), "|", testSOA),
		"REFUSED":           with(rcode(dns.RcodeRefused), address),
		"extended RCODE":    with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.Rcode = dns.RcodeBadVers }, address),
		"EDNS version":      with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }, address),
		"option":            with(option(&dns.EDNS0_EDE{InfoCode: 3}), address),
		"two OPT records":   with(func(m *dns.Msg) { m.SetEdns0(1, false); m.SetEdns0(1, false) }, address),
		"OPT in answer":     with(nil, address, ". 1 TYPE41 \\# 0"),
		"OPT of an owner":   with(nil, address, "|", "|", "example.org. 0 TYPE41 \\# 0"),
		"no question":       with(func(m *dns.Msg) { m.Question = nil }, address),
		"two questions":     with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }, address),
		"no records":        with(nil),
		"only OPT":          with(edns(1232, false)),
		"TTL 0":             with(nil, "www.example.org. 0 A 192.0.2.1"),
		"one TTL 0":         with(nil, address, "|", "example.org. 0 NS ns.example.org."),
		"TTL of 2^31":       with(nil, "www.example.org. 2147483648 A 192.0.2.1"),
		"TTL of 2^32-1":     with(nil, "www.example.org. 4294967295 A 192.0.2.1"),
		"TSIG":              with(func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 1) }, address),
		"SIG(0)":            with(nil, address, "|", "|", ". 1 TYPE24 \\# 19 0000 08 00 00000000 00000000 00000000 0001 00"),
		"type of question":  with(nil, address, "www.example.org. 1 TYPE255 \\# 0"),
		"NXNAME":            with(nil, address, "www.example.org. 1 TYPE128 \\# 0"),
		"gateway":           with(nil, address, "www.example.org. 1 IPSECKEY 10 3 2 mygateway.example.com. AQNRU3mG7TVTO2BkR47usntb102uFJtugbo6BSGvgqt4AQ=="),
		"short A":           raw(func(m []byte) []byte { m[record+11] = 3; return m[:len(m)-1] }, address),
		"long A":            raw(func(m []byte) []byte { m[record+11] = 5; return append(m, 0) }, address),
		"trailing octet":    raw(func(m []byte) []byte { return append(m, 0) }, address),
		"long CNAME":        raw(func(m []byte) []byte { m[record+11]++; return append(m, 0) }, "www.example.org. 30 CNAME a."),
		"short SOA":         raw(func(m []byte) []byte { m[record+11]--; return m[:len(m)-1] }, "|", testSOA),
		"empty CNAME":       raw(func(m []byte) []byte { m[record+11] = 0; return m[:record+12] }, "www.example.org. 30 CNAME a."),
		"too long":          with(nil, address, "www.example.org. 30 TXT"+strings.Repeat(" "+strings.Repeat("x", 255), 16)),
		"answer count":      set(7, 2),
		"authority count":   set(9, 1),
		"additional count":  set(11, 1),
		"compressed name":   set(question, 0xc0),
		"label of 64":       set(question, 0x40),
		"label over end":    set(question, 63),
		"label type 01":     set(record, 0x40),
		"label type 10":     set(record, 0x80),
		"points at itself":  set(record+1, record),
		"points forward":    set(record+1, record+12),
		"points at header":  set(record+1, 3),
		"points in a label": set(record+1, question+1),
		"points at an end":  set(record+1, question+16),
		"points at a type":  set(record+1, question+18),
		"points far away":   set(record, 0xff),
		"points into itself": raw(func(m []byte) []byte {
			return append(m[:record], 1, 'a', 0xc0, record, 0, 16, 0, 1, 0, 0, 0, 30, 0, 2, 1, 'x')
		}, address),
		// The address 1.97.0.2 is also the name a. for who looks at it so; rotated it would be another.
		"points at an address": raw(func(m []byte) []byte {
			m[7] = 2
			return append(m, 0xc0, record+12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1)
		}, "www.example.org. 30 A 1.97.0.2"),
		"points at a TTL": raw(func(m []byte) []byte {
			m[7] = 2
			return append(m, 0xc0, record+6, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1)
		}, "www.example.org. 90177536 A 192.0.2.1"), // 0x05600000
		"target points at a TTL": raw(func(m []byte) []byte {
			m[7] = 2
			return append(m, 0xc0, question, 0, 5, 0, 1, 0, 0, 0, 30, 0, 2, 0xc0, record+6)
		}, "www.example.org. 23134208 A 192.0.2.1"), // 0x01610000
	} {
		if a, err := ParseAnswer(msg); err == nil {
			t.Errorf("%s: accepted %x as %+v", name, msg, a)
		} else if r := refusal(""); !errors.As(err, &r) {
			t.Errorf("%s: an error of type %T", name, err)
		}
	}
	for name, msg := range goodAnswers(t) {
		for n := range msg {
			if _, err := ParseAnswer(msg[:n]); err == nil {
				t.Errorf("%s: accepted with %d of %d octets", name, n, len(msg))
			}
		}
	}
}

// A chain of pointers may not make a name longer than 255 octets, as may not a name in one piece.
func TestParseAnswerLongNames(t *testing.T) {
	label := strings.Repeat("a", 62) + "."
	long := strings.Repeat(label, 4) // 4*63+1 = 253 octets
	good := reply(t, long, dns.TypeTXT, nil, "b."+strings.Repeat(label, 3)+" 1 TXT x")
	if _, err := ParseAnswer(good); err != nil {
		t.Fatal(err)
	}
	for extra, want := range map[string]bool{"\x00": true, "\x01b": true, "\x02bb": false, "\x01b\x01b": false} {
		msg := good[: headerSize+253+4 : headerSize+253+4]
		msg = append(msg, strings.TrimSuffix(extra, "\x00")...)
		msg = append(msg, 0xc0, headerSize, 0, 16, 0, 1, 0, 0, 0, 1, 0, 2, 1, 'x')
		if _, err := ParseAnswer(msg); (err == nil) != want {
			t.Errorf("with %q: %v", extra, err)
		}
	}
	piece := bytes.Repeat(append([]byte{63}, bytes.Repeat([]byte{'a'}, 63)...), 4) // and a root: 257 octets
	msg := append(bytes.Clone(good[:headerSize]), piece...)
	msg = append(msg, 0, 0, 16, 0, 1, 0, 0, 16, 0, 1, 0, 0, 0, 1, 0, 2, 1, 'x')
	if _, err := ParseAnswer(msg); err == nil {
		t.Error("accepted a name of 257 octets")
	}
}

// What miekg/dns packs of ordinary records is accepted, compressed or not: the path would be slow else.
func TestParseAnswerTakesWhatIsPacked(t *testing.T) {
	records := []string{
		"A 192.0.2.1", "A 192.0.2.2", "AAAA 2001:db8::1", "CNAME www.example.org.", "NS ns1.example.org.",
		"SOA ns.example.org. hostmaster.example.org. 1 2 3 4 5", "PTR host.example.org.", "MX 10 mail.example.org.",
		"TXT some text", "SRV 0 5 5060 sip.example.org.", `NAPTR 100 10 "u" "E2U+sip" "!^.*$!sip:info@example.org!" .`,
		"DNAME example.net.", "RP mbox.example.org. txt.example.org.", "AFSDB 1 afs.example.org.", "CAA 0 issue ca.example.org",
		"DS 60485 5 1 2BB183AF5F22588179A53B0A98631FAD1A292118", "KX 1 kx.example.org.", "MINFO a.example.org. b.example.org.",
		"RRSIG A 8 2 30 20300101000000 20200101000000 1 example.org. aaaa", "NSEC z.example.org. A TXT", "RT 1 rt.example.org.",
		"NSEC3 1 1 12 aabbccdd 2vptu5timamqttgl4luu9kg21e0aor3s A RRSIG", "PX 1 a.example.org. b.example.org.", "HINFO a b",
		"SVCB 1 svc.example.org. alpn=h2", "HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1", "TLSA 3 1 1 d2abde24", "LOC 51 0 0 N 0 0 0 E 0m",
		"TYPE65280 \\# 3 c00c00", "URI 10 1 \"https://example.org\"", "LP 1 l.example.org.", "TALINK a.example.org. b.example.org.",
		"NSAP-PTR a.example.org.", "MB a.example.org.", "SSHFP 1 1 aabb", "DNSKEY 256 3 8 aaaa",
	}
	owners := []string{"example.org.", "www.example.org.", "a.b.c.example.org.", "example.net.", "WWW.Example.org.", `a\.b.org.`, "."}
	rnd := rand.New(rand.NewPCG(1, 2))
	kinds := map[uint16]bool{}
	for range 3000 {
		m := new(dns.Msg).SetReply(new(dns.Msg).SetQuestion(owners[rnd.IntN(len(owners))], dns.TypeANY))
		m.Compress = rnd.IntN(4) > 0
		for _, section := range []*[]dns.RR{&m.Answer, &m.Ns, &m.Extra} {
			for range 1 + rnd.IntN(4) {
				r := rr(t, owners[rnd.IntN(len(owners))]+" 30 "+records[rnd.IntN(len(records))])
				kinds[r.Header().Rrtype] = true
				*section = append(*section, r)
			}
		}
		if rnd.IntN(2) == 0 {
			m.SetEdns0(1232, rnd.IntN(2) == 0)
		}
		msg, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		a, err := ParseAnswer(msg)
		if err != nil {
			t.Fatalf("%v: %v", err, m)
		}
		checkAnswer(t, msg, a)
	}
	if len(kinds) < len(records)-1 {
		t.Errorf("only %d types of %d were tried", len(kinds), len(records))
	}
}

func BenchmarkParseAnswer(b *testing.B) {
	for _, name := range []string{"address", "service", "NXDOMAIN"} {
		msg := goodAnswers(b)[name]
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseAnswer(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

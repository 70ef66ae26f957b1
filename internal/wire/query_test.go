package wire

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

// pack makes a query as clients do: RD, and what edit changes.
func pack(t testing.TB, name string, kind uint16, edit func(*dns.Msg)) []byte {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, kind)
	m.Id = 0x1234
	if edit != nil {
		edit(m)
	}
	msg, err := m.Pack()
	if err != nil {
		t.Fatalf("packing a query for %s: %v", name, err)
	}
	return msg
}

func edns(size uint16, do bool) func(*dns.Msg) { return func(m *dns.Msg) { m.SetEdns0(size, do) } }

var longName = strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61) + "."

func plainQueries(t testing.TB) map[string][]byte {
	return map[string][]byte{
		"A":            pack(t, "kubernetes.default.svc.cluster.local.", dns.TypeA, nil),
		"AAAA":         pack(t, "kubernetes.default.svc.cluster.local.", dns.TypeAAAA, nil),
		"case":         pack(t, "KuberneteS.Default.svc.CLUSTER.local.", dns.TypeA, nil),
		"EDNS":         pack(t, "example.org.", dns.TypeA, edns(1232, false)),
		"DO":           pack(t, "example.org.", dns.TypeA, edns(4096, true)),
		"size":         pack(t, "example.org.", dns.TypeA, edns(0, true)),
		"AD":           pack(t, "example.org.", dns.TypeA, func(m *dns.Msg) { m.AuthenticatedData = true }),
		"CD":           pack(t, "example.org.", dns.TypeA, func(m *dns.Msg) { m.CheckingDisabled = true }),
		"no RD":        pack(t, "example.org.", dns.TypeA, func(m *dns.Msg) { m.RecursionDesired = false }),
		"root":         pack(t, ".", dns.TypeNS, nil),
		"chaos":        pack(t, "version.bind.", dns.TypeTXT, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }),
		"longest name": pack(t, longName, dns.TypeA, edns(1232, false)),
		"octets":       pack(t, `\000\255\@[\`+"`"+`{.a\.b\032c.org.`, dns.TypeA, nil),
		"many labels":  pack(t, strings.Repeat("x.", 127), dns.TypeANY, nil),
	}
}

// checkQuery compares q, which read msg, with what miekg/dns reads there.
func checkQuery(t *testing.T, q *Query, msg []byte) {
	t.Helper()
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		t.Fatalf("accepted, but %v: %x", err, msg)
	}
	if !plain(m) {
		t.Fatalf("accepted, but it is not plain: %v", m)
	}
	asked := m.Question[0]
	var size uint16
	var f byte
	opt := m.IsEdns0()
	if opt != nil {
		size = opt.UDPSize()
		f |= flagEDNS
		if opt.Do() {
			f |= flagDO
		}
	}
	if m.RecursionDesired {
		f |= flagRD
	}
	if m.CheckingDisabled {
		f |= flagCD
	}
	if m.AuthenticatedData {
		f |= flagAD
	}
	name := wireName(t, dns.CanonicalName(asked.Name))
	key := binary.BigEndian.AppendUint16(bytes.Clone(name), asked.Qtype)
	key = binary.BigEndian.AppendUint16(key, asked.Qclass)
	key = append(key, f)
	key = binary.BigEndian.AppendUint16(key, size)
	if !bytes.Equal(q.Key(), key) {
		t.Fatalf("key %x, want %x", q.Key(), key)
	}
	if !bytes.Equal(q.Name(), name) {
		t.Fatalf("name %x, want %x", q.Name(), name)
	}
	if want := msg[headerSize : headerSize+len(name)+4]; !bytes.Equal(q.Question(), want) || !q.Asks(want) {
		t.Fatalf("question %x, want %x", q.Question(), want)
	}
	if q.ID() != m.Id || q.Type() != asked.Qtype || q.Class() != asked.Qclass || q.Size() != size ||
		q.RD() != m.RecursionDesired || q.AD() != m.AuthenticatedData || q.CD() != m.CheckingDisabled ||
		q.EDNS() != (opt != nil) || q.DO() != (opt != nil && opt.Do()) {
		t.Fatalf("id %d type %d class %d size %d RD %v AD %v CD %v EDNS %v DO %v, want %v",
			q.ID(), q.Type(), q.Class(), q.Size(), q.RD(), q.AD(), q.CD(), q.EDNS(), q.DO(), m)
	}
}

// plain says of a message what Parse says of its octets.
func plain(m *dns.Msg) bool {
	if m.Response || m.Opcode != dns.OpcodeQuery || m.Authoritative || m.Truncated || m.RecursionAvailable ||
		m.Zero || m.Rcode != 0 || len(m.Question) != 1 || len(m.Answer)+len(m.Ns) != 0 || len(m.Extra) > 1 {
		return false
	}
	if len(m.Extra) == 0 {
		return true
	}
	opt, ok := m.Extra[0].(*dns.OPT)
	return ok && opt.Hdr.Name == "." && opt.Hdr.Ttl&^0x8000 == 0 && len(opt.Option) == 0
}

func wireName(t *testing.T, name string) []byte {
	t.Helper()
	buf := make([]byte, 256)
	n, err := dns.PackDomainName(name, buf, 0, nil, false)
	if err != nil {
		t.Fatalf("packing %s: %v", name, err)
	}
	return buf[:n]
}

func TestParse(t *testing.T) {
	var q Query // one for all: nothing of one query may show in the next
	for range 2 {
		for name, msg := range plainQueries(t) {
			t.Run(name, func(t *testing.T) {
				if !q.Parse(msg) {
					t.Fatalf("refused: %x", msg)
				}
				checkQuery(t, &q, msg)
			})
		}
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(edit func(*dns.Msg)) []byte { return pack(t, "example.org.", dns.TypeA, edit) }
	raw := func(from []byte, edit func([]byte) []byte) []byte { return edit(bytes.Clone(from)) }
	set := func(from []byte, off int, b byte) []byte {
		return raw(from, func(m []byte) []byte { m[off] = b; return m })
	}
	label := func(n int) []byte { return append([]byte{byte(n)}, bytes.Repeat([]byte{'a'}, n)...) }
	named := func(name []byte) []byte {
		return slices.Concat([]byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}, name, []byte{0, 1, 0, 1})
	}
	if name := slices.Concat(label(63), label(63), label(63), label(61), []byte{0}); !new(Query).Parse(named(name)) {
		t.Fatal("a name of 255 octets is refused")
	}
	query, opt := with(nil), with(edns(1232, false))
	end := len(query) // where opt has its OPT record
	for name, msg := range map[string][]byte{
		"empty":                   {},
		"answer":                  with(func(m *dns.Msg) { m.Response = true }),
		"notify":                  with(func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }),
		"update":                  with(func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }),
		"AA":                      with(func(m *dns.Msg) { m.Authoritative = true }),
		"TC":                      with(func(m *dns.Msg) { m.Truncated = true }),
		"RA":                      with(func(m *dns.Msg) { m.RecursionAvailable = true }),
		"Z":                       with(func(m *dns.Msg) { m.Zero = true }),
		"RCODE":                   with(func(m *dns.Msg) { m.Rcode = 1 }),
		"no question":             with(func(m *dns.Msg) { m.Question = nil }),
		"two questions":           with(func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }),
		"answer record":           with(func(m *dns.Msg) { m.Answer = []dns.RR{rr(t, "a. 1 A 192.0.2.1")} }),
		"authority record":        with(func(m *dns.Msg) { m.Ns = []dns.RR{rr(t, "a. 1 A 192.0.2.1")} }),
		"additional record":       with(func(m *dns.Msg) { m.Extra = []dns.RR{rr(t, ". 1 A 192.0.2.1")} }),
		"two OPT records":         with(func(m *dns.Msg) { m.SetEdns0(1, false); m.SetEdns0(1, false) }),
		"cookie":                  with(option(&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"})),
		"client subnet":           with(option(&dns.EDNS0_LOCAL{Code: dns.EDNS0SUBNET, Data: []byte{0, 1, 0, 0}})),
		"empty option":            with(option(&dns.EDNS0_LOCAL{Code: dns.EDNS0LOCALSTART})),
		"TSIG":                    with(func(m *dns.Msg) { m.SetTsig("key.", dns.HmacSHA256, 300, 1) }),
		"EDNS version":            with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetVersion(1) }),
		"EDNS flag":               with(func(m *dns.Msg) { m.SetEdns0(1232, false); m.IsEdns0().SetZ(1) }),
		"extended RCODE":          set(opt, end+5, 1),
		"OPT with an owner":       raw(opt, func(m []byte) []byte { m[end] = 1; return append(m, 0) }),
		"OPT and a name's root":   set(opt, end, 1),
		"other type than OPT":     set(opt, end+2, 40),
		"options cut off":         set(opt, end+10, 1),
		"OPT not counted":         set(opt, 11, 0),
		"OPT not there":           set(query, 11, 1),
		"two not there":           set(query, 11, 2),
		"OPT as authority":        raw(opt, func(m []byte) []byte { m[9], m[11] = 1, 0; return m }),
		"additional count":        set(opt, 10, 1),
		"trailing octet":          append(bytes.Clone(query), 0),
		"trailing after OPT":      append(bytes.Clone(opt), 0),
		"compressed":              set(query, headerSize, 0xc0),
		"label of 64":             set(query, headerSize, 64),
		"extended label":          set(query, headerSize, 0x41),
		"name without an end":     raw(query, func(m []byte) []byte { return append(m[:headerSize], 3, 1, 2, 3, 1, 2) }),
		"label over the end":      set(query, headerSize, 63),
		"well-formed label of 64": named(append(label(64), 0)),
		"name of 256":             named(slices.Concat(label(63), label(63), label(63), label(62), []byte{0})),
	} {
		if new(Query).Parse(msg) {
			t.Errorf("%s: accepted %x", name, msg)
		}
	}
	for name, msg := range plainQueries(t) {
		for n := range msg {
			if new(Query).Parse(msg[:n]) {
				t.Errorf("%s: accepted with %d of %d octets", name, n, len(msg))
			}
		}
	}
}

func option(o dns.EDNS0) func(*dns.Msg) {
	return func(m *dns.Msg) {
		m.SetEdns0(1232, false)
		m.IsEdns0().Option = []dns.EDNS0{o}
	}
}

func rr(t testing.TB, s string) dns.RR {
	t.Helper()
	r, err := dns.NewRR(s)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return r
}

// Two queries have the same key only where an answer to the one answers the other.
func TestKey(t *testing.T) {
	var a, b Query
	a.Parse(pack(t, "www.example.org.", dns.TypeA, edns(1232, false)))
	b.Parse(pack(t, "WWW.eXample.oRg.", dns.TypeA, func(m *dns.Msg) { m.Id = 1; m.SetEdns0(1232, false) }))
	if !bytes.Equal(a.Key(), b.Key()) || a.Hash() != b.Hash() {
		t.Error("ID or case changes the key")
	}
	if !a.Asks(b.Question()) || !b.Asks(a.Question()) {
		t.Error("Asks sees the case")
	}
	for name, msg := range map[string][]byte{
		"name":   pack(t, "ww.example.org.", dns.TypeA, edns(1232, false)),
		"dots":   pack(t, `www\.example.org.`, dns.TypeA, edns(1232, false)),
		"type":   pack(t, "www.example.org.", dns.TypeAAAA, edns(1232, false)),
		"size":   pack(t, "www.example.org.", dns.TypeA, edns(1233, false)),
		"DO":     pack(t, "www.example.org.", dns.TypeA, edns(1232, true)),
		"EDNS":   pack(t, "www.example.org.", dns.TypeA, nil),
		"size 0": pack(t, "www.example.org.", dns.TypeA, edns(0, false)),
		"class": pack(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.Question[0].Qclass = dns.ClassCHAOS
		}),
		"RD": pack(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.RecursionDesired = false
		}),
		"AD": pack(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.AuthenticatedData = true
		}),
		"CD": pack(t, "www.example.org.", dns.TypeA, func(m *dns.Msg) {
			m.SetEdns0(1232, false)
			m.CheckingDisabled = true
		}),
	} {
		if !b.Parse(msg) {
			t.Fatalf("%s: refused", name)
		}
		if bytes.Equal(a.Key(), b.Key()) || a.Hash() == b.Hash() {
			t.Errorf("%s does not change the key", name)
		}
		if sameQuestion := bytes.Equal(a.Question(), b.Question()); a.Asks(b.Question()) != sameQuestion {
			t.Errorf("%s: Asks is %v", name, !sameQuestion)
		}
	}
}

func TestLower8(t *testing.T) {
	for b := range 256 {
		want := byte(b)
		if want >= 'A' && want <= 'Z' {
			want += 'a' - 'A'
		}
		if lower(byte(b)) != want {
			t.Errorf("lower(%#x) is %#x", b, lower(byte(b)))
		}
		for _, other := range []byte{0, 'A', 'z', 0xff} { // no octet touches its neighbours
			in := bytes.Repeat([]byte{other, byte(b)}, 4)
			out := make([]byte, 8)
			binary.LittleEndian.PutUint64(out, lower8(binary.LittleEndian.Uint64(in)))
			if !bytes.Equal(out, bytes.Repeat([]byte{lower(other), want}, 4)) {
				t.Errorf("lower8(%x) is %x", in, out)
			}
		}
	}
}

func TestParseAllocatesNothing(t *testing.T) {
	msg := pack(t, "kubernetes.Default.svc.cluster.local.", dns.TypeA, edns(1232, true))
	var q Query
	if n := testing.AllocsPerRun(100, func() {
		if !q.Parse(msg) || q.Hash() == 0 || len(q.Key()) == 0 {
			t.Fatal("refused")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, bench := range []struct {
		name string
		msg  []byte
	}{
		{"40octets", pack(b, "www.cdn.example.com.org.", dns.TypeA, nil)},
		{"service", pack(b, "kubernetes.default.svc.cluster.local.", dns.TypeA, nil)},
		{"EDNS", pack(b, "kubernetes.default.svc.cluster.local.", dns.TypeA, edns(1232, false))},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var q Query
			b.ReportAllocs()
			for b.Loop() {
				if !q.Parse(bench.msg) {
					b.Fatal("refused")
				}
			}
		})
	}
}

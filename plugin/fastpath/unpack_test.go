package fastpath

import (
	"reflect"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/wire"
)

// FuzzUnpack: a plain query that is unpacked by hand is what miekg/dns unpacks.
func FuzzUnpack(f *testing.F) {
	for _, name := range []string{".", "www.Example.", "_dns._udp.a-b.example.", `a\.b.example.`, `\255.example.`, "*.example.", strings.Repeat("abcdefg.", 31) + "abcde."} {
		for _, edns := range []bool{false, true} {
			m := new(dns.Msg).SetQuestion(name, dns.TypeAAAA)
			m.AuthenticatedData, m.CheckingDisabled = edns, !edns
			if edns {
				m.SetEdns0(4096, name != ".")
			}
			packed, err := m.Pack()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(packed)
		}
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var q wire.Query
		var x exchange
		if !q.Parse(msg) || !x.unpack(&q) {
			return
		}
		want := new(dns.Msg)
		if err := want.Unpack(msg); err != nil {
			t.Fatalf("%x is read as %v, the library says %v", msg, &x.req, err)
		}
		for _, section := range []*[]dns.RR{&want.Answer, &want.Ns, &want.Extra} {
			if len(*section) == 0 {
				*section = nil
			}
		}
		if opt := want.IsEdns0(); opt != nil {
			opt.Option = nil // empty
		}
		if !reflect.DeepEqual(&x.req, want) {
			t.Fatalf("%x is read as\n%v\nand not as\n%v", msg, &x.req, want)
		}
	})
}

// TestUnpackAllocates: the name; with EDNS the record and the list that it is in.
func TestUnpackAllocates(t *testing.T) {
	for edns, most := range map[bool]float64{false: 1, true: 3} {
		m := new(dns.Msg).SetQuestion("www.example.", dns.TypeA)
		if edns {
			m.SetEdns0(1232, true)
		}
		packed, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		var q wire.Query
		x := new(exchange)
		if !q.Parse(packed) {
			t.Fatalf("%v is no plain query", m)
		}
		if n := testing.AllocsPerRun(100, func() { x.unpack(&q) }); n > most {
			t.Errorf("EDNS %t: %v allocations", edns, n)
		}
	}
}

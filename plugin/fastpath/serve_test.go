package fastpath

import (
	"bytes"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

const plain = `.:0 {
	bind 127.0.0.1
	errors
	cache
	fastpath
	forward . UPSTREAM
}`

func TestHitIsReplayed(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	for _, q := range []*dns.Msg{
		question("a.example.", dns.TypeA), question("A.Example.", dns.TypeAAAA), question("x.nx.", dns.TypeA),
		question("b.example.", dns.TypeTXT), question("b.alias.", dns.TypeAAAA), question("b.alias.", dns.TypeA),
		question("b.big.", dns.TypeA), question("b.example.", dns.TypeSRV),
		question("a.example.", dns.TypeA).SetEdns0(1232, true),
	} {
		var fromChain, fromMemory []byte
		for range 2 { // a miss, and a hit of cache
			fromChain = c.raw(pack(t, q))
		}
		before := hits(t)
		eventually(t, "a hit for "+q.Question[0].String(), func() bool {
			q.Id++
			fromMemory = c.raw(pack(t, q))
			return settled(t, before)
		})
		var a, b dns.Msg
		if err := a.Unpack(fromChain); err != nil {
			t.Fatal(err)
		}
		if err := b.Unpack(fromMemory); err != nil {
			t.Fatal(err)
		}
		if len(fromChain) != len(fromMemory) {
			t.Errorf("%s: %d octets from the chain, %d from memory", q.Question[0].String(), len(fromChain), len(fromMemory))
		}
		// But for IDs and TTLs they are the same octets.
		level(&a)
		level(&b)
		if x, y := pack(t, &a), pack(t, &b); !bytes.Equal(x, y) {
			t.Errorf("the chain said\n%v\nand memory\n%v", &a, &b)
		}
	}
}

func level(m *dns.Msg) {
	m.Id = 0
	for _, s := range [][]dns.RR{m.Answer, m.Ns, m.Extra} {
		for _, rr := range s {
			if rr.Header().Rrtype != dns.TypeOPT {
				rr.Header().Ttl = 0
			}
		}
	}
}

// blocks that must not be answered from memory, and what the log line names.
func TestBlocksThatAreOff(t *testing.T) {
	u := newUpstream(t)
	for name, test := range map[string]struct{ directives, names string }{
		"acl":              {"acl {\n block net 127.0.0.2/32\n }", `"acl"`},
		"log":              {"log", `"log"`},
		"dns64":            {"dns64", `"dns64"`},
		"rewrite":          {"rewrite name b.example. a.example.", `"rewrite"`},
		"tsig":             {"tsig {\n secret k. NTBkNmI2MTg=\n }", `"tsig"`},
		"dnstap":           {"dnstap tcp://127.0.0.1:1", `"dnstap"`},
		"loadbalance":      {"loadbalance weighted /dev/null", "round_robin"},
		"prefer":           {"loadbalance {\n prefer 10.0.0.0/8\n }", "round_robin"},
		"keepttl":          {"cache {\n keepttl\n }", "keepttl"},
		"no cache":         {"nocache", "no cache"},
		"view":             {"view v {\n expr true\n }", "view"},
		"fastpath off":     {"fastpath off", ""},
		"no fast path":     {"nofastpath", ""},
		"fine, to be sure": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			corefile := ".:0 {\n bind 127.0.0.1\n"
			if !strings.Contains(test.directives, "cache") {
				corefile += "cache\n"
			}
			if !strings.Contains(test.directives, "nofastpath") {
				corefile += "fastpath\n"
			}
			corefile += strings.NewReplacer("nocache", "", "nofastpath", "").Replace(test.directives) + "\nforward . UPSTREAM\n}"
			from := len(logged.String())
			r := run(t, corefile, u)
			if lines := logged.since(from); test.names != "" && (!strings.Contains(lines, test.names) || !strings.Contains(lines, "Corefile:")) {
				t.Errorf("the log names no %s and no line: %s", test.names, lines)
			}
			c := dial(t, r.addr(0))
			if name == "fine, to be sure" {
				c.untilHit("a.example.", dns.TypeA)
				return
			}
			before := hits(t)
			for range 5 {
				c.ask("a.example.", dns.TypeA)
			}
			if settled(t, before) {
				t.Error("a hit of a block that must not have any")
			}
		})
	}
}

// A client that acl blocks is never answered from what another one had learnt.
func TestBlockedClient(t *testing.T) {
	u := newUpstream(t)
	r := run(t, `.:0 {
	bind 127.0.0.1
	acl {
		block net 127.0.0.2/32
	}
	cache
	fastpath
	forward . UPSTREAM
}
open.:0 {
	bind 127.0.0.1
	cache
	fastpath
	forward . UPSTREAM
}`, u)
	good, bad := dial(t, r.addr(0)), dialFrom(t, "127.0.0.2", r.addr(0))
	good.untilHit("a.open.", dns.TypeA) // the server is adopted
	for range 5 {
		if m := good.ask("a.example.", dns.TypeA); m.Rcode != dns.RcodeSuccess {
			t.Fatalf("the good client got %s", dns.RcodeToString[m.Rcode])
		}
		if m := bad.ask("a.example.", dns.TypeA); m.Rcode != dns.RcodeRefused {
			t.Fatalf("the blocked client got %s", dns.RcodeToString[m.Rcode])
		}
	}
}

// What stands behind cache and answers by itself is learnt when cache has it, and what comes before never.
func TestLocalAndAny(t *testing.T) {
	u := newUpstream(t)
	r := run(t, `.:0 {
	bind 127.0.0.1
	local
	any
	cache
	fastpath
	forward . UPSTREAM
}`, u)
	c := dial(t, r.addr(0))
	c.untilHit("a.example.", dns.TypeA)
	before := hits(t)
	for range 5 {
		c.ask("localhost.", dns.TypeA)
		c.ask("a.example.", dns.TypeANY)
		c.ask("a.example.", dns.TypeHINFO)
	}
	if settled(t, before) {
		t.Error("an answer that is not cache's was learnt")
	}
}

// Another plugin's lookup with the context of a query must not make that query one of cache's hits.
func TestTruncatedGarbageAndEmpty(t *testing.T) {
	u := newUpstream(t)
	r := run(t, plain, u)
	c := dial(t, r.addr(0))
	c.untilHit("a.example.", dns.TypeA)
	long := question("a.example.", dns.TypeA)
	for range 60 {
		long.Extra = append(long.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"0123456789"}})
	}
	response := question("a.example.", dns.TypeA)
	response.Response = true
	c.send(nil)
	c.send([]byte("x"))
	c.send(bytes.Repeat([]byte{0xff}, 40))
	c.send(pack(t, response))
	m := new(dns.Msg)
	if err := m.Unpack(c.raw(pack(t, long))); err != nil || m.Rcode != dns.RcodeFormatError {
		t.Errorf("a query that is too long: %v %v", err, m)
	}
	update := new(dns.Msg).SetUpdate("example.")
	if m := c.exchange(update); m.Rcode != dns.RcodeNotImplemented {
		t.Errorf("UPDATE: %v", m)
	}
	version := question("a.example.", dns.TypeA).SetEdns0(1232, false)
	version.IsEdns0().SetVersion(1)
	if m := c.exchange(version); m.Rcode != dns.RcodeBadVers {
		t.Errorf("EDNS version 1: %v", m)
	}
	chaos := question("version.bind.", dns.TypeTXT)
	chaos.Question[0].Qclass = dns.ClassANY
	c.exchange(chaos)
	c.untilHit("a.example.", dns.TypeA)
}

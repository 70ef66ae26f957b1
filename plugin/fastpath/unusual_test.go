package fastpath

import (
	"context"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/miekg/dns"
)

// setupUpdates has a block admit UPDATE, as dynupdate does, and answer it.
func setupUpdates(c *caddy.Controller) error {
	for c.Next() {
		site := dnsserver.GetConfig(c)
		site.AllowOpcode(dns.OpcodeUpdate)
		site.AddPlugin(func(next plugin.Handler) plugin.Handler { return updates{next} })
	}
	return nil
}

type updates struct{ next plugin.Handler }

func (updates) Name() string { return "updates" }

func (u updates) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	if r.Opcode != dns.OpcodeUpdate {
		return u.next.ServeDNS(ctx, w, r)
	}
	return dns.RcodeSuccess, w.WriteMsg(new(dns.Msg).SetReply(r))
}

// What is unusual is admitted, refused and verified as by CoreDNS's own server, with what its plugins have it admit and
// the keys that it knows.
func TestUnusualAsCoreDNS(t *testing.T) {
	const key, secret = "k.", "NTBkNmI2MTg="
	u := newUpstream(t)
	r := run(t, `.:0 {
	bind 127.0.0.1
	tsig {
		secret `+key+" "+secret+`
		require TXT
	}
	updates
	cache
	fastpath
	forward . UPSTREAM
}`, u)
	c := dial(t, r.addr(0))
	signed := func(secret string) (reply []byte, mac string) {
		q := question("a.example.", dns.TypeTXT).SetTsig(key, dns.HmacSHA256, 300, time.Now().Unix())
		b, mac, err := dns.TsigGenerate(q, secret, "", false)
		if err != nil {
			t.Fatal(err)
		}
		return c.raw(b), mac
	}
	reply, mac := signed(secret)
	m := new(dns.Msg)
	if err := m.Unpack(reply); err != nil || m.Rcode != dns.RcodeSuccess {
		t.Errorf("a query with a good signature: %v %v", err, m)
	}
	if err := dns.TsigVerify(reply, secret, mac, false); err != nil {
		t.Errorf("the signature of the reply: %v", err)
	}
	reply, _ = signed("b3RoZXI=")
	if err := m.Unpack(reply); err != nil || m.Rcode != dns.RcodeNotAuth {
		t.Errorf("a query with a bad signature: %v %v", err, m)
	}
	status := question("a.example.", dns.TypeSOA)
	status.Opcode = dns.OpcodeStatus
	for _, test := range []struct {
		query *dns.Msg
		rcode int
	}{
		{odd("a.example."), dns.RcodeSuccess},
		{question("a.example.", dns.TypeTXT), dns.RcodeRefused}, // it has to be signed
		{new(dns.Msg).SetUpdate("example."), dns.RcodeSuccess},
		{status, dns.RcodeNotImplemented},
		{&dns.Msg{MsgHdr: dns.MsgHdr{Id: 7}, Question: append(question("a.", dns.TypeA).Question, question("b.", dns.TypeA).Question...)}, dns.RcodeFormatError},
	} {
		if m := c.exchange(test.query); m.Rcode != test.rcode || m.Opcode != test.query.Opcode {
			t.Errorf("%v\nis answered by\n%v\nwant %s", test.query, m, dns.RcodeToString[test.rcode])
		}
	}
}

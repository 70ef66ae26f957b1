package fastpath

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
	dto "github.com/prometheus/client_model/go"
)

var (
	differential = flag.Duration("differential", 3*time.Second, "how long each case of TestDifferential runs")
	seed         = flag.Uint64("seed", 0, "of TestDifferential's queries; 0: by the clock")
)

// TestDifferential sends one long random stream of queries to two sockets of one chain with one cache, of which
// the fast path has adopted the first only, while the data of the upstream change and the Corefile is
// reloaded: each reply has to be the same octet for octet, but for what a replay may change.
func TestDifferential(t *testing.T) {
	if testing.Short() {
		t.Skip("waits for TTLs in real time, half a minute; -short leaves it out")
	}
	for name, options := range map[string]string{
		"plain":       "",
		"loadbalance": "loadbalance",
		"all": `loadbalance
			bufsize 1232
			metadata
			cancel
			nsid here
			any
			local
			prometheus 127.0.0.1:0`,
	} {
		for _, caching := range []string{"", "prefetch 1 10s 40%", "serve_stale 10s immediate 2s"} {
			t.Run(name+"/"+caching, func(t *testing.T) {
				d := newDuel(t, fmt.Sprintf(`.:0 {
					bind 127.0.0.1 127.0.0.2
					errors
					%s
					cache 8 {
						success 9984 8 1
						denial 9984 8 1
						servfail 1s
						%s
					}
					fastpath 512
					forward . UPSTREAM
				}`, options, caching))
				// On a busy machine a case takes longer, until there are hits at all.
				end := time.Now().Add(*differential)
				for at := time.Now(); (at.Before(end) || d.compared < 1000 && at.Before(end.Add(patience))) && !t.Failed(); at = time.Now() {
					d.round()
				}
				t.Logf("%d queries compared, %d of them answered by the fast path, %d rounds again", d.compared, d.replayed, d.repeats)
				if d.replayed*20 < d.compared {
					t.Errorf("the fast path answered %d of %d queries, want a twentieth at least", d.replayed, d.compared)
				}
			})
		}
	}
}

// duel is the two sockets and who asks them.
type duel struct {
	*testing.T
	*rand.Rand
	running  *running
	upstream *upstream
	corefile string
	began    time.Time
	next     time.Time // reload
	fast     *client
	stock    *client

	compared, replayed, repeats int
}

func newDuel(t *testing.T, corefile string) *duel {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", s)
	d := &duel{T: t, Rand: rand.New(rand.NewPCG(s, s)), upstream: newUpstream(t), corefile: corefile, began: time.Now()}
	find := tested.find
	tested.find = func(in *caddy.Instance, s *dnsserver.Server) (*net.UDPConn, error) {
		c, err := find(in, s)
		if err == nil && c.LocalAddr().(*net.UDPAddr).IP.Equal(net.IPv4(127, 0, 0, 2)) {
			return nil, fmt.Errorf("left to the chain for the test")
		}
		return c, err
	}
	t.Cleanup(func() { tested.find = find })
	d.upstream.set(d.serve)
	d.running = run(t, corefile, d.upstream)
	d.connect()
	return d
}

// serve answers from data that change each 700 ms.
func (d *duel) serve(w dns.ResponseWriter, r *dns.Msg) {
	version := time.Since(d.began) / (700 * time.Millisecond)
	q := r.Question[0]
	labels := dns.SplitDomainName(q.Name)
	if len(labels) > 0 && labels[len(labels)-1] == "flip" { // it comes and goes
		q.Name = []string{"a.example.", "a.nx.", "a.fail.", "a.three."}[int(version)%4]
	}
	reply := zoneReply(&dns.Msg{MsgHdr: r.MsgHdr, Question: []dns.Question{q}, Extra: r.Extra}, uint32(1+len(q.Name)%8))
	reply.Question = r.Question
	for _, rr := range slices.Concat(reply.Answer, reply.Extra) {
		if rr.Header().Name == q.Name {
			rr.Header().Name = r.Question[0].Name
		}
		if a, ok := rr.(*dns.A); ok {
			a.A = slices.Clone(a.A.To4())
			a.A[1] = byte(version)
		}
	}
	reply.AuthenticatedData = len(q.Name)%2 == 0
	reply.Authoritative = len(q.Name)%3 == 0
	w.WriteMsg(reply)
}

// connect opens a socket to each of the two servers.
func (d *duel) connect() {
	d.fast, d.stock = nil, nil
	for i := range d.running.Servers() {
		addr := d.running.addr(i)
		if host, _, _ := net.SplitHostPort(addr); host == "127.0.0.1" {
			d.fast = dial(d, addr)
		} else {
			d.stock = dial(d, addr)
		}
	}
	if d.fast == nil || d.stock == nil {
		d.Fatal("there are not two servers")
	}
	d.next = time.Now().Add(2*time.Second + d.N(4*time.Second))
}

// N is a random duration below n.
func (d *duel) N(n time.Duration) time.Duration { return time.Duration(d.Int64N(int64(n))) }

// round compares the replies to one query, which is asked twice more where they differ: the data may have
// changed in between, but not every time.
func (d *duel) round() {
	if time.Now().After(d.next) {
		d.fast.Close()
		d.stock.Close()
		d.running.reload(d.corefile, d.upstream)
		d.connect()
	}
	query := d.query()
	const tries = 3
	for try := range tries {
		before := d.hitsNow()
		difference := d.compare(query)
		d.compared++
		if d.hitsNow() > before {
			d.replayed++
		}
		if difference == "" {
			return
		}
		d.repeats++
		if try == tries-1 {
			d.Errorf("query %x: %s", query, difference)
		}
	}
}

// hitsNow are the hits of the socket under test, as far as they are counted by now.
func (d *duel) hitsNow() float64 {
	tested.mu.Lock()
	defer tested.mu.Unlock()
	total := 0.0
	for k := range tested.sockets {
		var m dto.Metric
		if err := k.count.answers.Write(&m); err != nil {
			d.Fatal(err)
		}
		total += m.GetCounter().GetValue()
	}
	return total
}

// compare asks both and says what differs.
func (d *duel) compare(query []byte) string {
	first, second := d.fast, d.stock
	swap := d.IntN(2) == 0
	if swap {
		first, second = second, first
	}
	began := time.Now()
	a := first.raw(query)
	b := second.raw(query)
	tick := int64(time.Since(began)/time.Second) + 1 // a second may have ended between the two
	if swap {
		a, b = b, a
	}
	x, err := withoutTTLs(a)
	if err != nil {
		return fmt.Sprintf("the fast path's reply %x: %v", a, err)
	}
	y, err := withoutTTLs(b)
	if err != nil {
		return fmt.Sprintf("the chain's reply %x: %v", b, err)
	}
	if !bytes.Equal(x.octets, y.octets) || len(x.ttls) != len(y.ttls) {
		return fmt.Sprintf("the fast path says\n%x\nand the chain\n%x", a, b)
	}
	for i := range x.ttls {
		// A copy knows whole seconds only and stays on the safe side: up to one less.
		if more := int64(x.ttls[i]) - int64(y.ttls[i]); more > tick || more < -1-tick || swap && more > 0 {
			return fmt.Sprintf("the fast path says TTL %d, and the chain %d (asked first: %t)\n%x\n%x", x.ttls[i], y.ttls[i], swap, a, b)
		}
	}
	return ""
}

// levelled is a reply without its TTLs and with its addresses in order.
type levelled struct {
	octets []byte
	ttls   []uint32
}

// withoutTTLs works on the octets, so that names stay as they were written.
func withoutTTLs(reply []byte) (levelled, error) {
	l := levelled{octets: slices.Clone(reply)}
	if len(reply) < 12 {
		return l, nil
	}
	off := 12
	for range binary.BigEndian.Uint16(reply[4:]) {
		_, o, err := dns.UnpackDomainName(reply, off)
		if err != nil {
			return l, err
		}
		off = o + 4
	}
	type span struct{ begin, data, end int }
	var addresses []span
	records := 0
	for i := 6; i < 12; i += 2 {
		records += int(binary.BigEndian.Uint16(reply[i:]))
	}
	for range records {
		_, o, err := dns.UnpackDomainName(reply, off)
		if err != nil {
			return l, fmt.Errorf("the name of a record: %w", err)
		}
		if o+10 > len(reply) {
			return l, fmt.Errorf("a record ends early")
		}
		end := o + 10 + int(binary.BigEndian.Uint16(reply[o+8:]))
		if end > len(reply) {
			return l, fmt.Errorf("a record is longer than the message")
		}
		switch binary.BigEndian.Uint16(reply[o:]) {
		case dns.TypeOPT:
		case dns.TypeA, dns.TypeAAAA:
			addresses = append(addresses, span{off, o + 10, end})
			fallthrough
		default:
			l.ttls = append(l.ttls, binary.BigEndian.Uint32(reply[o+4:]))
			clear(l.octets[o+4 : o+8])
		}
		off = end
	}
	// Rotation moves addresses among records of one owner, which differ in nothing else.
	var data [][]byte
	for _, s := range addresses {
		data = append(data, slices.Clone(l.octets[s.data:s.end]))
	}
	slices.SortFunc(data, bytes.Compare)
	for i, s := range addresses {
		copy(l.octets[s.data:s.end], data[i])
	}
	return l, nil
}

// query is a random query: mostly what stub resolvers send, now and then something that they do not.
func (d *duel) query() []byte {
	pick := func(of ...string) string { return of[min(d.IntN(len(of)), d.IntN(len(of)))] } // rather the first
	name := pick("a", "b", "c", "d-2", "_dns._udp", "x.y", "a\\.b", "\\000", "e", "f") + "." +
		pick("flip.", "example.", "nx.", "alias.", "three.", "big.", "fail.", "localhost.")
	types := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypeSRV, dns.TypePTR, dns.TypeANY, dns.TypeHINFO, 65280}
	m := question(name, types[min(d.IntN(len(types)), d.IntN(len(types)), d.IntN(len(types)))])
	m.Id = uint16(d.Uint32())
	switch d.IntN(8) {
	case 0, 1, 2, 3:
		return pack(d, m)
	case 4, 5:
		return pack(d, m.SetEdns0(1232, false))
	}
	if d.IntN(5) == 0 { // 0x20
		b := []byte(m.Question[0].Name)
		for i := range b {
			if 'a' <= b[i] && b[i] <= 'z' && d.IntN(2) == 0 {
				b[i] -= 'a' - 'A'
			}
		}
		m.Question[0].Name = string(b)
	}
	m.RecursionDesired = d.IntN(8) != 0
	m.AuthenticatedData = d.IntN(4) == 0
	m.CheckingDisabled = d.IntN(8) == 0
	if d.IntN(2) == 0 {
		m.SetEdns0([]uint16{0, 512, 1200, 1232, 4096}[d.IntN(5)], d.IntN(3) == 0)
		switch o := m.IsEdns0(); d.IntN(16) {
		case 0:
			o.Option = append(o.Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0102030405060708"})
		case 1:
			o.Option = append(o.Option, &dns.EDNS0_NSID{Code: dns.EDNS0NSID})
		case 2:
			o.SetVersion(1)
		case 3:
			o.Option = append(o.Option, &dns.EDNS0_SUBNET{Code: dns.EDNS0SUBNET, Family: 1, SourceNetmask: 24, Address: net.IPv4(10, 1, 2, 0).To4()})
		}
	}
	switch d.IntN(40) {
	case 0:
		m.Question[0].Qclass = dns.ClassCHAOS
	case 1:
		m.Question[0].Qclass = dns.ClassANY
	case 2:
		m.Zero = true
	case 3:
		m.Opcode = dns.OpcodeNotify
	case 4:
		m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "x.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"x"}})
	case 5:
		m.Authoritative = true
	case 6:
		m.Question = append(m.Question, m.Question[0])
	}
	return pack(d, m)
}

package forward

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
)

// TestTransfersHurtNobody has zone transfers asked for beside slow questions that share their connections. A
// transfer that went upstream would bring messages that nobody waits for, and end the connection for all.
func TestTransfersHurtNobody(t *testing.T) {
	transfers := &atomic.Int64{}
	addr := serveZones(t, 200*time.Millisecond, transfers)
	p := newTestPlugin(t)
	h := explainer{next: chainOf(t, p, "forward . "+addr+" {\nforce_tcp\nmax_connect_attempts 1\n}")}
	if _, _, err := ask(t, h, question("warm.example.org.")); err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	for i := range 50 {
		done.Go(func() {
			time.Sleep(time.Duration(i) * 4 * time.Millisecond)
			name := fmt.Sprintf("slow%d.example.org.", i)
			m, rcode, err := ask(t, h, question(name))
			if err != nil || rcode != dns.RcodeSuccess || m == nil || len(m.Answer) != 1 {
				t.Errorf("%s: got %v, rcode %d, %v", name, m, rcode, err)
			}
		})
	}
	for i := range 20 {
		done.Go(func() {
			time.Sleep(time.Duration(i) * 20 * time.Millisecond)
			q := new(dns.Msg).SetQuestion("example.org.", []uint16{dns.TypeAXFR, dns.TypeIXFR}[i%2])
			if m, rcode, err := ask(t, h, q); m != nil || rcode != dns.RcodeNotImplemented || err == nil {
				t.Errorf("a transfer, client without EDNS: got %v, rcode %d, %v", m, rcode, err)
			}
		})
	}
	done.Wait()
	if n := transfers.Load(); n != 0 {
		t.Errorf("%d transfers went upstream", n)
	}
	for _, s := range p.metrics.statistics.Snapshot() {
		if n := s.Outcomes[observe.Reset] + s.Outcomes[observe.BadReply]; n != 0 || s.Retries != 0 {
			t.Errorf("%s/%s: %d connections broke under a question, %d retries", s.Upstream, s.Proto, n, s.Retries)
		}
	}
}

// TestTransferIsExplained: no stanza and no upstream is asked, and the client learns why.
func TestTransferIsExplained(t *testing.T) {
	s := serve(t, answerRcode(dns.RcodeNotImplemented))
	for _, edns := range []bool{false, true} {
		stanzas := "cache 30\nforward . " + s.addr + " {\nnext NOTIMP\nfailover NOTIMP\n}\nforward . " + s.addr
		inst, addr := serverOf(t, stanzas)
		q := new(dns.Msg).SetQuestion("example.org.", dns.TypeAXFR)
		if edns {
			q.SetEdns0(1232, false)
		}
		// As an ordinary question: a client for transfers would hide what is wrong.
		m, _, err := (&dns.Client{Net: "tcp", Timeout: 10 * time.Second}).Exchange(q, addr)
		stop(t, inst)
		if err != nil || m.Rcode != dns.RcodeNotImplemented || m.Id != q.Id || len(m.Answer) != 0 {
			t.Fatalf("EDNS %v: got %v, %v", edns, m, err)
		}
		told := m.IsEdns0() != nil && slices.ContainsFunc(m.IsEdns0().Option, func(o dns.EDNS0) bool {
			e, ok := o.(*dns.EDNS0_EDE)
			return ok && e.InfoCode == dns.ExtendedErrorCodeNotSupported && strings.Contains(e.ExtraText, "transfer")
		})
		if told != edns {
			t.Errorf("EDNS %v: got %v", edns, m)
		}
	}
	if n := s.questions(); n != 0 {
		t.Errorf("%d questions reached the upstream", n)
	}
}

// TestOtherZonesTransfer: what the stanza does not forward goes to the next plugin, transfers too.
func TestOtherZonesTransfer(t *testing.T) {
	h := chainOf(t, newTestPlugin(t), "forward example.org "+deadAddr(t)+" {\nexcept sub.example.org\n}")
	for _, name := range []string{"example.net.", "sub.example.org."} {
		if _, rcode, _ := ask(t, h, new(dns.Msg).SetQuestion(name, dns.TypeAXFR)); rcode != dns.RcodeNotZone {
			t.Errorf("%s: rcode %d", name, rcode)
		}
	}
}

// serveZones answers addresses after a while, and a transfer at once, with three messages. It answers the questions
// on a connection side by side, which dns.Server does not.
func serveZones(t *testing.T, delay time.Duration, transfers *atomic.Int64) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				for {
					q, err := readStream(conn)
					if err != nil {
						if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrUnexpectedEOF) {
							t.Logf("the upstream: %v", err)
						}
						return
					}
					running.Go(func() {
						m := new(dns.Msg).SetReply(q)
						switch q.Question[0].Qtype {
						case dns.TypeAXFR, dns.TypeIXFR:
							transfers.Add(1)
							conn.Write(slices.Concat(stream(t, m), stream(t, m), stream(t, m)))
							return
						case dns.TypeA:
							time.Sleep(delay)
							m.Answer = []dns.RR{mustRR(t, q.Question[0].Name+" 60 IN A 192.0.2.1")}
						}
						conn.Write(stream(t, m)) // a probe, on a machine that is late, is answered at once
					})
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().String()
}

// readStream reads one message with its length before it (RFC 1035, section 4.2.2).
func readStream(conn net.Conn) (*dns.Msg, error) {
	var length [2]byte
	if _, err := io.ReadFull(conn, length[:]); err != nil {
		return nil, err
	}
	wire := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(conn, wire); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	return m, m.Unpack(wire)
}

// stream is m with its length before it.
func stream(t *testing.T, m *dns.Msg) []byte {
	wire, err := m.Pack()
	if err != nil {
		t.Error(err)
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
}

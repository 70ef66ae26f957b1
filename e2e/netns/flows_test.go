package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/lab"
)

// oldClient is a client with a fixed source port, as a long-lived UDP socket has, or by chance a TCP connection.
type oldClient struct {
	t    *testing.T
	host *lab.Host
	kind lab.Transport
	port uint16
	to   netip.Addr
	conn *dns.Conn // nil: not open
}

// open connects from the client's port, which may have been in use a moment ago.
func (c *oldClient) open() error {
	d := net.Dialer{Timeout: clientPatience, Control: func(_, _ string, raw syscall.RawConn) error {
		var set error
		err := raw.Control(func(fd uintptr) { set = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		if err == nil {
			err = set
		}
		return err
	}}
	from := c.host.IPv4
	if c.to.Is6() {
		from = c.host.IPv6
	}
	at := netip.AddrPortFrom(from, c.port)
	d.LocalAddr = net.UDPAddrFromAddrPort(at)
	if c.kind == lab.TCP {
		d.LocalAddr = net.TCPAddrFromAddrPort(at)
	}
	return c.host.Do(func() error {
		conn, err := d.DialContext(context.Background(), string(c.kind), netip.AddrPortFrom(c.to, 53).String())
		if err == nil {
			c.conn = &dns.Conn{Conn: conn}
			c.t.Cleanup(func() { conn.Close() })
		}
		return err
	})
}

// clientPatience is how long a stub resolver waits.
const clientPatience = 5 * time.Second

func (c *oldClient) ask(name string) error {
	q := new(dns.Msg).SetQuestion(name, dns.TypeA)
	if err := c.conn.SetDeadline(time.Now().Add(clientPatience)); err != nil {
		return err
	}
	if err := c.conn.WriteMsg(q); err != nil {
		return err
	}
	m, err := c.conn.ReadMsg()
	if err == nil && (m.Id != q.Id || m.Rcode != dns.RcodeSuccess) {
		err = fmt.Errorf("answered with %v", m)
	}
	return err
}

func (c *oldClient) String() string {
	return fmt.Sprintf("%s from port %d to %s", c.kind, c.port, c.to)
}

// TestFallbackForgotten has clients in the fallback when localcache starts. When it dies later their server is gone,
// and clients with the same ports are answered by another one: localcache has deleted the conntrack entries in
// between.
func TestFallbackForgotten(t *testing.T) {
	eachBackend(t, func(t *testing.T, backend string) {
		t.Parallel()
		l := lab.Start(t, lab.Config{})
		option, addrs := localAddresses(l)
		o := serveOptions{Backend: backend, LocalIP: option}
		if len(addrs) > 1 {
			o.Corefile = bindBoth(t)
		}
		replicas4, replicas6 := l.Endpoints()
		startWith := func(replica int) *daemon {
			endpoints := []netip.Addr{replicas4[replica]}
			if len(addrs) > 1 {
				endpoints = append(endpoints, replicas6[replica])
			}
			o.Env = []string{"KUBE_DNS_ENDPOINTS=" + joinAddrs(endpoints)}
			return start(t, l, o)
		}
		startWith(0).kill()
		var clients []*oldClient
		for i, a := range addrs {
			for j, kind := range []lab.Transport{lab.UDP, lab.TCP} {
				clients = append(clients, &oldClient{t: t, host: l.Pods[0], kind: kind, port: uint16(4000 + 2*i + j), to: a})
			}
		}
		for _, c := range clients {
			if err := c.open(); err != nil {
				t.Fatalf("%s in the fallback: %v", c, err)
			}
			if err := c.ask("first." + lab.AnyClusterName); err != nil {
				t.Fatalf("%s in the fallback: %v", c, err)
			}
		}
		if n := l.KubeDNS[0].Record.Asked("first."+lab.AnyClusterName, ""); n != len(clients) {
			t.Fatalf("the first replica was asked %d times", n)
		}

		d := startWith(1)
		for _, c := range clients {
			// The first packet of a connection that the fallback had finds the listener, which knows nothing of it.
			if err := c.ask("second." + lab.AnyClusterName); (err != nil) != (c.kind == lab.TCP) {
				t.Errorf("%s when localcache is back: %v", c, err)
			}
			c.conn.Close()
		}
		left := func() (flows []lab.Flow) {
			for _, a := range addrs {
				f, err := l.Node.Conntrack(a)
				if err != nil {
					t.Fatal(err)
				}
				flows = append(flows, f...)
			}
			return flows
		}
		began := time.Now()
		for len(left()) > 0 && time.Since(began) < 10*time.Second {
			time.Sleep(100 * time.Millisecond)
		}
		if flows := left(); len(flows) > 0 {
			t.Errorf("still tracked %v after the start: %v", time.Since(began).Round(time.Second), flows)
		} else {
			t.Logf("nothing is tracked %v after the start", time.Since(began).Round(100*time.Millisecond))
			if d.logged("connection tracking has forgotten [1-9]") == 0 {
				t.Error("the log does not say so")
			}
		}
		if v := d.metric("coredns_nodecache_setup_errors_total", `errortype="conntrack"`); v != 0 {
			t.Errorf("%v errors of connection tracking", v)
		}

		if err := l.KubeDNS[0].Host.Isolate(); err != nil {
			t.Fatal(err)
		}
		d.kill()
		for _, c := range clients {
			err := c.open()
			if err == nil {
				err = c.ask("third." + lab.AnyClusterName)
			}
			if err != nil {
				t.Errorf("%s when localcache is dead again: %v", c, err)
			}
		}
		if n := l.KubeDNS[1].Record.Asked("third."+lab.AnyClusterName, ""); n != len(clients) {
			t.Errorf("the second replica was asked %d times, want %d", n, len(clients))
		}
	})
}

package uml

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// fillers is the size of the table in these tests, and how many connections fill it.
	fillers = 200
	// tries is how many queries each path gets.
	tries = 200
	// largeShare is the share of tries that a full table must lose on a tracked path. It loses all but those which
	// find an entry that the kernel may drop; the fillers are none of these.
	largeShare = tries / 2
)

const maxFile = "/proc/sys/net/netfilter/nf_conntrack_max"

// acceptFillers lets connections to fillerPort stay open.
func (c *cluster) acceptFillers(t *testing.T) {
	t.Helper()
	var l net.Listener
	if err := c.dnsHost.do(func() (err error) {
		l, err = net.Listen("tcp4", ":"+strconv.Itoa(fillerPort))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var conns []net.Conn
		for {
			conn, err := l.Accept()
			if err != nil {
				break // closed below
			}
			conns = append(conns, conn)
		}
		for _, conn := range conns {
			conn.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
}

// fillTable fills the node's connection tracking table until the end of the test with established connections between
// pods, because to make room the kernel drops only entries that are not established (early_drop in
// net/netfilter/nf_conntrack_core.c). Entries of earlier UDP queries are deleted for that reason. localcache's own
// connection to kube-dns is as established as the fillers.
func (c *cluster) fillTable(t *testing.T) {
	t.Helper()
	roomy, err := os.ReadFile(maxFile)
	if err != nil {
		t.Fatal(err)
	}
	conns, err := c.pod.connect(fillers, netip.AddrPortFrom(kubeDNSIP, fillerPort))
	t.Cleanup(func() {
		if err := os.WriteFile(maxFile, bytes.TrimSpace(roomy), 0); err != nil {
			t.Error(err)
		}
		for _, conn := range conns {
			conn.Close()
		}
	})
	if err != nil {
		t.Fatalf("connection %d of those that fill the table: %v", len(conns)+1, err)
	}
	udp := &netlink.ConntrackFilter{}
	if err := udp.AddProtocol(unix.IPPROTO_UDP); err != nil {
		t.Fatal(err)
	}
	dump(t, func() (uint, error) {
		return netlink.ConntrackDeleteFilters(netlink.ConntrackTable, netlink.FAMILY_V4, udp)
	})
	if err := os.WriteFile(maxFile, []byte(strconv.Itoa(fillers)), 0); err != nil {
		t.Fatal(err)
	}
}

// lost asks many names at once and fails the test only where that is impossible.
func (c *cluster) lost(t *testing.T, network string, server netip.Addr, name func(int) string) losses {
	t.Helper()
	l, err := c.pod.askMany(network, server, tries, name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// names returns tries names, the same for the same word.
func names(word string) func(int) string {
	return func(i int) string { return fmt.Sprintf("%s-%d.default.svc.cluster.local.", word, i) }
}

// requireNone fails the test where a query was lost.
func requireNone(t *testing.T, path string, l losses) {
	t.Helper()
	if l.lost > 0 {
		t.Errorf("%s: %v, want none", path, l)
		return
	}
	t.Logf("%s: %v", path, l)
}

// requireMany fails the test where less than a large share was lost.
func requireMany(t *testing.T, path string, l losses) {
	t.Helper()
	if l.lost < largeShare {
		t.Errorf("%s: %v, want at least %d: is the table full at all?", path, l, largeShare)
		return
	}
	t.Logf("%s: %v", path, l)
}

// TestFullTable shows the fault, a full connection tracking table, and the cure, NOTRACK, on the same node. It
// measures the path between pod and local address. The path between localcache and kube-dns is tracked, because the
// Service address must be translated: there a connection that was open before continues, whereas a new one would be
// lost like the pods' own. So the names are asked once before the table is filled; later they are answered from
// memory, and new names over the open connection.
func TestFullTable(t *testing.T) {
	needGuest(t)
	c := startCluster(t)
	before := readState(t)
	cached := names("cached")

	t.Run("with NOTRACK", func(t *testing.T) {
		p := c.startLocalcache(t, true, "")
		requireNone(t, "room in the table, pod to Service address", c.lost(t, "udp", serviceIP, cached))
		// One at a time, so that one connection to kube-dns carries all.
		for i := range tries {
			if err := c.pod.ask("udp", localIP, cached(i)); err != nil {
				t.Fatalf("warm the cache: %v", err)
			}
		}
		if n := tracked(t, localIP); n != 0 {
			t.Errorf("%d connections to %s are tracked, want none", n, localIP)
		}

		c.fillTable(t)
		requireMany(t, "table full, pod to Service address", c.lost(t, "udp", serviceIP, cached))
		requireNone(t, "table full, pod to local address", c.lost(t, "udp", localIP, cached))
		requireNone(t, "table full, pod to local address over TCP", c.lost(t, "tcp", localIP, cached))
		asked := c.askedTCP.Load()
		upstream := losses{}
		for fresh := names("fresh"); upstream.tries < 50 && upstream.lost == 0; upstream.tries++ {
			if upstream.first = c.pod.ask("udp", localIP, fresh(upstream.tries)); upstream.first != nil {
				upstream.lost++
			}
		}
		requireNone(t, "table full, pod to local address, names not in the cache", upstream)
		if n := c.askedTCP.Load() - asked; upstream.lost == 0 && n != int64(upstream.tries) {
			t.Errorf("kube-dns was asked %d times over TCP for %d new names", n, upstream.tries)
		}
		requireMany(t, "table still full, pod to Service address", c.lost(t, "udp", serviceIP, cached))
		p.end(t, unix.SIGTERM)
	})

	// The same process without its rules is no cure: the rules save the queries, not the answers in memory.
	t.Run("without rules", func(t *testing.T) {
		p := c.startLocalcache(t, false, "", "-setupiptables=false")
		requireNone(t, "room in the table, pod to local address without NOTRACK", c.lost(t, "udp", localIP, cached))
		if n := tracked(t, localIP); n < tries {
			t.Errorf("%d connections to %s are tracked without NOTRACK, want %d and more", n, localIP, tries)
		}
		c.fillTable(t)
		requireMany(t, "table full, pod to local address without NOTRACK", c.lost(t, "udp", localIP, cached))
		p.end(t, unix.SIGTERM)
	})
	requireSame(t, "after both", before, readState(t))
}

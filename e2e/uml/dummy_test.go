package uml

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const linkName = "nodelocaldns"

// nodeLink returns the interface of localcache, or nil.
func nodeLink(t *testing.T) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(linkName)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// requireDummy fails the test where the interface is not the dummy device with the one address.
func requireDummy(t *testing.T) {
	t.Helper()
	l := nodeLink(t)
	if l == nil {
		t.Fatalf("there is no interface %s", linkName)
	}
	if l.Type() != "dummy" {
		t.Errorf("interface %s is of kind %s, not dummy", linkName, l.Type())
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("interface %s is down", linkName)
	}
	addrs := addressesOf(t, l)
	if len(addrs) != 1 || addrs[0].IPNet.String() != localIP.String()+"/32" {
		t.Errorf("interface %s has the addresses %v, not %s/32", linkName, addrs, localIP)
	}
}

// TestDummy runs localcache from start to end on a kernel that has the kind of device that it prefers.
func TestDummy(t *testing.T) {
	needGuest(t)
	c := startCluster(t)
	before := readState(t)

	t.Run("made, kept, and removed at SIGTERM", func(t *testing.T) {
		p := c.startLocalcache(t, true, "")
		requireDummy(t)
		for _, network := range []string{"udp", "tcp"} {
			if err := c.pod.ask(network, localIP, "made."+network+".example."); err != nil {
				t.Errorf("pod asks over %s: %v", network, err)
			}
		}
		if n := tracked(t, localIP); n != 0 {
			t.Errorf("%d connections to %s are tracked, want none", n, localIP)
		}
		if n := c.askedUDP.Load(); n != 0 {
			t.Errorf("kube-dns was asked %d times over UDP, want TCP alone", n)
		}

		if err := netlink.LinkDel(nodeLink(t)); err != nil {
			t.Fatal(err)
		}
		took := waitForAddress(t)
		t.Logf("the deleted link was back after %v", took)
		if took > time.Second {
			t.Errorf("the deleted link was back after %v, want at most 1s", took)
		}
		if err := c.pod.ask("udp", localIP, "back.example."); err != nil {
			t.Errorf("pod asks after the link came back: %v", err)
		}
		requireDummy(t)

		p.end(t, unix.SIGTERM)
		requireSame(t, "after SIGTERM", before, readState(t))
	})

	t.Run("kept as configured, removed by teardown", func(t *testing.T) {
		p := c.startLocalcache(t, true, "    setup {\n        on_exit keep\n    }\n")
		running := readState(t)
		p.end(t, unix.SIGTERM)
		requireSame(t, "after SIGTERM with on_exit keep", running, readState(t))

		// The next process finds all that it wants.
		p = c.startLocalcache(t, true, "", "-skipteardown")
		requireSame(t, "after the second start", running, readState(t))
		p.end(t, unix.SIGTERM)
		requireSame(t, "after SIGTERM with -skipteardown", running, readState(t))

		if out := teardown(t); !strings.Contains(out, linkName) {
			t.Errorf("teardown does not say that it removed %s:\n%s", linkName, out)
		}
		requireSame(t, "after teardown", before, readState(t))
	})
}

// waitForAddress waits until the interface carries the local address and returns how long that took.
func waitForAddress(t *testing.T) time.Duration {
	t.Helper()
	const limit = 15 * time.Second // longer than the time between two checks
	for gone := time.Now(); time.Since(gone) < limit; time.Sleep(5 * time.Millisecond) {
		if l := nodeLink(t); l != nil && len(addressesOf(t, l)) == 1 {
			return time.Since(gone).Round(time.Millisecond)
		}
	}
	t.Fatalf("interface %s did not come back within %v", linkName, limit)
	return 0
}

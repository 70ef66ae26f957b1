package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

// happened waits for a signal of a change, and consumes further ones of the same change.
func happened(e *Events, wait time.Duration) bool {
	select {
	case <-e.Changed:
	case <-time.After(wait):
		return false
	}
	for {
		select {
		case <-e.Changed:
		case <-time.After(50 * time.Millisecond):
			return true
		}
	}
}

func TestLinkEvents(t *testing.T) {
	nettest.NewNamespace(t)
	l := New("nodelocaldns", nettest.NewLog(t))
	s, _, err := l.Ensure(nettest.Both, nil)
	nettest.Must(t, err)
	var in atomic.Pointer[Interest]
	in.Store(&Interest{Name: "nodelocaldns", Index: int32(s.Link.Attrs().Index), Addrs: nettest.Both})
	e, err := Watch(&in, 0)
	nettest.Must(t, err)
	defer e.Stop()

	veth := nettest.AddLink(t, &netlink.Veth{PeerName: "eth9"}, "pod9", "10.244.0.9/32")
	nettest.Must(t, netlink.LinkDel(veth))
	if happened(e, 200*time.Millisecond) {
		t.Error("what happens to other links is no concern of ours")
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"IPv4 address deleted", func() error { return netlink.AddrDel(s.Link, HostAddr(nettest.Local4)) }},
		{"IPv6 address deleted", func() error { return netlink.AddrDel(s.Link, HostAddr(nettest.Local6)) }},
		{"set down", func() error { return netlink.LinkSetDown(s.Link) }},
		{"renamed", func() error { return netlink.LinkSetName(s.Link, "other") }},
		{"named back", func() error { return netlink.LinkSetName(s.Link, "nodelocaldns") }},
		{"deleted", func() error { return netlink.LinkDel(s.Link) }},
		{"made", func() error { _, _, err := l.Ensure(nil, nil); return err }},
	} {
		nettest.Must(t, c.do())
		if !happened(e, 5*time.Second) {
			t.Errorf("%s: nothing was noticed", c.what)
		}
	}
}

// If the kernel had to drop events, that itself is a signal, and later events arrive.
func TestLinkEventsLost(t *testing.T) {
	nettest.NewNamespace(t)
	var in atomic.Pointer[Interest]
	in.Store(&Interest{Name: "none"}) // no event concerns the link: any signal reports a loss
	e, err := Watch(&in, 1)           // the kernel's least buffer
	nettest.Must(t, err)
	defer e.Stop()
	br := nettest.AddLink(t, &netlink.Bridge{}, "br0")
	// The reader is as fast as the kernel, so it needs many simultaneous events: those of a bridge's addresses when
	// it is deleted.
	lost := false
	for try := 0; try < 20 && !lost; try++ {
		for i := range 200 {
			nettest.PutAddrs(t, br, fmt.Sprintf("10.%d.%d.1/32", try, i))
		}
		nettest.Must(t, netlink.LinkDel(br))
		lost = happened(e, 100*time.Millisecond)
		br = nettest.AddLink(t, &netlink.Bridge{}, "br0")
	}
	if !lost {
		t.Error("no loss of events was noticed")
	}
	in.Store(&Interest{Name: "br0"})
	nettest.Must(t, netlink.LinkDel(br))
	if !happened(e, 5*time.Second) {
		t.Error("no event arrives after a loss")
	}
}

func TestLinkEventsEnd(t *testing.T) {
	nettest.NewNamespace(t)
	var in atomic.Pointer[Interest]
	e, err := Watch(&in, 0)
	nettest.Must(t, err)
	e.Stop()
	if !errors.Is(e.Err, os.ErrClosed) {
		t.Errorf("ended with %v", e.Err)
	}
}

// linkMessage is an rtnetlink message about a link.
func linkMessage(index uint32, name string) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint16(b[4:], unix.RTM_NEWLINK)
	binary.NativeEndian.PutUint32(b[unix.SizeofNlMsghdr+4:], index)
	attr := make([]byte, 4, 24)
	binary.NativeEndian.PutUint16(attr, uint16(4+len(name)+1))
	binary.NativeEndian.PutUint16(attr[2:], unix.IFLA_IFNAME)
	attr = append(append(attr, name...), 0)
	for len(attr)%4 != 0 {
		attr = append(attr, 0)
	}
	b = append(b, attr...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

func TestConcerns(t *testing.T) {
	in := &Interest{Name: "nodelocaldns", Index: 7, Addrs: []netip.Addr{nettest.Local4}}
	for _, c := range []struct {
		b    []byte
		want bool
	}{
		{linkMessage(9, "eth0"), false},
		{linkMessage(9, "nodelocaldns"), true},
		{linkMessage(7, "renamed"), true},
		{append(linkMessage(9, "eth0"), linkMessage(9, "nodelocaldns")...), true},
		{linkMessage(9, "nodelocaldns")[:20], true}, // cannot be read
		{nil, false},
	} {
		if got := concerns(c.b, in); got != c.want {
			t.Errorf("%x: %v", c.b, got)
		}
	}
	if concerns(linkMessage(9, "nodelocaldns"), nil) {
		t.Error("nothing concerns one without interest")
	}
}

func FuzzConcerns(f *testing.F) {
	f.Add(linkMessage(9, "eth0"))
	f.Add(linkMessage(9, "nodelocaldns"))
	f.Add([]byte("\x11\x00\x00\x00\x14\x0000000000000000")) // an address message without its struct
	in := &Interest{Name: "nodelocaldns", Index: 7, Addrs: nettest.Both}
	f.Fuzz(func(_ *testing.T, b []byte) { concerns(b, in) }) // it must end and not panic
}

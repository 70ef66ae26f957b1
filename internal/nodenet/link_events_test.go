package nodenet

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
)

// happened waits for a sign that something changed, and takes in those that follow from the same act.
func happened(e *linkEvents, wait time.Duration) bool {
	select {
	case <-e.changed:
	case <-time.After(wait):
		return false
	}
	for {
		select {
		case <-e.changed:
		case <-time.After(50 * time.Millisecond):
			return true
		}
	}
}

func TestLinkEvents(t *testing.T) {
	newNamespace(t)
	l := newLink("nodelocaldns", newTestLog(t))
	s, _, err := l.ensure(both, nil)
	must(t, err)
	var in atomic.Pointer[interest]
	in.Store(&interest{name: "nodelocaldns", index: int32(s.link.Attrs().Index), addrs: both})
	e, err := watchLinks(&in, 0)
	must(t, err)
	defer e.stop()

	veth := addLink(t, &netlink.Veth{PeerName: "eth9"}, "pod9", "10.244.0.9/32")
	must(t, netlink.LinkDel(veth))
	if happened(e, 200*time.Millisecond) {
		t.Error("what happens to other links is no concern of ours")
	}
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"IPv4 address deleted", func() error { return netlink.AddrDel(s.link, hostAddr(local4)) }},
		{"IPv6 address deleted", func() error { return netlink.AddrDel(s.link, hostAddr(local6)) }},
		{"set down", func() error { return netlink.LinkSetDown(s.link) }},
		{"renamed", func() error { return netlink.LinkSetName(s.link, "other") }},
		{"named back", func() error { return netlink.LinkSetName(s.link, "nodelocaldns") }},
		{"deleted", func() error { return netlink.LinkDel(s.link) }},
		{"made", func() error { _, _, err := l.ensure(nil, nil); return err }},
	} {
		must(t, c.do())
		if !happened(e, 5*time.Second) {
			t.Errorf("%s: nothing was noticed", c.what)
		}
	}
}

// Where the kernel had to drop events, that itself is a sign, and later events arrive.
func TestLinkEventsLost(t *testing.T) {
	newNamespace(t)
	var in atomic.Pointer[interest]
	in.Store(&interest{name: "none"}) // no event concerns us: any sign is one of loss
	e, err := watchLinks(&in, 1)      // the kernel's least buffer
	must(t, err)
	defer e.stop()
	br := addLink(t, &netlink.Bridge{}, "br0")
	// The reader is as fast as the kernel, so that it takes many events that come at once: those of a
	// bridge's addresses when it goes.
	lost := false
	for try := 0; try < 20 && !lost; try++ {
		for i := range 200 {
			putAddrs(t, br, fmt.Sprintf("10.%d.%d.1/32", try, i))
		}
		must(t, netlink.LinkDel(br))
		lost = happened(e, 100*time.Millisecond)
		br = addLink(t, &netlink.Bridge{}, "br0")
	}
	if !lost {
		t.Error("no loss of events was noticed")
	}
	in.Store(&interest{name: "br0"})
	must(t, netlink.LinkDel(br))
	if !happened(e, 5*time.Second) {
		t.Error("no event arrives after a loss")
	}
}

func TestLinkEventsEnd(t *testing.T) {
	newNamespace(t)
	var in atomic.Pointer[interest]
	e, err := watchLinks(&in, 0)
	must(t, err)
	e.stop()
	if !errors.Is(e.err, os.ErrClosed) {
		t.Errorf("ended with %v", e.err)
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
	in := &interest{name: "nodelocaldns", index: 7, addrs: []netip.Addr{local4}}
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
	in := &interest{name: "nodelocaldns", index: 7, addrs: both}
	f.Fuzz(func(_ *testing.T, b []byte) { concerns(b, in) }) // it has to end and not to panic
}

package nettest

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Local addresses that tests use.
var (
	Local4  = netip.MustParseAddr("169.254.25.10")
	Local4b = netip.MustParseAddr("10.96.0.10")
	Local6  = netip.MustParseAddr("fd00:10::10")
	Both    = []netip.Addr{Local4, Local6}
)

// Must ends the test where a step of its preparation fails.
func Must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// AddLink creates a link, sets it up and adds addresses.
func AddLink(t *testing.T, l netlink.Link, name string, addrs ...string) netlink.Link {
	t.Helper()
	*l.Attrs() = netlink.NewLinkAttrs()
	l.Attrs().Name = name
	Must(t, netlink.LinkAdd(l))
	Must(t, netlink.LinkSetUp(l))
	PutAddrs(t, l, addrs...)
	return l
}

// PutAddrs adds addresses to a link, without duplicate address detection.
func PutAddrs(t *testing.T, l netlink.Link, addrs ...string) {
	t.Helper()
	for _, s := range addrs {
		a, err := netlink.ParseAddr(s)
		Must(t, err)
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		Must(t, netlink.AddrAdd(l, a))
	}
}

// AddrsOn lists the addresses of a link but for the kernel's own.
func AddrsOn(t *testing.T, name string) []string {
	t.Helper()
	l, err := netlink.LinkByName(name)
	Must(t, err)
	addrs, err := netlink.AddrList(l, netlink.FAMILY_ALL)
	Must(t, err)
	var s []string
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() || a.IP.To4() != nil {
			s = append(s, a.IPNet.String())
		}
	}
	slices.Sort(s)
	return s
}

// LinkExists reports whether a link of the name exists.
func LinkExists(t *testing.T, name string) bool {
	t.Helper()
	_, err := netlink.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &notFound) {
		t.Fatal(err)
	}
	return err == nil
}

// Echo answers UDP at addr until the test ends, from a socket bound to that very address.
func Echo(t *testing.T, addr netip.Addr) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, 0)))
	Must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteToUDPAddrPort(buf[:n], from) // a client that misses the answer says so
		}
	}()
	t.Cleanup(func() { c.Close(); <-done })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// AskEcho sends one datagram and waits for its echo.
func AskEcho(server netip.AddrPort) error {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("query")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}

// DropNetAdmin removes the capability from the test's own thread, which ends with the test.
func DropNetAdmin(t *testing.T) {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	Must(t, unix.Capget(&hdr, &data[0]))
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	Must(t, unix.Capset(&hdr, &data[0]))
}

// DisableIPv6 has new links of the namespace refuse IPv6 addresses.
func DisableIPv6(t *testing.T) {
	t.Helper()
	Must(t, os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0))
}

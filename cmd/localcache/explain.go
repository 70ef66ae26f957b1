package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/process"
)

// explain adds to a failed start what keeps the port from being opened, if that is why it failed: the
// process that holds it, or what this process lacks. CoreDNS hands the error of the socket on as text, so
// the kernel is asked again and not the text.
func (s *server) explain(err error) error {
	for _, a := range s.node.Addresses() {
		at := netip.AddrPortFrom(a, uint16(s.flags.dnsPort))
		switch cause := tryListen(at); {
		case errors.Is(cause, unix.EACCES):
			return errors.Join(err, checkMayBind(at.Port()))
		case errors.Is(cause, unix.EADDRINUSE):
			holders, _ := process.Holders("/proc", at)
			for _, h := range holders {
				err = errors.Join(err, fmt.Errorf("%s: end it, or give localcache another address", h))
			}
		}
	}
	return err
}

// tryListen opens the sockets of at as CoreDNS does, shared with other processes of localcache, and closes
// them again. A failed start has its own sockets still open, which share it too.
func tryListen(at netip.AddrPort) error {
	udp, err := reuseport.ListenPacket("udp", at.String())
	if err != nil {
		return err
	}
	tcp, err := reuseport.Listen("tcp", at.String())
	if err != nil {
		return errors.Join(err, udp.Close())
	}
	return errors.Join(udp.Close(), tcp.Close())
}

// checkMayBind tells whether the process may listen on port: below the value of a sysctl (ip(7)) it takes
// a capability. What cannot be read is no reason against it.
func checkMayBind(port uint16) error {
	text, readErr := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
	first, parseErr := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 32)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	known := errors.Join(readErr, parseErr, unix.Capget(&header, &data[0])) == nil
	if !known || uint64(port) >= first || data[0].Effective&(1<<unix.CAP_NET_BIND_SERVICE) != 0 {
		return nil
	}
	return fmt.Errorf("port %d needs the capability NET_BIND_SERVICE: add it to the container's securityContext", port)
}

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

// explain adds to the error of a failed start what prevents opening the port, if that is the cause: the process that
// holds it, or what this process lacks. CoreDNS returns the socket's error as text only, so the kernel is asked
// again.
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

// tryListen opens the sockets of at as CoreDNS does, shared with other localcache processes, and closes them again. A
// failed start still has its own sockets open, which share the port too.
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

// checkMayBind returns an error if the process must not listen on port: below the value of a sysctl (ip(7)) that
// needs a capability. It returns nil if that cannot be determined.
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

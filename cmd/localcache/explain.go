package main

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet"
)

// explain adds to a failed start who holds the port, where somebody does, and what the process lacks to
// open it. CoreDNS hands the error of the socket on as text, so the kernel is asked and not the text.
func (s *server) explain(err error) error {
	err = errors.Join(err, checkMayBind(uint16(s.flags.dnsPort)))
	for _, a := range s.node.Addresses() {
		holders, _ := nodenet.Holders("/proc", netip.AddrPortFrom(a, uint16(s.flags.dnsPort)))
		for _, h := range holders {
			err = errors.Join(err, fmt.Errorf("%s: end it, or give localcache another address", h))
		}
	}
	return err
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

// Package freeport finds ports for tests that must name a port before anything listens there.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
)

const (
	lowest   = 10240
	attempts = 100
	// rangeFile has the range of ephemeral ports (ip(7)).
	rangeFile = "/proc/sys/net/ipv4/ip_local_port_range"
)

// Port returns a port on which nothing listens, over UDP or TCP. It is outside of the ephemeral range: other tests
// and their clients use ports of that range, and one that was free a moment ago may be taken when it is needed.
func Port(t testing.TB) int {
	t.Helper()
	end := lowest
	b, err := os.ReadFile(rangeFile)
	if err == nil {
		_, err = fmt.Sscan(string(b), &end)
	}
	if err != nil || end <= lowest {
		t.Fatalf("no port below those that the kernel hands out, from %d: %v", end, err)
	}
	for range attempts {
		port := lowest + rand.IntN(end-lowest)
		if free(port) {
			return port
		}
	}
	t.Fatalf("%d ports from %d to %d are all taken", attempts, lowest, end-1)
	return 0
}

// Text returns Port in the syntax of a Corefile.
func Text(t testing.TB) string {
	t.Helper()
	return strconv.Itoa(Port(t))
}

// free reports whether both transports can listen on the port, on any address.
func free(port int) bool {
	addr := ":" + strconv.Itoa(port)
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return false
	}
	defer l.Close()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return false
	}
	defer c.Close()
	return true
}

// Package freeport finds ports for tests that have to name one before anybody listens there.
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
	// rangeFile has the ports that the kernel gives to who asks for any (ip(7)).
	rangeFile = "/proc/sys/net/ipv4/ip_local_port_range"
)

// Port returns a port on which nobody listens, over UDP or TCP. It is none of those that the kernel hands out: other tests
// and their clients have some of these at any time, and one that was free a moment ago is taken when it is wanted.
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

// Text is Port as it stands in a Corefile.
func Text(t testing.TB) string {
	t.Helper()
	return strconv.Itoa(Port(t))
}

// free reports whether both transports can be had, on any address.
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

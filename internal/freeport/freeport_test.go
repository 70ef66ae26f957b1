package freeport

import (
	"net"
	"strconv"
	"testing"
)

func TestPort(t *testing.T) {
	for range 20 {
		port := Port(t)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.ListenPacket("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		if free(port) {
			t.Errorf("%d counts as free and is taken", port)
		}
		l.Close()
		if free(port) {
			t.Errorf("%d counts as free and is taken over UDP", port)
		}
		c.Close()
	}
}

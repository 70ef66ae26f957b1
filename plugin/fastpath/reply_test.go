package fastpath

import (
	"bytes"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"localcache.dev/localcache/internal/udpbatch"
)

// TestGatherer has many goroutines send replies of many sizes, more than fit into a batch and into its room: each
// arrives once, whole, and none waits for one that does not come.
func TestGatherer(t *testing.T) {
	receiver, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	if err := receiver.SetReadBuffer(8 << 20); err != nil {
		t.Fatal(err)
	}
	sender, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	peer := peerOf(t, sender, receiver)
	unsent := prometheus.NewCounter(prometheus.CounterOpts{Name: "unsent"})
	g, err := newGatherer(sender, unsent)
	if err != nil {
		t.Fatal(err)
	}

	const rounds, senders = 20, 2 * batchSize
	for round := range rounds {
		var wg sync.WaitGroup
		for i := range senders {
			wg.Go(func() {
				size := 12 + (i*i*7)%1200
				if i%32 == 0 {
					size = gatherSize/4 + 1 // goes by itself
				}
				b := bytes.Repeat([]byte{byte(i)}, size)
				binary.BigEndian.PutUint16(b, uint16(i))
				binary.BigEndian.PutUint16(b[2:], uint16(size))
				if err := g.send(b, peer, i%5 != 0); err != nil {
					t.Error(err)
				}
				clear(b) // it is the sender's again
			})
		}
		wg.Wait()
		seen := map[uint16]bool{}
		buf := make([]byte, 65535)
		for range senders {
			receiver.SetReadDeadline(time.Now().Add(patience))
			n, err := receiver.Read(buf)
			if err != nil {
				t.Fatalf("round %d: %d of %d arrived: %v", round, len(seen), senders, err)
			}
			i, size := binary.BigEndian.Uint16(buf), binary.BigEndian.Uint16(buf[2:])
			if seen[i] || int(size) != n || !bytes.Equal(buf[4:n], bytes.Repeat([]byte{byte(i)}, n-4)) {
				t.Fatalf("round %d: %d octets of reply %d, which has %d, seen before: %t", round, n, i, size, seen[i])
			}
			seen[i] = true
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.out.Len() != 0 || g.waiting {
		t.Errorf("%d replies were left, somebody about to send: %t", g.out.Len(), g.waiting)
	}
}

// peerOf is to as from's reader sees it.
func peerOf(t *testing.T, from, to *net.UDPConn) *udpbatch.Peer {
	t.Helper()
	r, err := udpbatch.NewReader(from, udpbatch.Options{Batch: 1, Size: 16})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := to.WriteTo([]byte("here"), from.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	var p udpbatch.Peer
	eventually(t, "a datagram", func() bool {
		n, err := r.Poll()
		if err != nil {
			t.Fatal(err)
		}
		if n == 1 {
			p = *r.Peer(0)
		}
		return n == 1
	})
	return &p
}

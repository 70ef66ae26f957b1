package udpbatch

import (
	"net"
	"testing"
	"time"
)

// Each datagram has a time of its own. After a deep batch only some have, and the others have that of the last one
// before them. None is later than it was sent.
func TestTimestamps(t *testing.T) {
	const batch, many = 40, 30
	for name, c := range map[string]struct {
		local, deep bool
	}{
		"behind a small one":              {},
		"behind a deep one":               {deep: true},
		"behind a deep one, with pktinfo": {deep: true, local: true}, // there is room in each message for both
	} {
		t.Run(name, func(t *testing.T) {
			conn := listen(t, "udp4", "127.0.0.1:0")
			r, _ := newBatch(t, conn, Options{Batch: batch, Size: 64, Timestamps: true, Local: c.local})
			client := listen(t, "udp4", "127.0.0.1:0")
			send := func(n int, each func(i int)) {
				for i := range n {
					if _, err := client.WriteTo([]byte{byte(i)}, conn.LocalAddr()); err != nil {
						t.Fatal(err)
					}
					each(i)
				}
				if got, err := r.Poll(); got != n || err != nil {
					t.Fatalf("read %d of %d: %v", got, n, err)
				}
			}
			awaitStamps(t, r, client, conn.LocalAddr())
			if c.deep {
				send(deepBatch, func(int) {})
			} else { // a deep one before that is forgotten
				send(many, func(int) {})
				send(1, func(int) {})
			}
			sent := make([]time.Time, many)
			begin := time.Now()
			send(many, func(i int) {
				sent[i] = time.Now()
				time.Sleep(time.Millisecond)
			})
			before := time.Unix(0, r.Peer(0).Received)
			if before.Before(begin.Round(0)) {
				t.Errorf("the first came at %v, before it was sent at %v", before, begin)
			}
			for i := range sent {
				at := time.Unix(0, r.Peer(i).Received)
				if at.After(sent[i].Round(0)) {
					t.Errorf("%d came at %v, after the call that sent it, %v", i, at, sent[i])
				}
				own := !c.deep || c.local || i < 8 || i == 8 || i == 16 || i == 24
				switch {
				case i > 0 && own && !at.After(before):
					t.Errorf("%d came at %v, not after the one before it", i, at)
				case i > 0 && !own && !at.Equal(before):
					t.Errorf("%d came at %v, not at %v as the last one that has a time", i, at, before)
				}
				before = at
			}
		})
	}
}

// awaitStamps waits until the kernel notes times of arrival. It begins a moment after the first socket has asked for
// them, and gives what came before the time at which it was read.
func awaitStamps(t *testing.T, r *Reader, client net.PacketConn, to net.Addr) {
	t.Helper()
	for range 1000 {
		if _, err := client.WriteTo([]byte("x"), to); err != nil {
			t.Fatal(err)
		}
		sent := time.Now()
		time.Sleep(time.Millisecond)
		if n, err := r.Poll(); n != 1 || err != nil {
			t.Fatalf("read %d: %v", n, err)
		}
		if !time.Unix(0, r.Peer(0).Received).After(sent.Round(0)) {
			return
		}
	}
	t.Fatal("datagrams have the time at which they were read")
}

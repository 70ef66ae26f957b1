package udpbatch

import (
	"net"
	"testing"
	"time"
)

// Each datagram of a small batch has a time of its own. Of many that have waited together, those without one have that
// of the last before them that has, and none is later than it was sent.
func TestTimestamps(t *testing.T) {
	for name, o := range map[string]Options{
		"plain": {Batch: 40, Size: 64, Timestamps: true},
		"local": {Batch: 40, Size: 64, Timestamps: true, Local: true}, // there is room in each message for both
	} {
		t.Run(name, func(t *testing.T) {
			c := listen(t, "udp4", "127.0.0.1:0")
			r, _ := newBatch(t, c, o)
			client := listen(t, "udp4", "127.0.0.1:0")
			awaitStamps(t, r, client, c.LocalAddr())
			sent := make([]time.Time, 30)
			begin := time.Now()
			for i := range sent {
				if _, err := client.WriteTo([]byte{byte(i)}, c.LocalAddr()); err != nil {
					t.Fatal(err)
				}
				sent[i] = time.Now()
				time.Sleep(time.Millisecond)
			}
			n, err := r.Poll()
			if n != len(sent) || err != nil {
				t.Fatalf("read %d of %d: %v", n, len(sent), err)
			}
			before := time.Unix(0, r.Peer(0).Received)
			if before.Before(begin.Round(0)) {
				t.Errorf("the first came at %v, before it was sent at %v", before, begin)
			}
			for i := range sent {
				at := time.Unix(0, r.Peer(i).Received)
				if at.After(sent[i].Round(0)) {
					t.Errorf("%d came at %v, after the call that sent it, %v", i, at, sent[i])
				}
				own := o.Local || i < 8 || i == 8 || i == 16 || i == 24
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

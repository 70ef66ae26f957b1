package fastpath

import (
	"net/netip"
	"testing"
	"time"
)

// The log says at once that queries are dropped, and then each minute how many and whose.
func TestLosses(t *testing.T) {
	var l losses
	a, b := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	now := time.Unix(1_700_000_000, 0)
	if n, top, most := l.note(a, now); n != 1 || top != a || most != 1 {
		t.Errorf("the first: %d, %s with %d", n, top, most)
	}
	for i := range 100 {
		now = now.Add(500 * time.Millisecond)
		client := b
		if i%3 == 0 {
			client = a
		}
		if n, _, _ := l.note(client, now); n != 0 {
			t.Fatalf("told again after %v", 500*time.Millisecond*time.Duration(i+1))
		}
	}
	// Many clients take no more memory than there is for them.
	for i := range 10_000 {
		l.note(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), now)
	}
	if len(l.clients) != toldClients {
		t.Errorf("%d clients are counted", len(l.clients))
	}
	if n, top, most := l.note(b, now.Add(toldEvery)); n != 10_101 || top != b || most != 67 {
		t.Errorf("a minute later: %d, %s with %d", n, top, most)
	}
	if len(l.clients) != 0 {
		t.Errorf("%d clients are kept", len(l.clients))
	}
}

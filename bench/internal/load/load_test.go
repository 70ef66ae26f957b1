package load

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// fake answers every query with the result of reply; nil means no answer.
func fake(t *testing.T, reply func(q []byte) []byte) netip.AddrPort {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			if a := reply(buf[:n]); a != nil {
				c.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	t.Cleanup(func() { c.Close(); <-ended })
	return c.LocalAddr().(*net.UDPAddr).AddrPort()
}

// noerror turns a query into the header and question of an answer that claims to hold one record.
func noerror(q []byte) []byte {
	q[2] |= 0x80
	q[7] = 1
	return q
}

func run(t *testing.T, cfg Config) *Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	res, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func TestEveryQueryOnce(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	server := fake(t, func(q []byte) []byte {
		mu.Lock()
		defer mu.Unlock()
		asked[string(q[12:])]++
		return noerror(q)
	})
	var edges int
	res := run(t, Config{
		Server: server, Source: &Once{Services(500, true)}, Window: 64, Sockets: 4, Timeout: 20 * time.Second,
		Edge: func() { edges++ },
	})
	if res.Sent != 1000 || res.Answered != 1000 || res.Lost+res.Wrong+res.Stray != 0 || res.Rcodes[0] != 1000 || res.Latency.Count() != 1000 || edges != 2 {
		t.Errorf("%d edges, %+v", edges, *res)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 1000 {
		t.Errorf("%d different questions arrived", len(asked))
	}
}

func TestLostWrongAndStray(t *testing.T) {
	n := 0
	server := fake(t, func(q []byte) []byte {
		n++
		switch n % 5 {
		case 0:
			return nil
		case 1:
			q[3] = 3 // NXDOMAIN
		case 2:
			q[0]++ // another ID
		case 3:
			q[13]++ // another question
		}
		return noerror(q)
	})
	res := run(t, Config{Server: server, Source: &Once{Services(100, false)}, Window: 10, Sockets: 1, Timeout: 300 * time.Millisecond})
	if res.Sent != 100 || res.Lost != 60 || res.Wrong != 20 || res.Stray != 40 || res.Answered != 40 || res.Rcodes[3] != 20 {
		t.Errorf("%+v", *res)
	}
}

func TestRetry(t *testing.T) {
	seen := map[string]int{}
	server := fake(t, func(q []byte) []byte {
		seen[string(q[12:])]++
		switch seen[string(q[12:])] {
		case 1:
			return nil
		case 2:
			a := noerror(q)
			a[3], a[7] = 2, 0 // SERVFAIL
			return a
		}
		return noerror(q)
	})
	res := run(t, Config{Server: server, Source: &Once{Services(20, false)}, Window: 8, Sockets: 2, Timeout: 300 * time.Millisecond, Retry: 5})
	if res.Lost != 0 || res.Wrong != 0 || res.Rcodes[0] != 20 {
		t.Errorf("%+v", *res)
	}
}

// TestNoCoordinatedOmission uses a server that stalls for a moment: all queries that were due in that moment have
// waited, also those that a client which waits for answers would not have sent.
func TestNoCoordinatedOmission(t *testing.T) {
	const rate, pause = 2000, 300 * time.Millisecond
	n := 0
	server := fake(t, func(q []byte) []byte {
		if n++; n == 600 {
			time.Sleep(pause)
		}
		return noerror(q)
	})
	res := run(t, Config{
		Server: server, Source: &Random{Queries: Services(10, true), Rand: source(1)}, Rate: rate, Window: 64, Sockets: 4,
		Warm: 100 * time.Millisecond, Length: time.Second, Timeout: 20 * time.Second,
	})
	// On a busy machine the first of the counted ones may be late for the moment from which they count.
	if res.Sent < rate*9/10 || res.Sent > rate*11/10 || res.Lost != 0 || res.Latency.Count() != res.Sent {
		t.Fatalf("%d sent, %d lost, %d latencies", res.Sent, res.Lost, res.Latency.Count())
	}
	// 600 queries were due while it slept, evenly: a third of them waited for 200 ms and more.
	if q := res.Latency.Quantile(0.92); q < pause/2 {
		t.Errorf("92 %% were answered within %v, though 15 %% waited for %v and more", q, pause/2)
	}
}

func TestSilentServer(t *testing.T) {
	var got atomic.Int64
	server := fake(t, func([]byte) []byte { got.Add(1); return nil })
	res := run(t, Config{
		Server: server, Source: &Random{Queries: Services(10, true), Rand: source(1)}, Rate: 1000, Window: 16, Sockets: 2,
		Length: 200 * time.Millisecond, Timeout: 400 * time.Millisecond,
	})
	// The window lets 16 queries out until they are given up; the others were due too.
	if n := got.Load(); res.Sent != 200 || res.Lost != 200 || res.Answered != 0 || n < 16 || n >= 200 {
		t.Errorf("%d arrived: %+v", got.Load(), *res)
	}
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []Config{{}, {Window: 128, Timeout: 1}, {Window: 1024, Sockets: 2, Timeout: 1}, {Window: 8, Sockets: 8}} {
		if _, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("%+v runs", cfg)
		}
	}
}

func TestEndsWithItsContext(t *testing.T) {
	server := fake(t, noerror)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Run(ctx, Config{
		Server: server, Source: &Random{Queries: Services(10, true), Rand: source(1)}, Window: 16, Sockets: 2,
		Length: time.Hour, Timeout: time.Second,
	})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

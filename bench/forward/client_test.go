package forward

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func newReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, 1<<16) }

// nameSeries makes every name of a process unique.
var nameSeries atomic.Uint64

// query returns a query for A of a unique name.
func query(id uint16, name string) []byte {
	q := []byte{0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(q, id)
	q = append(q, byte(len(name)))
	q = append(q, name...)
	return append(q, 5, 'b', 'e', 'n', 'c', 'h', 0, 0, 1, 0, 1)
}

func freshName() string { return fmt.Sprintf("u%012x", nameSeries.Add(1)) }

// results are the clients' measurements.
type results struct {
	answered int
	failed   int // any rcode but NOERROR
	lost     int // no reply within the patience
	latency  []time.Duration
}

func (r *results) add(o results) {
	r.answered += o.answered
	r.failed += o.failed
	r.lost += o.lost
	r.latency = append(r.latency, o.latency...)
}

// quantile returns a quantile over all questions that got a reply.
func (r *results) quantile(q float64) time.Duration {
	if len(r.latency) == 0 {
		return 0
	}
	slices.Sort(r.latency)
	return r.latency[min(int(q*float64(len(r.latency))), len(r.latency)-1)]
}

// load asks for fresh names from so many clients at once. With a rate above 0 (questions a second, all
// clients together) latency counts from the time a question was due, else each client asks as soon as
// it has its reply.
type load struct {
	addr     string
	clients  int
	rate     float64
	duration time.Duration
	patience time.Duration
	name     func() string
}

func (l load) run(b testing.TB) results {
	b.Helper()
	var mu sync.Mutex
	var all results
	var done sync.WaitGroup
	start := time.Now()
	for i := range l.clients {
		done.Go(func() {
			c, err := net.Dial("udp", l.addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			r := l.client(c, start, i)
			mu.Lock()
			all.add(r)
			mu.Unlock()
		})
	}
	done.Wait()
	return all
}

func (l load) client(c net.Conn, start time.Time, i int) (r results) {
	buf := make([]byte, 1024)
	for n := 0; ; n++ {
		due := time.Now()
		if l.rate > 0 {
			due = start.Add(time.Duration(float64(n*l.clients+i) / l.rate * float64(time.Second)))
		}
		if due.Sub(start) >= l.duration {
			return r
		}
		time.Sleep(time.Until(due))
		id := uint16(n)
		if _, err := c.Write(query(id, l.name())); err != nil {
			r.lost++
			continue
		}
		c.SetReadDeadline(time.Now().Add(l.patience))
		for {
			k, err := c.Read(buf)
			if err != nil {
				r.lost++
				break
			}
			if k < 12 || binary.BigEndian.Uint16(buf) != id {
				continue // the reply to a question that was given up
			}
			r.latency = append(r.latency, time.Since(due))
			r.answered++
			if buf[3]&15 != 0 {
				r.failed++
			}
			break
		}
	}
}

// freePort returns a loopback address on which nothing listens, over either transport. It lies below the ephemeral
// ports, of which a load over TCP uses many.
func freePort(t testing.TB) string {
	t.Helper()
	var last error
	for range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		l, err := net.Listen("tcp", addr)
		if err != nil {
			last = err
			continue
		}
		c, err := net.ListenPacket("udp", addr)
		l.Close()
		if err != nil {
			last = err
			continue
		}
		c.Close()
		return addr
	}
	t.Fatalf("no port is free: %v", last)
	return ""
}

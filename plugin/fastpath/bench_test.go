package fastpath

import (
	"flag"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/udpbatch"
	"localcache.dev/localcache/internal/wire"
)

// The benchmarks compare with each other within one run, because machines differ. The load comes from the same
// process, so that its share is measured too, by the echo: what a server adds to that is its own.
//
//	go test -run '^$' -bench Hit -benchtime 300000x -count 5 ./plugin/fastpath

var saturate = flag.Bool("saturate", false, "benchmarks with 256 queries on their way instead of 64")

func BenchmarkHitFastPath(b *testing.B) {
	benchCorefile(b, "prometheus 127.0.0.1:0\n errors\n cache\n fastpath", hot)
}
func BenchmarkHitFastPathAlone(b *testing.B) { benchCorefile(b, "cache\n fastpath", hot) }

// With a recorder, as diag has it: the kernel's timestamps and statistics of clients and names.
func BenchmarkHitFastPathRecorded(b *testing.B) {
	tested.options.Queries = observe.NewQueries(observe.QueriesOptions{})
	defer func() { tested.options.Queries = nil }()
	benchCorefile(b, "prometheus 127.0.0.1:0\n errors\n cache\n fastpath", hot)
}
func BenchmarkHitStock(b *testing.B) {
	benchCorefile(b, "prometheus 127.0.0.1:0\n errors\n cache", hot)
}

// Hits of cache that the fast path does not answer: by our workers, and by a goroutine each.
func BenchmarkChainWorkers(b *testing.B) {
	benchCorefile(b, "prometheus 127.0.0.1:0\n errors\n cache\n fastpath", unlearnt)
}
func BenchmarkChainStock(b *testing.B) {
	benchCorefile(b, "prometheus 127.0.0.1:0\n errors\n cache", unlearnt)
}

func BenchmarkMissWorkers(b *testing.B) { benchCorefile(b, "errors\n cache\n fastpath", unique) }
func BenchmarkMissStock(b *testing.B)   { benchCorefile(b, "errors\n cache", unique) }

func BenchmarkHitEcho(b *testing.B) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	c := pc.(*net.UDPConn)
	in, err := udpbatch.NewReader(c, udpbatch.Options{Batch: batchSize, Size: querySize})
	if err != nil {
		b.Fatal(err)
	}
	out, err := udpbatch.NewWriter(c, batchSize)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		in.Serve(func(n int) bool {
			for i := range n {
				out.Add(in.Payload(i), in.Peer(i))
			}
			out.Flush()
			return true
		})
	}()
	benchAddr(b, pc.LocalAddr().String(), hot)
	c.Close()
	<-done
}

// BenchmarkCount is what counting costs a hit, in batches of one and of many.
func BenchmarkCount(b *testing.B) {
	u := newUpstream(b)
	r := run(b, ".:0 {\n bind 127.0.0.1\n prometheus 127.0.0.1:0\n cache\n fastpath\n forward . UPSTREAM\n}", u)
	dial(b, r.addr(0)).untilHit("a.example.", dns.TypeA)
	tested.mu.Lock()
	var c counter
	for k := range tested.sockets {
		c = newCounter(tested.metrics, k.count.classes, k.address)
	}
	tested.mu.Unlock()
	var q wire.Query
	if !q.Parse(pack(b, question("a.example.", dns.TypeA))) {
		b.Fatal("no plain query")
	}
	for _, n := range []int{1, 32} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for i := range b.N {
				c.add(1<<16|45, &q, 27, false)
				if i%n == 0 {
					c.flush(time.Microsecond)
				}
			}
		})
	}
}

func hot(i int) *dns.Msg      { return question(fmt.Sprintf("n%d.example.", i%1000), dns.TypeA) }
func unlearnt(i int) *dns.Msg { return question(fmt.Sprintf("n%d.example.", i%1000), dns.TypeHINFO) }
func unique(i int) *dns.Msg   { return question(fmt.Sprintf("u%d.example.", i), dns.TypeA) }

func benchCorefile(b *testing.B, directives string, q func(int) *dns.Msg) {
	tested.options.InFlight = defaultInFlight // one client has all the load
	defer func() { tested.options.InFlight = testInFlight }()
	u := newUpstream(b)
	u.set(func(w dns.ResponseWriter, r *dns.Msg) {
		m := zoneReply(r, 3600)
		w.WriteMsg(m)
	})
	bind := ".:0 {\n bind 127.0.0.1\n " + directives + "\n"
	if strings.HasPrefix(b.Name(), "BenchmarkMiss") {
		bind += "template IN A . {\n answer \"{{ .Name }} 60 IN A 10.0.0.1\"\n }\n}"
	} else {
		bind += "forward . UPSTREAM\n}"
	}
	r := run(b, bind, u)
	benchAddr(b, r.addr(0), q)
}

// benchAddr keeps a number of queries on their way.
func benchAddr(b *testing.B, addr string, q func(int) *dns.Msg) {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	c := conn.(*net.UDPConn)
	window := 64
	if *saturate {
		window = 256
	}
	queries := make([][]byte, max(1000, min(b.N, 200000)))
	for i := range queries {
		queries[i] = pack(b, q(i))
	}
	buf := make([]byte, 4096)
	exchange := func(m []byte) {
		c.SetReadDeadline(time.Now().Add(patience))
		c.Write(m)
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
	if !strings.Contains(b.Name(), "Miss") {
		for range 3 {
			for _, m := range queries[:1000] {
				exchange(m)
			}
		}
	}
	raw, err := udpbatch.NewReader(c, udpbatch.Options{Batch: window, Size: 2048})
	if err != nil {
		b.Fatal(err)
	}
	out, err := udpbatch.NewWriter(c, window)
	if err != nil {
		b.Fatal(err)
	}
	sent, got := 0, 0
	top := func() {
		for out.Len() < window && sent < b.N && sent-got < window {
			out.Add(queries[sent%len(queries)], new(udpbatch.Peer))
			sent++
		}
		out.Flush()
	}
	begin := cpu(b)
	b.ResetTimer()
	c.SetReadDeadline(time.Now().Add(patience))
	top()
	if err := raw.Serve(func(n int) bool {
		got += n
		top()
		return got < b.N
	}); err != nil {
		b.Logf("%d of %d: %v", got, sent, err)
	}
	b.StopTimer()
	b.ReportMetric(float64((cpu(b)-begin).Nanoseconds())/float64(max(got, 1)), "cpu-ns/op")
}

func cpu(b testing.TB) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Package upstream compares the exchange engine alone with CoreDNS's: no server, no plugin chain, only
// questions that are packed, exchanged and unpacked. The upstream is a process of its own, so that the
// CPU time of this one is the engine's and the callers'.
//
//	go test ./bench/upstream -bench . -benchtime 100000x -count 5
//
// µs-cpu/op is user and system time; conns/op times the number of operations is the connections that
// the upstream has accepted.
package upstream

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coredns/coredns/plugin/pkg/proxy"
	"github.com/coredns/coredns/plugin/test"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/upstream"
)

const (
	window = 128
	delay  = time.Millisecond
	// childEnv makes the test binary act as the upstream.
	childEnv = "LOCALCACHE_BENCH_UPSTREAM"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// exchanger asks one question and returns the number of records in the answer.
type exchanger func(m *dns.Msg) (*dns.Msg, error)

// engines creates each engine for an upstream and a transport.
var engines = map[string]func(b *testing.B, addr string, proto observe.Proto) exchanger{
	"localcache": func(b *testing.B, addr string, proto observe.Proto) exchanger {
		r := upstream.NewRegistry(upstream.Limits{}, observe.NewUpstreams(0))
		g, err := r.Open(upstream.GroupConfig{
			Servers:  []upstream.ServerConfig{{Addr: netip.MustParseAddrPort(addr), Health: upstream.NewHealth()}},
			ForceTCP: proto == observe.TCP,
		})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { g.Close(); r.Wait() })
		return func(m *dns.Msg) (*dns.Msg, error) {
			a, err := g.Exchange(context.Background(), upstream.Query{Msg: m, Proto: observe.UDP})
			return a.Msg, err
		}
	},
	"coredns": func(b *testing.B, addr string, proto observe.Proto) exchanger {
		p := proxy.NewProxy("bench", addr, "dns")
		p.SetExpire(10 * time.Second)
		p.Start(500 * time.Millisecond)
		b.Cleanup(p.Stop)
		options := proxy.Options{ForceTCP: proto == observe.TCP}
		return func(m *dns.Msg) (*dns.Msg, error) {
			state := request.Request{W: &test.ResponseWriter{}, Req: m}
			for {
				ret, _, _, err := p.Connect(context.Background(), state, options)
				if errors.Is(err, proxy.ErrCachedClosed) {
					continue
				}
				return ret, err
			}
		}
	},
}

func BenchmarkExchange(b *testing.B) {
	for _, proto := range []observe.Proto{observe.TCP, observe.UDP} {
		for _, name := range []string{"localcache", "coredns"} {
			b.Run(fmt.Sprintf("%s/%s", proto, name), func(b *testing.B) { run(b, proto, name) })
		}
	}
}

var series atomic.Uint64

func run(b *testing.B, proto observe.Proto, engine string) {
	addr, accepted := startUpstream(b)
	exchange := engines[engine](b, addr, proto)
	var next atomic.Int64
	var failed atomic.Int64
	latencies := new(observe.Histogram)
	before := accepted()
	cpu := cpuTime(b)
	b.ResetTimer()
	var wg sync.WaitGroup
	for range window {
		wg.Go(func() {
			for next.Add(1) <= int64(b.N) {
				m := new(dns.Msg)
				m.SetQuestion(fmt.Sprintf("u%012x.bench.example.", series.Add(1)), dns.TypeA)
				start := time.Now()
				a, err := exchange(m)
				if err != nil || a.Id != m.Id || len(a.Answer) != 1 {
					failed.Add(1)
				}
				latencies.Observe(time.Since(start))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	cpu = cpuTime(b) - cpu
	l := latencies.Snapshot()
	b.ReportMetric(float64(cpu.Nanoseconds())/1e3/float64(b.N), "µs-cpu/op")
	b.ReportMetric(float64(l.Quantile(0.99).Microseconds()), "µs-p99")
	b.ReportMetric(float64(accepted()-before), "conns")
	if n := failed.Load(); n > 0 {
		b.ReportMetric(float64(n), "failed")
	}
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// startUpstream runs the upstream and returns its address and the number of connections so far.
func startUpstream(b *testing.B) (addr string, accepted func() int) {
	b.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	lines := bufio.NewReader(out)
	line := func() string {
		s, err := lines.ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		return strings.TrimSpace(s)
	}
	return line(), func() int {
		if _, err := fmt.Fprintln(in); err != nil {
			b.Fatal(err)
		}
		n, err := strconv.Atoi(line())
		if err != nil {
			b.Fatal(err)
		}
		return n
	}
}

// serve answers each question after the delay, over UDP and TCP on one port. For each line on in it
// writes the number of accepted connections; it ends with in.
func serve(in io.Reader, out io.Writer) error {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	udp, err := net.ListenPacket("udp", tcp.Addr().String())
	if err != nil {
		return err
	}
	if err := udp.(*net.UDPConn).SetReadBuffer(8 << 20); err != nil {
		return err
	}
	var accepted atomic.Int64
	go func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			go serveStream(conn)
		}
	}()
	go func() {
		due := delayed(func(d datagram) { _, _ = udp.WriteTo(d.reply, d.to) })
		buffer := make([]byte, 4096)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			due <- datagram{at: time.Now().Add(delay), reply: answer(nil, buffer[:n]), to: from}
		}
	}()
	fmt.Fprintln(out, tcp.Addr())
	for s := bufio.NewScanner(in); s.Scan(); {
		fmt.Fprintln(out, accepted.Load())
	}
	return nil
}

type datagram struct {
	at    time.Time
	reply []byte
	to    net.Addr
}

// delayed passes datagrams on when they are due. All have the same delay, so they are due in order.
func delayed(send func(datagram)) chan<- datagram {
	queue := make(chan datagram, 65536)
	go func() {
		for d := range queue {
			time.Sleep(time.Until(d.at))
			send(d)
		}
	}()
	return queue
}

func serveStream(conn net.Conn) {
	defer conn.Close()
	due := delayed(func(d datagram) { _, _ = conn.Write(d.reply) })
	defer close(due)
	r := bufio.NewReaderSize(conn, 1<<16)
	for {
		var batch []byte
		for first := true; first || r.Buffered() > 2; first = false {
			var length [2]byte
			if _, err := io.ReadFull(r, length[:]); err != nil {
				return
			}
			query := make([]byte, binary.BigEndian.Uint16(length[:]))
			if _, err := io.ReadFull(r, query); err != nil {
				return
			}
			at := len(batch)
			batch = answer(append(batch, 0, 0), query)
			binary.BigEndian.PutUint16(batch[at:], uint16(len(batch)-at-2))
		}
		due <- datagram{at: time.Now().Add(delay), reply: batch}
	}
}

// answer appends a response with one A record to a query that has at most an OPT record after its question, which is
// dropped.
func answer(dst, query []byte) []byte {
	end := 12
	for query[end] != 0 {
		end += int(query[end]) + 1
	}
	end += 5
	at := len(dst)
	dst = append(dst, query[:end]...)
	dst[at+2] |= 0x84
	dst[at+7], dst[at+11] = 1, 0
	return append(dst, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1)
}

// Package forward compares localcache's forward with CoreDNS's own: the same chain, the same load, one
// process each, in turns. It measures nothing unless asked to:
//
//	go test ./bench/forward -compare -v [-rounds 3]
//
// Figures of two runs are not comparable, those of one table are.
package forward

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	compare  = flag.Bool("compare", false, "run the comparison, about a minute a round")
	rounds   = flag.Int("rounds", 3, "rounds of each measurement; the median counts")
	window   = flag.Int("window", 128, "questions in flight")
	profiles = flag.String("profiles", "", "a directory for CPU profiles of the servers, one of the last round of each")
	length   = flag.Duration("length", 3*time.Second, "how long one measurement takes")
	beside   = flag.String("beside", "", "a further program to measure, such as ours of another commit")
	fast     = flag.Bool("fastpath", false, "measure ours and floor once more with the directive fastpath in their blocks")
	only     = flag.String("only", "", "measure only programs whose name this regular expression matches; the first of them is what the others are divided by")
)

// contender is a program with the part of its Corefile block that follows bind and forward.
type contender struct {
	name, program, options string
}

// build makes the servers.
func build(t *testing.T) []contender {
	t.Helper()
	if !*compare {
		t.Skip("measures for a minute and more: -compare runs it")
	}
	dir := t.TempDir()
	var all []contender
	for _, name := range []string{"stock", "ours", "floor"} {
		program := filepath.Join(dir, name)
		cmd := exec.Command("go", "build", "-o", program, "./"+name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", cmd, err, out)
		}
		all = append(all, contender{name: name, program: program})
	}
	if *fast {
		for _, c := range all[1:] {
			all = append(all, contender{name: c.name + "+fastpath", program: c.program, options: "fastpath"})
		}
	}
	if *beside != "" {
		all = append(all, contender{name: "beside", program: *beside})
		if *fast {
			all = append(all, contender{name: "beside+fastpath", program: *beside, options: "fastpath"})
		}
	}
	return all
}

type process struct {
	cmd   *exec.Cmd
	stdin io.Closer
	addr  string
}

// start starts a server that forwards to upstreams and waits until it answers. It asks as little as possible: the
// first questions open connections.
func start(t *testing.T, c contender, stanza string) *process {
	t.Helper()
	addr := freePort(t)
	_, port, _ := strings.Cut(addr, ":")
	cmd := exec.Command(c.program, "-corefile", fmt.Sprintf(".:%s {\nbind 127.0.0.1\n%s\n%s\n}\n", port, c.options, stanza))
	if *profiles != "" {
		cmd.Args = append(cmd.Args, "-cpuprofile", filepath.Join(*profiles, fmt.Sprintf("%s-%s.pprof", strings.ReplaceAll(t.Name(), "/", "-"), c.name)))
	}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: cmd, stdin: stdin, addr: addr}
	t.Cleanup(func() { p.stop(t) })
	for range 200 {
		r := load{addr: addr, clients: 1, duration: time.Nanosecond, patience: time.Second, name: freshName, rate: 1}.run(t)
		if r.answered > 0 {
			return p
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s does not answer", c.name)
	return nil
}

func (p *process) stop(t *testing.T) {
	if p.cmd.ProcessState != nil {
		return
	}
	p.stdin.Close()
	timer := time.AfterFunc(10*time.Second, func() { p.cmd.Process.Kill() })
	defer timer.Stop()
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("%v: %v", p.cmd, err)
	}
}

// cpu is the time that all threads of the process have run, to the nanosecond. Threads that ended are
// missing: Go's do not.
func (p *process) cpu(t *testing.T) time.Duration {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p.cmd.Process.Pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("no schedstat of %d: %v", p.cmd.Process.Pid, err)
	}
	var total int64
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		total += ns
	}
	return time.Duration(total)
}

// row holds one server's figures of one measurement.
type row struct {
	cpu      float64 // µs a query
	qps      float64
	p50, p99 time.Duration
	conns    int64
	failed   int
	lost     int
	asked    int64 // exchanges that reached an upstream
}

// median of the rounds, figure by figure.
func median(rows []row) row {
	mid := func(get func(row) float64) float64 {
		var v []float64
		for _, r := range rows {
			v = append(v, get(r))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return row{
		cpu:    mid(func(r row) float64 { return r.cpu }),
		qps:    mid(func(r row) float64 { return r.qps }),
		p50:    time.Duration(mid(func(r row) float64 { return float64(r.p50) })),
		p99:    time.Duration(mid(func(r row) float64 { return float64(r.p99) })),
		conns:  int64(mid(func(r row) float64 { return float64(r.conns) })),
		failed: int(mid(func(r row) float64 { return float64(r.failed) })),
		lost:   int(mid(func(r row) float64 { return float64(r.lost) })),
		asked:  int64(mid(func(r row) float64 { return float64(r.asked) })),
	}
}

// inTurns measures each program once in each round, and reports the medians side by side.
func inTurns(t *testing.T, what string, measure func(t *testing.T, c contender) row, floor bool) {
	contenders := build(t)
	wanted, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	contenders = slices.DeleteFunc(contenders, func(c contender) bool { return !wanted.MatchString(c.name) })
	if !floor {
		contenders = slices.DeleteFunc(contenders, func(c contender) bool { return strings.HasPrefix(c.name, "floor") })
	}
	if len(contenders) == 0 {
		t.Skipf("nothing is called %s", *only)
	}
	first := contenders[0].name
	rows := map[string][]row{}
	for i := range *rounds {
		for j := range contenders {
			c := contenders[(i+j)%len(contenders)] // so that none always follows the same one
			rows[c.name] = append(rows[c.name], measure(t, c))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s (medians of %d)\n%-15s %10s %9s %10s %10s %8s %9s %7s %9s\n", what, *rounds,
		"", "µs/query", "qps", "p50", "p99", "TCP", "SERVFAIL", "lost", "exchanges")
	for _, c := range contenders {
		r := median(rows[c.name])
		fmt.Fprintf(&b, "%-15s %10.1f %9.0f %10s %10s %8d %9d %7d %9d\n", c.name, r.cpu, r.qps,
			r.p50.Round(10*time.Microsecond), r.p99.Round(10*time.Microsecond), r.conns, r.failed, r.lost, r.asked)
	}
	fmt.Fprintf(&b, "divided by %s of the same round\n", first)
	for _, c := range contenders[1:] {
		var ratios []row
		for i, o := range rows[c.name] {
			ratios = append(ratios, o.dividedBy(rows[first][i]))
		}
		r := median(ratios)
		fmt.Fprintf(&b, "%-15s %10.2f %9.2f %10.2f %10.2f %8.2f\n", c.name, r.cpu, r.qps,
			r.p50.Seconds(), r.p99.Seconds(), float64(r.conns)/100)
	}
	t.Log(b.String())
}

// dividedBy returns ratios: durations in seconds, connections in hundredths.
func (r row) dividedBy(o row) row {
	ratio := func(a, b float64) float64 {
		if b == 0 {
			return 0
		}
		return a / b
	}
	seconds := func(a, b time.Duration) time.Duration {
		return time.Duration(ratio(float64(a), float64(b)) * float64(time.Second))
	}
	return row{
		cpu: ratio(r.cpu, o.cpu), qps: ratio(r.qps, o.qps),
		p50: seconds(r.p50, o.p50), p99: seconds(r.p99, o.p99),
		conns: int64(100 * ratio(float64(r.conns), float64(o.conns))),
	}
}

// misses asks for names that were never asked before, with the upstream 1 ms away.
func misses(stanza string, rate float64, clients int) func(*testing.T, contender) row {
	return func(t *testing.T, c contender) row {
		u := startUpstream(t, time.Millisecond)
		p := start(t, c, fmt.Sprintf(stanza, u.addr))
		l := load{addr: p.addr, clients: clients, rate: rate, duration: 500 * time.Millisecond, patience: 5 * time.Second, name: freshName}
		l.run(t) // warm
		l.duration = *length
		before, asked, began := p.cpu(t), u.queries.Load(), time.Now()
		r := l.run(t)
		took, used := time.Since(began), p.cpu(t)-before
		p.stop(t)
		return row{
			cpu:    float64(used.Nanoseconds()) / 1e3 / float64(max(r.answered, 1)),
			qps:    float64(r.answered) / took.Seconds(),
			p50:    r.quantile(0.5),
			p99:    r.quantile(0.99),
			conns:  u.conns.Load(), // including the warm-up, which opens them
			failed: r.failed, lost: r.lost,
			asked: u.queries.Load() - asked,
		}
	}
}

func TestMissesTCP(t *testing.T) {
	inTurns(t, fmt.Sprintf("unique misses over force_tcp, upstream 1 ms, window %d", *window),
		misses("forward . %s {\nforce_tcp\n}", 0, *window), true)
}

func TestMissesUDP(t *testing.T) {
	inTurns(t, fmt.Sprintf("unique misses over UDP, upstream 1 ms, window %d", *window),
		misses("forward . %s", 0, *window), true)
}

func TestMissesSteady(t *testing.T) {
	inTurns(t, "unique misses over force_tcp, upstream 1 ms, 2,000 a second",
		misses("forward . %s {\nforce_tcp\n}", 2000, 64), true)
}

// silence has two upstreams, of which one falls silent. The measurement begins when a client has first waited for it:
// the server gets twice the length of the healthy start to notice.
func silence(stanza string) func(*testing.T, contender) row {
	return func(t *testing.T, c contender) row {
		alive, dying := startUpstream(t, time.Millisecond), startUpstream(t, time.Millisecond)
		p := start(t, c, fmt.Sprintf(stanza, alive.addr, dying.addr))
		l := load{addr: p.addr, clients: 400, rate: 400, duration: 2 * time.Second, patience: 5 * time.Second, name: freshName}
		healthy := l.run(t)
		dying.silent.Store(true)
		l.duration = 8 * time.Second
		r := l.run(t)
		t.Logf("%s: p99 healthy %s, with one silent %s, slowest %s", c.name,
			healthy.quantile(0.99).Round(10*time.Microsecond), r.quantile(0.99).Round(10*time.Microsecond), r.quantile(1).Round(time.Millisecond))
		p.stop(t)
		return row{p50: r.quantile(0.5), p99: r.quantile(0.99), failed: r.failed, lost: r.lost,
			qps: float64(r.answered) / l.duration.Seconds(), conns: alive.conns.Load() + dying.conns.Load(),
			asked: alive.queries.Load() + dying.queries.Load()}
	}
}

func TestSilenceUDP(t *testing.T) {
	inTurns(t, "one of two upstreams falls silent, UDP, 400 a second", silence("forward . %s %s"), false)
}

func TestSilenceTCP(t *testing.T) {
	inTurns(t, "one of two upstreams falls silent, force_tcp, 400 a second", silence("forward . %s %s {\nforce_tcp\n}"), false)
}

// TestOneName has 1,000 clients ask the same cold name at once.
func TestOneName(t *testing.T) {
	inTurns(t, "1,000 clients ask one cold name, upstream 200 ms", func(t *testing.T, c contender) row {
		u := startUpstream(t, 200*time.Millisecond)
		p := start(t, c, "forward . "+u.addr+" {\nforce_tcp\n}")
		before := u.queries.Load()
		name := freshName()
		// Within 100 ms, so that they neither overflow the socket's buffer nor come after the answer.
		r := load{addr: p.addr, clients: 1000, rate: 10_000, duration: 100 * time.Millisecond, patience: 5 * time.Second, name: func() string { return name }}.run(t)
		p.stop(t)
		return row{p50: r.quantile(0.5), p99: r.quantile(0.99), failed: r.failed, lost: r.lost, conns: u.conns.Load(), asked: u.queries.Load() - before}
	}, false)
}

package netns

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// The stub resolvers that pods have.
const (
	glibc = "glibc"
	goNet = "go"
	musl  = "musl"
)

var stubResolverNames = []string{glibc, goNet, musl}

// stubPrograms holds testdata/stub.c, built against each C library. Go's resolver is in this program.
type stubPrograms map[string]string

// buildStubs compiles the C libraries' programs: gcc and, from Debian's musl-tools, musl-gcc.
func buildStubs(t *testing.T, dir string) stubPrograms {
	t.Helper()
	need(t, "gcc", "musl-gcc")
	built := stubPrograms{}
	for library, compiler := range map[string][]string{glibc: {"gcc"}, musl: {"musl-gcc", "-static"}} {
		built[library] = filepath.Join(dir, "stub-"+library)
		args := append(compiler[1:], "-O1", "-Wall", "-Werror", "-o", built[library], "testdata/stub.c")
		if out, err := exec.CommandContext(t.Context(), compiler[0], args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", compiler[0], args, err, out)
		}
	}
	return built
}

// stub is a process with a stub resolver in a pod. One goroutine at a time may use it.
type stub struct {
	program *lab.Program
	in      io.WriteCloser
	out     *bufio.Reader
}

// start starts a resolver in a pod; it ends with the test.
func (built stubPrograms) start(t *testing.T, pod *lab.Host, resolver string) *stub {
	t.Helper()
	cmd := stage(stageStub)
	if resolver != goNet {
		cmd = exec.Command(built[resolver])
	}
	reading, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, writing, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = reading, writing, os.Stderr
	program, err := pod.Start(cmd)
	if err := errors.Join(err, reading.Close(), writing.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := program.Kill(); err != nil {
			t.Error(err)
		}
		<-program.Done()
		if err := errors.Join(in.Close(), out.Close()); err != nil {
			t.Error(err)
		}
	})
	return &stub{program: program, in: in, out: bufio.NewReader(out)}
}

// lookup resolves a name to addresses of both families and returns how long that took. problem is the resolver's
// error.
func (s *stub) lookup(name string) (took time.Duration, problem string, err error) {
	if _, err := fmt.Fprintln(s.in, name); err != nil {
		return 0, "", err
	}
	line, err := s.out.ReadString('\n')
	if err != nil {
		return 0, "", fmt.Errorf("the stub resolver has ended: %w", err)
	}
	number, problem, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
	ms, err := strconv.Atoi(number)
	return time.Duration(ms) * time.Millisecond, problem, err
}

// resolveLines is the process behind Go's stub. Its output has the format of testdata/stub.c.
func resolveLines(in io.Reader, out io.Writer) error {
	names := bufio.NewScanner(in)
	resolver := &net.Resolver{PreferGo: true}
	for names.Scan() {
		began := time.Now()
		_, err := resolver.LookupIPAddr(context.Background(), names.Text())
		took, problem := time.Since(began).Milliseconds(), ""
		if err != nil {
			problem = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Fprintln(out, took, problem); err != nil {
			return err
		}
	}
	return names.Err()
}

// clientCounts is the output of `localcache pods IP -o json` about a client since the start.
type clientCounts struct {
	Queries     uint64            `json:"queries"`
	Sources     map[string]uint64 `json:"sources"`
	Rcodes      map[string]uint64 `json:"rcodes"`
	Suspected   map[string]uint64 `json:"suspected"`
	Retransmits []struct {
		Resolver, Cause string
		Count           uint64
	} `json:"retransmits"`
}

// String lists the retransmits, such as "glibc reply_lost 1, suspected query_lost 1"; "none" if there are none.
func (c *clientCounts) String() string {
	var list []string
	for _, r := range c.Retransmits {
		list = append(list, fmt.Sprintf("%s %s %d", r.Resolver, r.Cause, r.Count))
	}
	for _, cause := range []string{"slow_upstream", "reply_lost", "query_lost"} {
		if n := c.Suspected[cause]; n > 0 {
			list = append(list, fmt.Sprintf("suspected %s %d", cause, n))
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

func (c *clientCounts) counted() (n uint64) {
	for _, r := range c.Retransmits {
		n += r.Count
	}
	return n
}

func (c *clientCounts) suspected() (n uint64) {
	for _, k := range c.Suspected {
		n += k
	}
	return n
}

// diagSocket is the diagnostics socket of a daemon of a test, different from the default that all share.
func diagSocket(l *lab.Lab) string { return l.Path("diag.sock") }

// countsOf asks the program about a client, as an administrator on the node would.
func (d *daemon) countsOf(ctx context.Context, ip netip.Addr) (*clientCounts, error) {
	cmd := exec.CommandContext(ctx, os.Getenv(envBinary), "pods", ip.String(), "-o", "json", "-socket", diagSocket(d.lab))
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	if err := d.lab.Node.Run(cmd); err != nil {
		return nil, fmt.Errorf("localcache pods %s: %w: %s", ip, err, stderr.String())
	}
	var v struct {
		Items []struct {
			Windows map[string]clientCounts `json:"windows"`
		} `json:"items"`
	}
	if err := json.Unmarshal([]byte(stdout.String()), &v); err != nil || len(v.Items) != 1 {
		return nil, fmt.Errorf("localcache pods %s: %d items: %w", ip, len(v.Items), err)
	}
	since, ok := v.Items[0].Windows["start"]
	if !ok {
		return nil, fmt.Errorf("localcache pods %s: no window since the start", ip)
	}
	return &since, nil
}

// stalls measures how late the machine wakes a sleeping process. Resolvers are recognized by their timers, so a
// machine that stalls for longer than the tolerances blurs them.
type stalls struct {
	longest atomic.Int64
	stop    chan struct{}
	done    chan struct{}
}

func watchStalls() *stalls {
	w := &stalls{stop: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		const nap = 5 * time.Millisecond
		for last := time.Now(); ; {
			select {
			case <-w.stop:
				return
			case <-time.After(nap):
			}
			now := time.Now()
			w.longest.Store(max(w.longest.Load(), int64(now.Sub(last)-nap)))
			last = now
		}
	}()
	return w
}

// end ends it and returns the longest stall.
func (w *stalls) end() time.Duration {
	close(w.stop)
	<-w.done
	return time.Duration(w.longest.Load())
}

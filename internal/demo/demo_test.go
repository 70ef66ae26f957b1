package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/lab"
)

// demoProcess returns a command that runs this test binary as localcache-demo (see TestMain).
func demoProcess(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = programName
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// Under the race detector each of the many resolvers would sleep a second at its end.
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	return cmd, stdout, stderr
}

func skipRefused(t *testing.T, stderr *bytes.Buffer) {
	t.Helper()
	if strings.Contains(stderr.String(), lab.ErrRefused.Error()) && os.Getenv("LOCALCACHE_LAB_REQUIRED") == "" {
		t.Skip(stderr.String())
	}
}

// The demo keeps its promises with the cache of this very build.
func TestDemoOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	cmd, stdout, stderr := demoProcess(t, "--once", "--localcache", buildProgram(t))
	err := cmd.Run()
	skipRefused(t, stderr)
	if err != nil || !strings.Contains(stdout.String(), "All 15 promises were kept.") || strings.Contains(stdout.String(), "BROKEN") {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
	checkDocument(t, stdout.String())
}

// While the demo stays, its page can be opened from the machine with the secret address, and reports faults that are
// repeated. Ctrl-C then ends it with status 0.
func TestDemoStays(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	t.Parallel()
	cmd, _, stderr := demoProcess(t, "--localcache", buildProgram(t))
	cmd.Stdout = nil
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	lines := bufio.NewScanner(out)
	address := ""
	for lines.Scan() && !strings.HasSuffix(lines.Text(), "/metrics") {
		fmt.Fprintln(&said, lines.Text())
		if at := strings.Index(lines.Text(), "http://127.0.0.1:"); at >= 0 && !strings.Contains(lines.Text(), "curl") {
			address = lines.Text()[at:]
		}
	}
	if address == "" {
		err := cmd.Wait()
		skipRefused(t, stderr)
		t.Fatalf("no address of a page (%v):\n%s%s", err, said.String(), stderr)
	}
	get := func(url string) (int, string) {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get(address); status != http.StatusOK || !strings.Contains(body, "<html") {
		t.Errorf("%s: status %d, %s", address, status, body)
	}
	host := address[:strings.Index(address[len("http://"):], "/")+len("http://")]
	if status, body := get(host + "/api/v1/pods"); status != http.StatusNotFound {
		t.Errorf("without the secret: status %d, %s", status, body)
	}
	waits := func() (n uint64) {
		var v api.List[api.PodDetail]
		_, body := get(address + "api/v1/pods/10.233.64.14")
		if err := json.Unmarshal([]byte(body), &v); err != nil || len(v.Items) != 1 {
			t.Fatalf("%s: %v", body, err)
		}
		return v.Items[0].Windows["start"].RetransmitTotal
	}
	for before, deadline := waits(), time.Now().Add(time.Minute); waits() <= before; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the troubles do not go on:\n%s", said.String())
		}
	}
	if err := cmd.Process.Signal(unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		fmt.Fprintln(&said, lines.Text())
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(said.String(), "All 15 promises were kept.") || !strings.Contains(said.String(), "Nothing of it is left.") {
		t.Errorf("%v\n%s%s", err, said.String(), stderr)
	}
	if resp, err := http.Get(address); err == nil {
		resp.Body.Close()
		t.Error("the page is there after the end")
	}
}

// Ctrl-C at a terminal reaches every process of the demo's group, and the demo's own forwarding makes it two for the
// inner one. In the middle of the demo it ends with status 1.
func TestDemoInterrupted(t *testing.T) {
	cmd, stdout, stderr := demoProcess(t, "--localcache", "/proc/self/exe")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	first := make(chan struct{})
	cmd.Stdout = &firstWrite{w: stdout, seen: first}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case <-first:
	case err := <-ended:
		skipRefused(t, stderr)
		t.Fatalf("%v: %s", err, stderr)
	}
	if err := unix.Kill(-cmd.Process.Pid, unix.SIGINT); err != nil {
		t.Fatal(err)
	}
	err := <-ended
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != cli.ExitFailed || !strings.Contains(stderr.String(), "interrupted; nothing of it is left") {
		t.Errorf("%v, want status 1: %s", err, stderr)
	}
}

// firstWrite signals the first write.
type firstWrite struct {
	w    *bytes.Buffer
	seen chan struct{}
}

func (f *firstWrite) Write(p []byte) (int, error) {
	if f.w.Len() == 0 {
		close(f.seen)
	}
	return f.w.Write(p)
}

// A promise that was not kept is the demo's status.
func TestDemoStatus(t *testing.T) {
	for _, c := range []struct {
		kept   bool
		err    error
		status int
		out    string
	}{
		{true, nil, cli.ExitOK, "All 1 promises were kept."},
		{false, nil, cli.ExitFailed, "1 of 1 promises were BROKEN."},
		{true, errors.New("the sky fell"), cli.ExitFailed, "All 1 promises were kept."},
	} {
		var stdout, stderr bytes.Buffer
		d := &demonstration{report: report{w: &stdout}}
		d.promise(c.kept, "100%% of %d", 7)
		d.verdict()
		if got := d.finish(t.Context(), c.err, &stderr); got != c.status || !strings.Contains(stdout.String(), c.out) {
			t.Errorf("%+v: status %d, output %s", c, got, stdout.String())
		}
		if c.err != nil && !strings.Contains(stderr.String(), c.err.Error()) {
			t.Errorf("%v is not reported: %s", c.err, stderr.String())
		}
	}
}

func TestDemoUsage(t *testing.T) {
	for args, want := range map[string]string{"-twice": "-twice", "now": `unexpected argument "now"`, "--localcache=/nowhere": "/nowhere"} {
		var stdout, stderr bytes.Buffer
		if got := Run([]string{args}, &stdout, &stderr); got != cli.ExitUsage || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: status %d, %s", args, got, stderr.String())
		}
	}
}

func TestLogTail(t *testing.T) {
	l := &logTail{}
	for range logTailSize {
		if n, err := l.Write([]byte("ab")); n != 2 || err != nil {
			t.Fatal(n, err)
		}
	}
	if _, err := l.Write([]byte("end")); err != nil {
		t.Fatal(err)
	}
	if got := l.tail(); len(got) != logTailSize || !strings.HasSuffix(got, "abend") {
		t.Errorf("%d bytes, ending in %q", len(got), got[max(0, len(got)-8):])
	}
}

func TestRound(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1234 * time.Nanosecond:   "1µs",
		123456 * time.Nanosecond: "120µs",
		1234 * time.Microsecond:  "1.2ms",
		12345 * time.Microsecond: "12ms",
		1234 * time.Millisecond:  "1.2s",
	} {
		if got := round(d).String(); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/lab"
)

// demoProcess is this test binary under the program's name, so that TestMain runs the program.
func demoProcess(t *testing.T, args ...string) (cmd *exec.Cmd, stdout, stderr *bytes.Buffer) {
	t.Helper()
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	cmd = exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = "localcache"
	cmd.Stdout, cmd.Stderr = stdout, stderr
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
	cmd, stdout, stderr := demoProcess(t, "demo", "--once")
	err := cmd.Run()
	skipRefused(t, stderr)
	if err != nil || !strings.Contains(stdout.String(), "All 10 promises were kept.") || strings.Contains(stdout.String(), "BROKEN") {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
}

// Ctrl-C at a terminal reaches every process of the demo's group, and the demo's own forwarding makes
// it two for the inner one. In the middle of the account it ends with status 1.
func TestDemoInterrupted(t *testing.T) {
	cmd, stdout, stderr := demoProcess(t, "demo")
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
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || !strings.Contains(stderr.String(), "interrupted; nothing of it is left") {
		t.Errorf("%v, want status 1: %s", err, stderr)
	}
}

// firstWrite tells when something was written.
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
		{true, nil, exitOK, "All 1 promises were kept."},
		{false, nil, exitFailed, "1 of 1 promises were BROKEN."},
		{true, errors.New("the sky fell"), exitFailed, "All 1 promises were kept."},
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
	for args, want := range map[string]string{"-twice": "-twice", "now": `unexpected argument "now"`} {
		var stdout, stderr bytes.Buffer
		if got := demo([]string{args}, &stdout, &stderr); got != exitUsage || !strings.Contains(stderr.String(), want) {
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

package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/lab"
)

// TestHurriedExit: while it drains, a second SIGTERM changes nothing, and SIGINT ends the wait.
func TestHurriedExit(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	d := start(t, l, serveOptions{}) // with the lameduck of 5 s that is shipped
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := d.program.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGTERM)
	d.waitLogged("lameduck", startTimeout)
	signal(syscall.SIGTERM)
	time.Sleep(time.Second)
	if !d.alive() {
		t.Fatal("the second SIGTERM cut the lameduck short")
	}
	hurried := time.Now()
	signal(syscall.SIGINT)
	d.waitEnd()
	if took := time.Since(hurried); took > 3*time.Second {
		t.Errorf("the end took %v after SIGINT", took)
	}
}

// TestPidfileOfNextProcess: the file belongs to the process that wrote it last.
func TestPidfileOfNextProcess(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	pidfile := filepath.Join(t.TempDir(), "pid")
	o := serveOptions{Corefile: shortLameduck(t), Args: []string{"-pidfile", pidfile}, Metrics: firstMetrics}
	holds := func(d *daemon, want int) {
		t.Helper()
		d.until(startTimeout, "the pidfile is written", func() error {
			content, err := os.ReadFile(pidfile)
			if err == nil && strings.TrimSpace(string(content)) != strconv.Itoa(want) {
				err = os.ErrInvalid
			}
			return err
		})
	}
	first := start(t, l, o)
	holds(first, first.program.PID())
	o.Metrics = secondMetrics
	second := start(t, l, o)
	holds(second, second.program.PID())
	first.terminate()
	holds(second, second.program.PID())
	second.terminate()
	if _, err := os.Stat(pidfile); !os.IsNotExist(err) {
		t.Errorf("the pidfile is still there: %v", err)
	}
}

// TestWrongCorefileBesideAProcess checks that a new process that fails for a reason of its own does not blame the
// process that shares the port.
func TestWrongCorefileBesideAProcess(t *testing.T) {
	t.Parallel()
	l := lab.Start(t, lab.Config{Pods: 1})
	start(t, l, serveOptions{})
	conf := l.Path("Corefile.wrong")
	wrong := strings.Replace(smallCorefile, "forward", "cache {\n        bogus\n    }\n    forward", 1)
	if err := os.WriteFile(conf, []byte(wrong), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.CommandContext(t.Context(), os.Getenv(envBinary), "-localip", lab.LocalIP, "-conf", conf, "-metrics-listen-address", secondMetrics)
	cmd.Stderr = &out
	if err := l.Node.Run(cmd); err == nil {
		t.Error("it started")
	}
	if s := out.String(); !strings.Contains(s, "bogus") || strings.Contains(s, "held by") || strings.Contains(s, "capability") {
		t.Errorf("it said\n%s", s)
	}
}

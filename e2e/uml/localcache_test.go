package uml

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// corefile forwards to the Service address over TCP, as a node-local cache does. The connection is kept
// long enough for a test to count on it.
const corefile = `.:53 {
    bind 169.254.25.10
    errors
    cache 300
    forward . 10.233.0.3 {
        force_tcp
        expire 120s
    }
%s}
`

// process is a running localcache.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // of Wait; read it after done is closed
	log  string
}

// startTime is how long a process may take until it serves with its rules in place. It takes 3 s, most of
// them for running iptables-legacy some dozens of times, and several times that on a busy machine.
const startTime = 30 * time.Second

// startLocalcache runs the binary under test as a node's cache. When it returns, the start is complete, which the
// pidfile shows, the pod has had an answer, and the rules are in place, or absent, as rules says. setup is added to
// the Corefile, args to the command line. A process that still runs at the end of the test is killed.
func (c *cluster) startLocalcache(t *testing.T, rules bool, setup string, args ...string) *process {
	t.Helper()
	dir := t.TempDir()
	conf := filepath.Join(dir, "Corefile")
	if err := os.WriteFile(conf, fmt.Appendf(nil, corefile, setup), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.CreateTemp(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	pidfile := filepath.Join(dir, "pid")
	args = append([]string{"-localip", localIP.String(), "-conf", conf, "-pidfile", pidfile}, args...)
	p := &process{cmd: exec.Command(*localcache, args...), done: make(chan struct{}), log: log.Name()}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	started := time.Now()
	if err := errors.Join(p.cmd.Start(), log.Close()); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.signal(unix.SIGKILL)
		<-p.done
		if t.Failed() {
			text, err := os.ReadFile(p.log)
			t.Logf("localcache %s said (%v):\n%s", strings.Join(p.cmd.Args[1:], " "), err, text)
		}
	})
	for {
		if _, err := os.Stat(pidfile); err == nil {
			break
		}
		select {
		case <-p.done:
			t.Fatalf("localcache ended at start: %v", p.err)
		case <-time.After(20 * time.Millisecond):
		}
		if time.Since(started) > startTime {
			t.Fatalf("localcache has not started within %v", startTime)
		}
	}
	t.Logf("localcache started within %d ms", time.Since(started).Milliseconds())
	if err := c.pod.ask("udp", localIP, "ready.default.svc.cluster.local."); err != nil {
		t.Fatalf("pod asks after the start: %v", err)
	}
	if rules {
		requireNotrack(t)
	} else if s := readState(t); s.matching("--notrack") > 0 {
		t.Errorf("there are rules, although none are wanted:\n%s", strings.Join(s, "\n"))
	}
	return p
}

func (p *process) signal(s syscall.Signal) {
	// A process that has ended needs no signal.
	_ = p.cmd.Process.Signal(s)
}

// end sends a signal and waits for the process' end.
func (p *process) end(t *testing.T, s syscall.Signal) {
	t.Helper()
	sent := time.Now()
	p.signal(s)
	select {
	case <-p.done:
		t.Logf("localcache ended %d ms after signal %v", time.Since(sent).Milliseconds(), s)
	case <-time.After(20 * time.Second):
		t.Fatalf("localcache did not end within 20 s of signal %v", s)
	}
	if s == unix.SIGTERM && p.err != nil {
		t.Errorf("localcache after SIGTERM: %v", p.err)
	}
}

// teardown runs `localcache teardown` and returns its output.
func teardown(t *testing.T) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(*localcache, "teardown")
	cmd.Stdout, cmd.Stderr = &out, &errs
	started := time.Now()
	err := cmd.Run()
	t.Logf("localcache teardown took %d ms", time.Since(started).Milliseconds())
	if err != nil {
		t.Errorf("localcache teardown: %v: %s%s", err, out.String(), errs.String())
	}
	return out.String()
}

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"localcache.dev/localcache/bench/internal/echo"
	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/upstream"
)

// echoBatch is how many datagrams the batched echo, and every server with such a setting, handles at once: as many as
// localcache.
const echoBatch = 64

// child runs this program as one of the servers that it starts, and reports whether that was requested.
func child(ctx context.Context, args []string) (asked bool, err error) {
	switch {
	case len(args) == 3 && args[0] == "echo" && args[1] == "single":
		return true, echo.Single(ctx, args[2])
	case len(args) == 3 && args[0] == "echo" && args[1] == "batched":
		return true, echo.Batched(ctx, args[2], echoBatch)
	case len(args) == 2 && args[0] == "upstream":
		return true, serveUpstream(args[1], os.Stdin, os.Stdout)
	}
	return false, nil
}

// serveUpstream serves until standard input ends. Each line there is a delay to set, empty for the present
// one; the counters come back as a line of JSON.
func serveUpstream(addr string, in io.Reader, out io.Writer) error {
	// The sleeper between queries holds on to its share of the scheduler for a while; one core means
	// one share.
	runtime.GOMAXPROCS(4)
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return err
	}
	s, err := upstream.Listen(ap)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if text := lines.Text(); text != "" {
			d, err := time.ParseDuration(text)
			if err != nil {
				return errors.Join(err, s.Close())
			}
			s.SetDelay(d)
		}
		if err := json.NewEncoder(out).Encode(s.Counters()); err != nil {
			return errors.Join(err, s.Close())
		}
	}
	return errors.Join(lines.Err(), s.Close())
}

// remote is the upstream in its own process.
type remote struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startUpstream(l *machine.Launcher, self string) (*remote, error) {
	cmd := exec.Command(self, "upstream", upstreamAddr.String())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := l.Start(cmd); err != nil {
		return nil, fmt.Errorf("start the upstream: %w", err)
	}
	r := &remote{cmd: cmd, in: in, out: bufio.NewReader(out)}
	if _, err := r.counters(); err != nil {
		return nil, errors.Join(err, r.close())
	}
	return r, nil
}

func (r *remote) say(line string) (c upstream.Counters, err error) {
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		return c, fmt.Errorf("upstream: %w", err)
	}
	answer, err := r.out.ReadBytes('\n')
	if err != nil {
		return c, fmt.Errorf("upstream: %w", err)
	}
	return c, json.Unmarshal(answer, &c)
}

func (r *remote) counters() (upstream.Counters, error) { return r.say("") }

func (r *remote) setDelay(d time.Duration) error {
	_, err := r.say(d.String())
	return err
}

// close ends the process.
func (r *remote) close() error {
	err := r.in.Close()
	// It ends by itself; if it does not within seconds it is killed.
	timer := time.AfterFunc(endTimeout, func() { _ = r.cmd.Process.Kill() })
	defer timer.Stop()
	return errors.Join(err, r.cmd.Wait())
}

// tail is the end of a log, for error messages.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "\n  ")
}

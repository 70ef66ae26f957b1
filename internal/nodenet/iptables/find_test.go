package iptables

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

// TestHungVersion has a program that does not even print its version.
func TestHungVersion(t *testing.T) {
	nettest.Need(t, "sleep")
	path := nettest.WriteProgram(t, t.TempDir(), "iptables", "exec sleep 60")
	for name, ask := range map[string]func(context.Context) (any, error){
		"isLegacy":    func(ctx context.Context) (any, error) { return isLegacy(ctx, path) },
		"openLibrary": func(ctx context.Context) (any, error) { return openLibrary(ctx, path, false, 1) },
	} {
		nettest.Within(t, name, 15*time.Second, func() {
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			if v, err := ask(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v, %v", name, v, err)
			}
		})
	}
	if left := ownChildren(t); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
}

// TestVersionIsAskedOnce starts a program once for each question, and again when another program has
// replaced it.
func TestVersionIsAskedOnce(t *testing.T) {
	log := filepath.Join(t.TempDir(), "starts")
	path := nettest.WriteProgram(t, t.TempDir(), "iptables", "echo >> "+log+"; echo 'iptables v1.8.9 (nf_tables)'")
	version := func() string {
		t.Helper()
		legacy, err := isLegacy(t.Context(), path)
		nettest.Must(t, err)
		library, err := openLibrary(t.Context(), path, false, 1)
		nettest.Must(t, err)
		major, minor, patch := library.GetIptablesVersion()
		return fmt.Sprintf("%d.%d.%d %t", major, minor, patch, legacy)
	}
	for range 3 {
		if v := version(); v != "1.8.9 false" {
			t.Fatal(v)
		}
	}
	if b, err := os.ReadFile(log); err != nil || len(b) != 2 {
		t.Errorf("asked %d times, %v", len(b), err)
	}
	nettest.Must(t, os.Rename(nettest.WriteProgram(t, t.TempDir(), "iptables", "echo 'iptables v1.6.1'"), path))
	if v := version(); v != "1.6.1 true" {
		t.Errorf("the new program is taken for the old one: %s", v)
	}
}

// TestVersions compares the options by which calls of several versions wait for the lock.
func TestVersions(t *testing.T) {
	for _, test := range []struct{ says, wait, err string }{
		{"iptables v1.8.9 (nf_tables)", "-w 7", ""},
		{"ip6tables v1.8.2 (legacy)", "-w 7", ""},
		{"iptables v1.6.0", "-w 7", ""},
		{"iptables v1.4.21", "-w", ""},
		{"iptables v1.4.19.1", "", "1.4.20"},
		{"iptables", "", "no iptables version"},
	} {
		log := filepath.Join(t.TempDir(), "calls")
		path := nettest.WriteProgram(t, t.TempDir(), "iptables", `[ "$1" = --version ] || echo "$@" >> `+log+"; echo '"+test.says+"'")
		p, err := openProgram(t.Context(), path, true, false, 7*time.Second, new(lockWatch))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v, want %q", test.says, err, test.err)
			}
			continue
		}
		nettest.Must(t, err)
		_, err = p.listTable(t.Context(), "raw")
		nettest.Must(t, err)
		_, err = p.list(t.Context(), "raw", "OUTPUT")
		nettest.Must(t, err)
		calls, err := os.ReadFile(log)
		nettest.Must(t, err)
		want := "-t raw -S " + test.wait + "\n-t raw -S OUTPUT " + strings.Replace(test.wait, "-w", "--wait", 1) + "\n"
		if string(calls) != want {
			t.Errorf("%s: %q, want %q", test.says, calls, want)
		}
	}
}

package nettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// IPTables lists the programs of iptables whose names tell their variant.
var IPTables = []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"}

// WriteProgram writes a shell script to a directory and returns its path.
func WriteProgram(t *testing.T, dir, name, script string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	Must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

// HangPrograms sets PATH to iptables programs that tell their version and then do not end.
func HangPrograms(t *testing.T) {
	t.Helper()
	Need(t, "sleep")
	dir := t.TempDir()
	for _, name := range IPTables {
		variant := "legacy"
		if strings.HasSuffix(name, "-nft") {
			variant = "nf_tables"
		}
		WriteProgram(t, dir, name, fmt.Sprintf(`[ "$1" = --version ] && { echo 'iptables v1.8.9 (%s)'; exit; }
PATH=%s exec sleep 60`, variant, os.Getenv("PATH")))
	}
	t.Setenv("PATH", dir)
}

// CountStarts puts programs into PATH that count how often each of IPTables and its restore program is
// started. The returned func returns the counts by name since its last call.
func CountStarts(t *testing.T) func() map[string]int {
	t.Helper()
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "starts")
	for _, p := range IPTables {
		for _, name := range []string{p, p + "-restore"} {
			path, err := exec.LookPath(name)
			if err != nil {
				t.Skip(err)
			}
			WriteProgram(t, dir, name, "echo "+name+" >> "+log+"\nexec "+path+` "$@"`)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() map[string]int {
		text, err := os.ReadFile(log)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		Must(t, os.RemoveAll(log))
		starts := make(map[string]int)
		for name := range strings.FieldsSeq(string(text)) {
			starts[name]++
		}
		return starts
	}
}

// XtablesLock opens the file of the xtables lock until the test ends.
func XtablesLock(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile("/run/xtables.lock", os.O_RDONLY|os.O_CREATE, 0o600)
	Must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// Within fails the test where f takes longer than most.
func Within(t *testing.T, what string, most time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > most {
		t.Errorf("%s took %s, want %s at most", what, took, most)
	}
}

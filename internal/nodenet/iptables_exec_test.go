package nodenet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/iptables"
	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// writeProgram makes a program of the shell and returns its path.
func writeProgram(t *testing.T, name, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// hungPrograms makes a PATH of iptables programs that tell their version and then do not end.
func hungPrograms(t *testing.T) {
	t.Helper()
	nettest.Need(t, "sleep")
	dir := t.TempDir()
	for name, mode := range map[string]string{"iptables-nft": "nf_tables", "ip6tables-nft": "nf_tables",
		"iptables-legacy": "legacy", "ip6tables-legacy": "legacy"} {
		script := "#!/bin/sh\n[ \"$1\" = --version ] && { echo 'iptables v1.8.9 (" + mode + ")'; exit; }\nPATH=" +
			os.Getenv("PATH") + " exec sleep 60\n"
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

// within fails the test where f takes long beyond what is promised.
func within(t *testing.T, what string, most time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > most {
		t.Errorf("%s took %s, want %s at most", what, took, most)
	}
}

// TestHungProgram has programs that do not end: every method ends with its context, and without one
// after the limit, and names the program.
func TestHungProgram(t *testing.T) {
	for _, backend := range backends[:2] {
		t.Run(backend, func(t *testing.T) {
			nettest.NewNamespace(t)
			if backend == rule.IPTablesLegacy {
				nettest.Run(t, "iptables-legacy -t raw -S; iptables-legacy -t filter -S") // loads the tables
			}
			hungPrograms(t)
			fw, err := iptables.New(t.Context(), backend, "lc0", iptables.Find(t.Context()), iptables.LockWait)
			if err != nil {
				t.Fatal(err)
			}
			rules := testSpec().Plan(PlanOptions{})
			methods := map[string]func(context.Context) error{
				"Check":           func(ctx context.Context) error { _, err := fw.Check(ctx, rules); return err },
				"Apply":           func(ctx context.Context) error { return fw.Apply(ctx, rules) },
				"Remove":          func(ctx context.Context) error { _, err := fw.Remove(ctx); return err },
				"RemoveNodeCache": func(ctx context.Context) error { _, err := fw.RemoveNodeCache(ctx); return err },
				"SocketMatch":     func(ctx context.Context) error { return fw.SocketMatch(ctx, testSpec().Addresses) },
			}
			for name, method := range methods {
				within(t, name+" with a deadline", 15*time.Second, func() {
					ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
					defer cancel()
					err := method(ctx)
					if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "iptables-") {
						t.Errorf("%s with a deadline: %v", name, err)
					}
				})
			}
			for _, x := range fw.Leftovers {
				x.Limit = 100 * time.Millisecond
			}
			for name, method := range methods {
				within(t, name, 15*time.Second, func() {
					if err := method(t.Context()); !errors.Is(err, iptables.ErrHung) || errors.Is(err, rule.ErrLocked) || !strings.Contains(err.Error(), "iptables-") {
						t.Errorf("%s: %v", name, err)
					}
				})
			}
		})
	}
}

// TestHungProgramAtDetection has the choice fall on what works, in bounded time.
func TestHungProgramAtDetection(t *testing.T) {
	nettest.NewNamespace(t)
	hungPrograms(t)
	within(t, "the choice", 40*time.Second, func() {
		fw, why, err := DetectFirewall(nettest.Context(t), ChoiceAuto, "lc0", nettest.NewLog(t))
		if err != nil || fw.Name() != rule.NFTables || !strings.Contains(why, "no rules") && !strings.Contains(why, "cannot be used") {
			t.Errorf("%v, %q, %v", fw, why, err)
		}
	})
}

// TestHungVersion has a program that does not even tell its version.
func TestHungVersion(t *testing.T) {
	nettest.Need(t, "sleep")
	path := writeProgram(t, "iptables", "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	within(t, "the question", 15*time.Second, func() {
		if v, err := iptables.AskVersion(ctx, path); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, %v", v, err)
		}
	})
}

// TestVersionIsAskedOnce: a program is started once for its version, and again when another lies in its place.
func TestVersionIsAskedOnce(t *testing.T) {
	calls := filepath.Join(t.TempDir(), "calls")
	path := writeProgram(t, "iptables", "echo >> "+calls+"; echo 'iptables v1.8.9 (nf_tables)'")
	for range 3 {
		if v, err := iptables.AskVersion(t.Context(), path); err != nil || v.String() != "1.8.9" || v.Legacy {
			t.Fatalf("%v, %v", v, err)
		}
	}
	if b, err := os.ReadFile(calls); err != nil || len(b) != 1 {
		t.Errorf("asked %d times, %v", len(b), err)
	}
	other := writeProgram(t, "iptables", "echo 'iptables v1.6.1'")
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	if v, err := iptables.AskVersion(t.Context(), path); err != nil || v.String() != "1.6.1" || !v.Legacy {
		t.Errorf("the new program is taken for the old one: %v, %v", v, err)
	}
}

// TestRunProgramLeavesOutput has a program end whose child keeps the output open.
func TestRunProgramLeavesOutput(t *testing.T) {
	nettest.Need(t, "sleep")
	file := filepath.Join(t.TempDir(), "pid")
	path := writeProgram(t, "iptables", "sleep 60 & echo $! > "+file+"; wait")
	within(t, "the call", 15*time.Second, func() {
		if _, _, err := iptables.RunProgram(t.Context(), 500*time.Millisecond, "", path); !errors.Is(err, iptables.ErrHung) {
			t.Errorf("got %v", err)
		}
	})
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Error(err)
	}
}

// TestProgramLeft has a call that could not be killed hold up those after it.
func TestProgramLeft(t *testing.T) {
	nettest.Need(t, "true")
	ended := make(chan struct{})
	x := &iptables.Program{Path: writeProgram(t, "iptables", "exit 0"), Limit: 10 * time.Second, Lock: new(iptables.LockWatch), Left: ended}
	for range 2 {
		if _, err := x.Run(t.Context()); !errors.Is(err, iptables.ErrHung) || !strings.Contains(err.Error(), x.Path) {
			t.Errorf("got %v", err)
		}
	}
	if x.Calls != 0 {
		t.Errorf("%d programs were started beside the one that is left", x.Calls)
	}
	close(ended)
	if _, err := x.Run(t.Context()); err != nil || x.Calls != 1 {
		t.Errorf("after its end: %v, %d calls", err, x.Calls)
	}
}

// TestVersions has the options that versions of iptables know.
func TestVersions(t *testing.T) {
	for _, test := range []struct{ says, wait, err string }{
		{"iptables v1.8.9 (nf_tables)", "-w 7", ""},
		{"ip6tables v1.8.2 (legacy)", "-w 7", ""},
		{"iptables v1.6.0", "-w 7", ""},
		{"iptables v1.4.21", "-w", ""},
		{"iptables v1.4.19.1", "", "1.4.20"},
		{"iptables", "", "no version"},
	} {
		x, err := iptables.OpenXtables(t.Context(), writeProgram(t, "iptables", "echo '"+test.says+"'"), true, false, 7*time.Second, new(iptables.LockWatch))
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: %v, want %q", test.says, err, test.err)
			}
			continue
		}
		if err != nil || strings.Join(x.Wait, " ") != test.wait {
			t.Errorf("%s: %v, %v, want %q", test.says, x, err, test.wait)
		}
	}
}

// TestLockContention has another program hold the lock most of the time, so that there is no time for all
// of the calls: the error says so.
func TestLockContention(t *testing.T) {
	nettest.NewNamespace(t)
	fw := openBackend(t, rule.IPTablesLegacy, "lc0")
	rules := testSpec().Plan(PlanOptions{})
	nettest.Run(t, "iptables-legacy -t raw -S; iptables-legacy -t filter -S; ip6tables-legacy -t raw -S")
	lock, err := iptables.OpenLock()
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	stop, ended := make(chan struct{}), make(chan struct{})
	held := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ; i++ {
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
				t.Error(err)
				return
			}
			if i == 0 {
				close(held)
			}
			select {
			case <-stop:
				return
			case <-time.After(1500 * time.Millisecond):
			}
			if err := unix.Flock(int(lock.Fd()), unix.LOCK_UN); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	}()
	<-held
	defer func() { close(stop); <-ended }()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	err = fw.Apply(ctx, rules)
	if !errors.Is(err, rule.ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Apply: %v, want ErrLocked and the deadline", err)
	}
	// What comes after it in the same operation fails for the same reason.
	if _, err := fw.Check(ctx, rules); !errors.Is(err, rule.ErrLocked) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Check: %v, want ErrLocked and the deadline", err)
	}
}

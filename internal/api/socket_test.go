package api

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// told records warnings.
type told struct {
	mu   sync.Mutex
	text []string
}

func (l *told) Infof(string, ...any) {}
func (l *told) Warningf(format string, v ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, fmt.Sprintf(format, v...))
}

func (l *told) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.text)
}

// version returns the version of the API at path; empty if there is none.
func version(t *testing.T, path string) string {
	t.Helper()
	remote, err := NewRemote(RemoteOptions{Socket: path})
	if err != nil {
		t.Fatal(err)
	}
	var v List[Status]
	if remote.Get(t.Context(), "/statusz", nil, &v) != nil || len(v.Items) != 1 {
		return ""
	}
	return v.Items[0].Version
}

func named(t *testing.T, name string) *Server {
	s := world(t, nil)
	s.options.Version = name
	return s
}

// TestSocketMode checks that only the owner has access, from the first moment, whatever the umask.
func TestSocketMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "diag.sock")
	k := named(t, "one").ServeSocket(path, quiet{})
	defer k.Close()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if fi.Mode().Perm() != 0o600 || fi.Mode()&os.ModeSocket == 0 {
		t.Errorf("mode %v", fi.Mode())
	}
	if got := version(t, path); got != "one" {
		t.Errorf("got %q", got)
	}
}

// TestSocketStale checks that the socket file of a killed process is no obstacle.
func TestSocketStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "diag.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	k := named(t, "new").ServeSocket(path, quiet{})
	if got := version(t, path); got != "new" {
		t.Errorf("got %q", got)
	}
	k.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
	if rest, _ := filepath.Glob(path + "*"); len(rest) > 0 {
		t.Errorf("left behind: %v", rest)
	}
}

// TestSocketUpgrade: the newcomer has the name at once, the older one leaves it alone, and has it again when the newcomer
// has ended, in order or by a signal that cannot be caught.
func TestSocketUpgrade(t *testing.T) {
	path := filepath.Join(t.TempDir(), "diag.sock")
	older := named(t, "old").ServeSocket(path, quiet{})
	newer := named(t, "new").ServeSocket(path, quiet{})
	if got := version(t, path); got != "new" {
		t.Fatalf("got %q, want the newcomer", got)
	}
	older.attempt(false) // what its watch does
	if got := version(t, path); got != "new" {
		t.Errorf("got %q: the older one has taken the name back from one who answers", got)
	}
	older.Close()
	if got := version(t, path); got != "new" {
		t.Fatalf("got %q: the older one has taken the name along", got)
	}
	third := named(t, "third").ServeSocket(path, quiet{})
	defer third.Close()
	newer.attempt(false)
	third.cancel()
	third.done.Wait()
	third.listening.Close() // its name stays, as after SIGKILL
	newer.attempt(false)
	if got := version(t, path); got != "new" {
		t.Errorf("got %q: nobody has taken up the name of one that was killed", got)
	}
	newer.Close()
}

// TestSocketTrouble is said once, names the path, and ends when its cause does.
func TestSocketTrouble(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "diag.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log told
	k := named(t, "one").ServeSocket(path, &log)
	defer k.Close()
	k.attempt(false)
	k.attempt(false)
	if log.count() != 1 {
		t.Errorf("said %q", log.text)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Fatalf("the file of somebody else is gone: %q, %v", b, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	k.attempt(false)
	if got := version(t, path); got != "one" {
		t.Errorf("got %q", got)
	}
	long := named(t, "long").ServeSocket(filepath.Join(dir, string(make([]byte, 120))), &log)
	long.Close()
	if log.count() != 2 {
		t.Errorf("said %q", log.text)
	}
}

// TestSlowClients checks that clients that hold idle connections block others only for a short time, and not at all
// on other listeners.
func TestSlowClients(t *testing.T) {
	s := named(t, "one")
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	first, second := s.ServeSocket(a, quiet{}), s.ServeSocket(b, quiet{})
	defer first.Close()
	defer second.Close()
	for range maxConnections + 20 {
		c, err := net.Dial("unix", a)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET /statusz HTT")); err != nil {
			t.Fatal(err)
		}
	}
	if got := version(t, b); got != "one" {
		t.Errorf("got %q at another listener", got)
	}
	for deadline := time.Now().Add(30 * time.Second); version(t, a) != "one"; {
		if time.Now().After(deadline) {
			t.Fatal("slow clients keep others out for ever")
		}
	}
}

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// envVictim makes TestVictim build a lab, report, and wait to be killed.
const envVictim = "LOCALCACHE_LAB_TEST_VICTIM"

// TestVictim is not a test but the process that TestLabLeavesNothing starts and kills.
func TestVictim(t *testing.T) {
	if os.Getenv(envVictim) == "" {
		t.Skip("started by TestLabLeavesNothing only")
	}
	l := Start(t, Config{})
	p, err := l.Pods[0].Start(exec.Command("/proc/self/exe", "-test.run=^TestSleeper$"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Printf("victim %d %d\n", os.Getpid(), p.PID())
	if os.Getenv(envVictim) == "close" {
		return
	}
	<-p.Done()
	t.Error("the sleeper ended by itself")
}

// TestSleeper is the program in the victim's pod. It ignores the signals that a program can ignore.
func TestSleeper(t *testing.T) {
	if os.Getenv(envVictim) == "" {
		t.Skip("started by TestVictim only")
	}
	time.Sleep(time.Minute)
}

// After Close and after SIGKILL of the outer or inner process no process of the lab is left, and
// neither is a link, a mount or a file.
func TestLabLeavesNothing(t *testing.T) {
	Start(t, Config{}) // skips where there is no lab
	for _, how := range []string{"close", "kill outer", "kill inner"} {
		t.Run(how, func(t *testing.T) {
			linksBefore, mountsBefore := links(t), mounts(t)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
			cmd.Env = append(os.Environ(), envVictim+"="+how)
			// As in a newcomer's shell: the victim makes a world of its own.
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var inner, sleeper int
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if _, err := fmt.Sscanf(lines.Text(), "victim %d %d", &inner, &sleeper); err == nil {
					break
				}
			}
			if sleeper == 0 {
				t.Fatalf("the victim did not report: %v", cmd.Wait())
			}
			if how != "close" && (!alive(cmd.Process.Pid) || !alive(inner) || !alive(sleeper)) {
				t.Fatal("the victim is not whole before the kill")
			}
			switch how {
			case "kill outer":
				err = cmd.Process.Kill()
			case "kill inner":
				err = unix.Kill(inner, unix.SIGKILL)
			}
			if err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(20 * time.Second)
			for _, pid := range []int{inner, sleeper} {
				for alive(pid) {
					if time.Now().After(deadline) {
						t.Fatalf("process %d is still there", pid)
					}
					time.Sleep(5 * time.Millisecond)
				}
			}
			// The rest of its output is less than a pipe holds.
			if _, err := io.Copy(io.Discard, out); err != nil {
				t.Error(err)
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if how == "close" && err != nil {
				t.Errorf("the victim failed: %v", err)
			} else if how == "kill inner" && (!errors.As(err, &exit) || exit.ExitCode() != 128+int(unix.SIGKILL)) {
				t.Errorf("the outer process ended with %v, want status 137", err)
			}
			if got := links(t); got != linksBefore {
				t.Errorf("links before: %s\nafter: %s", linksBefore, got)
			}
			if got := mounts(t); got != mountsBefore {
				t.Errorf("mounts before: %s\nafter: %s", mountsBefore, got)
			}
		})
	}
}

// A process that started in a lab's host and a process that only inherited the variable are outside.
func TestChildDoesNotInheritWorld(t *testing.T) {
	l := Start(t, Config{})
	if !insideWorld() {
		t.Fatal("this test runs outside")
	}
	t.Setenv(envWorld, strconv.Itoa(os.Getppid()+1))
	if insideWorld() {
		t.Error("inside by another process' variable")
	}
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "lab.Enter") {
		t.Errorf("New outside of a world: %v", err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{stageResolve, "not JSON"}
	if err := l.Node.Run(cmd); err == nil {
		t.Error("a program's failure is not reported")
	}
	for _, kv := range cmd.Env {
		if strings.HasPrefix(kv, envWorld+"=") {
			t.Errorf("the program got %s", kv)
		}
	}
}

// Closing a lab ends its programs with their groups, frees the lab's files, and makes hosts useless
// with an error instead of a hang.
func TestClose(t *testing.T) {
	l := Start(t, Config{})
	sleep, err := exec.LookPath("sh")
	if err != nil {
		t.Skip(err)
	}
	cmd := exec.Command(sleep, "-c", "sleep 60 & echo $!; wait")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p, err := l.Pods[0].Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	var grandchild int
	if _, err := fmt.Fscan(out, &grandchild); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-p.Done():
	default:
		t.Error("the program outlives the lab")
	}
	for deadline := time.Now().Add(20 * time.Second); alive(grandchild); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the program's child %d outlives the lab", grandchild)
		}
	}
	if _, err := os.Stat(l.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the lab's files: %v", err)
	}
	if err := l.Node.Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed lab: no error")
	}
	if _, err := l.Node.Start(exec.Command("/proc/self/exe")); err == nil {
		t.Error("Start in a closed lab: no error")
	}
}

func TestRefusalNamesTheSetting(t *testing.T) {
	for err, want := range map[error]string{
		fmt.Errorf("fork/exec: %w", unix.EPERM):  "forbids namespaces",
		fmt.Errorf("fork/exec: %w", unix.ENOSPC): "user.max_user_namespaces is ",
		fmt.Errorf("fork/exec: %w", unix.EINVAL): "CONFIG_USER_NS",
	} {
		got := refusal(err)
		if !errors.Is(got, ErrRefused) || !errors.Is(got, err) || !strings.Contains(got.Error(), want) {
			t.Errorf("%v: %v, want %q in it", err, got, want)
		}
	}
	other := errors.New("disk on fire")
	if got := refusal(other); errors.Is(got, ErrRefused) || got.Error() != other.Error() {
		t.Error("another error is changed")
	}
}

// A dangling /etc/resolv.conf link, as where systemd-resolved's /run is hidden.
func TestReachableMakesALinksTarget(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "resolv.conf")
	if err := os.Symlink("run/systemd/resolve/stub", link); err != nil {
		t.Fatal(err)
	}
	if err := reachable(link); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(link); err != nil {
		t.Error(err)
	}
	if err := reachable(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink("loop", loop); err != nil {
		t.Fatal(err)
	}
	if err := reachable(loop); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
}

// alive reports whether a process exists and is no zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

func links(t *testing.T) string { return readFile(t, "/proc/self/net/dev", 1) }

func mounts(t *testing.T) string { return readFile(t, "/proc/self/mounts", 0) }

// readFile returns the first fields of a file's lines, or whole lines.
func readFile(t *testing.T, path string, fields int) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); fields > 0 && len(f) > fields {
			line = strings.Join(f[:fields], " ")
		}
		s = append(s, line)
	}
	return strings.Join(s, "\n")
}

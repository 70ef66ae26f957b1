package machine

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const status = `Name:	dnsmasq
VmRSS:	   21504 kB
RssAnon:	   18200 kB
RssFile:	    3300 kB
RssShmem:	       4 kB
Threads:	1
voluntary_ctxt_switches:	150
nonvoluntary_ctxt_switches:	545
`

func TestParseMemory(t *testing.T) {
	m, err := parseMemory(status)
	if err != nil || m != (Memory{Anonymous: 18200, File: 3304}) || m.Total() != 21504 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, broken := range []string{"", "RssAnon: 1 kB\n", strings.Replace(status, "3300 kB", "3300", 1), strings.Replace(status, "3300", "x", 1)} {
		if m, err := parseMemory(broken); err == nil {
			t.Errorf("%q is read as %+v", broken, m)
		}
	}
}

func TestParseSwitches(t *testing.T) {
	s, err := parseSwitches(status)
	if err != nil || s != (Switches{Voluntary: 150, Involuntary: 545}) {
		t.Errorf("%+v, %v", s, err)
	}
	for _, broken := range []string{"", strings.Replace(status, "\t150", "\tx", 1), strings.Replace(status, "nonvoluntary", "other", 1)} {
		if s, err := parseSwitches(broken); err == nil {
			t.Errorf("%q is read as %+v", broken, s)
		}
	}
}

func TestParseCores(t *testing.T) {
	cores, err := parseCores("cpu  9 9 9 9 9 9 9 9 9 9\ncpu0 100 10 50 700 20 3 4 5 99 99\ncpu7 1 0 0 0 0 0 0 0 0 0\nintr 12 cpu\n")
	if err != nil || len(cores) != 2 || cores[0] != (Core{Busy: 1670 * time.Millisecond, Stolen: 50 * time.Millisecond}) || cores[7].Busy != 10*time.Millisecond {
		t.Errorf("%+v, %v", cores, err)
	}
	for _, broken := range []string{"", "cpu  1 2 3\n", "cpu0 1 2 3\n", "cpu0 1 2 3 4 5 6 7 x\n", "cpux 1 2 3 4 5 6 7 8\n"} {
		if c, err := parseCores(broken); err == nil {
			t.Errorf("%q is read as %+v", broken, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(status)
	f.Add("cpu0 1 2 3 4 5 6 7 8\n")
	f.Fuzz(func(t *testing.T, s string) {
		// The test checks that none of them panics.
		if m, err := parseMemory(s); err != nil && m != (Memory{}) {
			t.Errorf("%+v beside %v", m, err)
		}
		if s, err := parseSwitches(s); err != nil && s != (Switches{}) {
			t.Errorf("%+v beside %v", s, err)
		}
		if c, err := parseCores(s); err != nil && c != nil {
			t.Errorf("%+v beside %v", c, err)
		}
	})
}

func TestCPUTimeOfAnotherProcess(t *testing.T) {
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	deadline := time.Now().Add(time.Minute)
	for time.Now().Before(deadline) {
		used, err := CPUTime(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if used > 20*time.Millisecond {
			if s, err := SwitchesOf(cmd.Process.Pid); err != nil || s == (Switches{}) {
				t.Errorf("%+v, %v", s, err)
			}
			if m, err := MemoryOf(cmd.Process.Pid); err != nil || m.Total() == 0 {
				t.Errorf("%+v, %v", m, err)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("a busy process has used no time")
}

func TestAProcessThatHasEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if d, err := CPUTime(cmd.Process.Pid); err == nil {
		t.Errorf("it has used %v", d)
	}
	if s, err := SwitchesOf(cmd.Process.Pid); err == nil {
		t.Errorf("it has %+v", s)
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		name    string
		allowed []int
		sibling map[int]int
		want    [3]int
	}{
		{"two cores", []int{0, 1}, map[int]int{0: 0, 1: 1}, [3]int{0, 1, 1}},
		{"two threads of one core", []int{0, 1}, map[int]int{0: 0, 1: 0}, [3]int{0, 1, 1}},
		{"threads side by side", []int{0, 1, 2, 3, 4, 5}, map[int]int{0: 0, 1: 0, 2: 2, 3: 2, 4: 4, 5: 4}, [3]int{0, 2, 4}},
		{"threads far apart", []int{0, 1, 2, 3}, map[int]int{0: 0, 1: 1, 2: 0, 3: 1}, [3]int{0, 1, 1}},
		{"a part of the machine", []int{5, 6, 9}, map[int]int{5: 5, 6: 6, 9: 9}, [3]int{5, 6, 9}},
	} {
		server, generator, upstream, err := Choose(c.allowed, c.sibling)
		if got := [3]int{server, generator, upstream}; err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
	if _, _, _, err := Choose([]int{3}, map[int]int{3: 3}); err == nil {
		t.Error("one core is enough")
	}
}

func TestLauncherPins(t *testing.T) {
	allowed, err := Allowed()
	if err != nil || len(allowed) == 0 {
		t.Fatal(allowed, err)
	}
	core := allowed[len(allowed)-1]
	l, err := NewLauncher(core)
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("grep", "Cpus_allowed_list", "/proc/self/status")
	cmd.Stdout = out
	if err := l.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	l.Close()
	b, err := os.ReadFile(out.Name())
	if want := "Cpus_allowed_list:\t" + strconv.Itoa(core) + "\n"; err != nil || string(b) != want {
		t.Errorf("%q, %v; want %q", b, err, want)
	}
	if again, err := Allowed(); err != nil || len(again) != len(allowed) {
		t.Errorf("the test itself may now run on %v, %v", again, err)
	}
	if _, err := NewLauncher(1 << 9); err == nil {
		t.Error("a core that is not there")
	}
}

// TestLauncherNoticesThatItWasMoved checks the check: figures of a server that shares a core with the generator look
// plausible but are wrong.
func TestLauncherNoticesThatItWasMoved(t *testing.T) {
	allowed, err := Allowed()
	if err != nil || len(allowed) < 2 {
		t.Skip("one core only", err)
	}
	l, err := NewLauncher(allowed[0])
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := PinSelf(allowed[1]); err != nil {
		t.Fatal(err)
	}
	defer eachThread(func(tid int) error {
		var set unix.CPUSet
		for _, c := range allowed {
			set.Set(c)
		}
		return unix.SchedSetaffinity(tid, &set)
	})
	cmd := exec.Command("true")
	if err := l.Start(cmd); err == nil {
		cmd.Wait()
		t.Error("it starts programs on another core than its own")
	}
}

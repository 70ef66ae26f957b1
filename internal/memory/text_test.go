package memory

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-00ef1000 r-xp 00000000 fe:00 1234                               /localcache
Size:              11204 kB
Rss:                9856 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
00ef1000-01ac6000 r--p 00af1000 fe:00 1234                               /localcache
Rss:               10196 kB
Anonymous:             0 kB
01ac6000-01b4c000 rw-p 016c6000 fe:00 1234                               /localcache
Anonymous:             0 kB
01b4c000-01c4c000 r--p 0174c000 fe:00 1234                               /localcache
Anonymous:            64 kB
01c4c000-01d4c000 ---p 0184c000 fe:00 1234                               /localcache
Anonymous:             0 kB
7f0000000000-7f0000001000 r-xp 00000000 fe:00 99                         /lib/other.so
Anonymous:             0 kB
7f0000002000-7f0000003000 r--p 00000000 00:00 0 
Anonymous:             0 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
Anonymous:           132 kB
`
	got, err := cleanMappings(strings.NewReader(smaps), "/localcache")
	want := []mapping{{0x400000, 0xef1000}, {0xef1000, 0x1ac6000}}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	for _, wrong := range []string{"00400000 r-xp 0 0 0 /localcache", "x-y r-xp 0 0 0 /localcache", "2-1 r-xp 0 0 0 /localcache", "1-2"} {
		if got, err := cleanMappings(strings.NewReader(wrong), "/localcache"); err == nil {
			t.Errorf("%q: %x", wrong, got)
		}
	}
}

// TestForgetText: the real program has less resident afterwards, and runs.
func TestForgetText(t *testing.T) {
	if os.Getenv("FORGET_TEXT") == "" {
		out, err := exec.Command("env", "FORGET_TEXT=1", os.Args[0], "-test.run=^TestForgetText$", "-test.v").CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	before := residentFile(t)
	if err := forgetText(); err != nil {
		t.Fatal(err)
	}
	after := residentFile(t)
	t.Logf("%d kB of files are resident, %d before", after, before)
	if before-after < 1000 {
		t.Errorf("%d kB of files are resident, %d before", after, before)
	}
}

// residentFile is how much of files is resident, in kB.
func residentFile(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}

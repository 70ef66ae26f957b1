package process

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// The process that holds the port is a child, because a process is never its own obstacle.
func TestHoldersNamesTheOtherProcess(t *testing.T) {
	if os.Getenv("LOCALCACHE_TEST_HOLD") != "" {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		os.Stdout.WriteString("holding " + conn.LocalAddr().String() + "\n")
		time.Sleep(time.Minute) // the parent ends it long before
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHoldersNamesTheOtherProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "LOCALCACHE_TEST_HOLD=1", nettest.StayOutside)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	at := readHeld(t, out)
	holders, err := Holders("/proc", at)
	if err != nil {
		t.Fatal(err)
	}
	if len(holders) != 1 || holders[0].PID != cmd.Process.Pid || holders[0].Proto != rule.UDP || holders[0].Local != at {
		t.Fatalf("Holders(%s) = %v, want one UDP socket of pid %d", at, holders, cmd.Process.Pid)
	}
	if got := holders[0].String(); !strings.Contains(got, "is held by ") || !strings.Contains(got, "(pid ") {
		t.Errorf("String() = %q", got)
	}
	if h, err := Holders("/proc", netip.AddrPortFrom(at.Addr(), 1)); err != nil || len(h) != 0 {
		t.Errorf("a free port is held by %v, %v", h, err)
	}
}

func readHeld(t *testing.T, r interface{ Read([]byte) (int, error) }) netip.AddrPort {
	t.Helper()
	var text []byte
	buf := make([]byte, 256)
	for range 100 {
		n, err := r.Read(buf)
		text = append(text, buf[:n]...)
		if _, rest, ok := bytes.Cut(text, []byte("holding ")); ok {
			if line, _, ok := bytes.Cut(rest, []byte("\n")); ok {
				return netip.MustParseAddrPort(string(line))
			}
		}
		if err != nil {
			t.Fatalf("the child said %q: %v", text, err)
		}
	}
	t.Fatalf("the child said %q", text)
	return netip.AddrPort{}
}

func TestParseProcAddr(t *testing.T) {
	if !nativeLittleEndian {
		t.Skip("the samples are a little-endian machine's")
	}
	for in, want := range map[string]string{
		"0A19FEA9:0035":                         "169.254.25.10:53",
		"00000000:0035":                         "0.0.0.0:53",
		"00000000000000000000000000000000:0035": "[::]:53",
		"000000FD000000000000000010000000:1F90": "[fd00::10]:8080",
		"0000000000000000FFFF00000100007F:0001": "127.0.0.1:1",
	} {
		got, ok := parseProcAddr(in)
		if !ok || got != netip.MustParseAddrPort(want) {
			t.Errorf("parseProcAddr(%q) = %v, %v, want %s", in, got, ok, want)
		}
	}
	for _, in := range []string{"", ":", "0A19FEA9", "0A19:35", "zz:35", "0A19FEA9:10000", "0A19FEA9:"} {
		if got, ok := parseProcAddr(in); ok {
			t.Errorf("parseProcAddr(%q) = %v, want nothing", in, got)
		}
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add([]byte("  sl  local_address rem_address   st\n   1: 0A19FEA9:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4711 2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		sockets, _ := parseSockets(bytes.NewReader(b), rule.UDP)
		for _, s := range sockets {
			if !s.local.Addr().IsValid() {
				t.Errorf("a socket without an address from %q", b)
			}
		}
	})
}

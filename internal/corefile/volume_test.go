package corefile

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// volume is a directory as the kubelet makes it for a ConfigMap: links through ..data into a directory for each
// version.
type volume struct {
	t   testing.TB
	dir string
	n   int
}

func newVolume(t testing.TB, keys ...string) *volume {
	v := &volume{t: t, dir: t.TempDir()}
	for _, key := range keys {
		v.must(os.Symlink(filepath.Join(dataLink, key), filepath.Join(v.dir, key)))
	}
	return v
}

func (v *volume) must(err error) {
	v.t.Helper()
	if err != nil {
		v.t.Fatal(err)
	}
}

// set switches to a new version and removes the old one, as the kubelet does.
func (v *volume) set(content map[string]string) {
	v.t.Helper()
	old, _ := os.Readlink(filepath.Join(v.dir, dataLink))
	v.n++
	name := fmt.Sprintf("..version_%d", v.n)
	v.must(os.Mkdir(filepath.Join(v.dir, name), 0o755))
	for key, text := range content {
		v.must(os.WriteFile(filepath.Join(v.dir, name, key), []byte(text), 0o644))
	}
	tmp := filepath.Join(v.dir, "..data_tmp")
	v.must(os.Symlink(name, tmp))
	v.must(os.Rename(tmp, filepath.Join(v.dir, dataLink)))
	if old != "" {
		v.must(os.RemoveAll(filepath.Join(v.dir, old)))
	}
}

// Both keys carry a number; a mixture of two versions would show two numbers.
func TestVolumeVersionsAreNotMixed(t *testing.T) {
	r := newRoom(t)
	v := newVolume(t, keyStubDomains, keyUpstreams)
	version := func(n int) map[string]string {
		return map[string]string{
			keyStubDomains: fmt.Sprintf(`{"a.b": ["10.1.0.%d"]}`, n),
			keyUpstreams:   fmt.Sprintf(`["10.2.0.%d"]`, n),
		}
	}
	v.set(version(1))
	r.opt.Conf = r.write("Corefile", ". {\n forward . __PILLAR__UPSTREAM__SERVERS__\n}\n")
	r.opt.KubeDNSDir = v.dir
	s := r.source()
	if _, _, err := s.Load(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		seen := map[string]bool{}
		for ctx.Err() == nil {
			_, content, err := s.Load()
			if err != nil {
				t.Errorf("Load: %v", err)
				return
			}
			var numbers []string
			for _, prefix := range []string{"10.1.0.", "10.2.0."} {
				_, after, _ := strings.Cut(string(content), prefix)
				n, _, _ := strings.Cut(after, "\n")
				numbers = append(numbers, n)
			}
			if numbers[0] == "" || numbers[0] != numbers[1] {
				t.Errorf("versions %q are mixed in\n%s", numbers, content)
				return
			}
			seen[numbers[0]] = true
		}
		if len(seen) < 2 {
			t.Errorf("only the versions %v were seen", seen)
		}
	})
	for n := range 200 {
		v.set(version(n + 2))
	}
	cancel()
	wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.errs { // that the volume never stood still is the truth; a missing file is not
		if !strings.HasSuffix(e, "changed during each of 5 attempts to read it") {
			t.Errorf("reported: %s", e)
		}
	}
}

// The same, one switch placed exactly between the two reads.
func TestVolumeSwitchedBetweenReads(t *testing.T) {
	v := newVolume(t, "a", "b")
	v.set(map[string]string{"a": "1", "b": "1"})
	var a, b []byte
	reads := 0
	err := consistently(v.dir, func() (err error) {
		reads++
		if a, err = readBounded(filepath.Join(v.dir, "a")); err != nil {
			return err
		}
		if reads == 1 {
			v.set(map[string]string{"a": "2", "b": "2"})
		}
		b, err = readBounded(filepath.Join(v.dir, "b"))
		return err
	})
	if err != nil || string(a) != "2" || string(b) != "2" || reads != 2 {
		t.Errorf("read %q and %q in %d reads, %v", a, b, reads, err)
	}
	reads = 0
	err = consistently(v.dir, func() error {
		reads++
		v.set(nil)
		return nil
	})
	wantErr(t, err, v.dir+" changed during each of 5 attempts to read it")
	if reads != maxRereads {
		t.Errorf("%d reads", reads)
	}
}

// A key that is removed from the ConfigMap leaves a dangling link for a moment.
func TestVolumeKeyRemoved(t *testing.T) {
	r := newRoom(t)
	v := newVolume(t, keyUpstreams)
	v.set(map[string]string{keyUpstreams: `["8.8.8.8"]`})
	r.opt.Conf = r.write("Corefile", "forward . __PILLAR__UPSTREAM__SERVERS__")
	r.opt.KubeDNSDir = v.dir
	s := r.source()
	r.load(s, r.opt.Conf, "forward . 8.8.8.8")
	v.set(nil)
	r.load(s, r.opt.Conf, "forward . /etc/resolv.conf")
	v.must(os.Remove(filepath.Join(v.dir, keyUpstreams)))
	r.load(s, r.opt.Conf, "forward . /etc/resolv.conf")
	r.said(0)
}

// A reader of the rendered file always sees one of the contents, complete.
func TestWritesAreAtomic(t *testing.T) {
	r := newRoom(t)
	big := [][]byte{bytes.Repeat([]byte("a"), 300_000), bytes.Repeat([]byte("b"), 200_000)}
	path := r.path("Corefile")
	if err := publish(path, "base", big[0]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	reads := 0
	wg.Go(func() {
		for ctx.Err() == nil {
			b, err := os.ReadFile(path)
			if err != nil || !bytes.Equal(b, big[0]) && !bytes.Equal(b, big[1]) {
				t.Errorf("a reader saw %d octets, %v", len(b), err)
				return
			}
			reads++
		}
	})
	for i := range 60 {
		if err := publish(path, "base", big[i%2]); err != nil {
			t.Error(err)
			break
		}
	}
	cancel()
	wg.Wait()
	if reads == 0 {
		t.Error("nothing was read meanwhile")
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 1 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
}

func TestWriteThroughALink(t *testing.T) {
	r := newRoom(t)
	real, link := r.write("real/Corefile", "old"), r.path("Corefile")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	if err := publish(link, "base", []byte("new")); err != nil {
		t.Fatal(err)
	}
	if got := r.read("real/Corefile"); got != "new" {
		t.Errorf("the target holds %q", got)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", info, err)
	}
}

func TestRemedy(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{
		syscall.ENOSPC:  "make room on that file system",
		syscall.EDQUOT:  "make room on that file system",
		syscall.EISDIR:  "-conf must name a file",
		syscall.ENOTDIR: "the directory /d is not there: mount an emptyDir volume at it, or point -conf into a writable directory",
		syscall.EACCES:  "the directory /d must be writable: mount an emptyDir volume at it, or point -conf into a writable directory",
	} {
		if got := remedy("/d/Corefile", &os.PathError{Op: "open", Path: "/d/.Corefile.1.tmp", Err: errno}); got != want {
			t.Errorf("%v: %q, want %q", errno, got, want)
		}
	}
}

var inMounts = flag.String("in-mounts", "", "internal: run as the child of TestUnwritablePlaces on this directory")

// A read-only file system and a mounted file need mounts, which a child makes in namespaces of its own.
func TestUnwritablePlaces(t *testing.T) {
	if *inMounts != "" {
		unwritablePlaces(t, *inMounts)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestUnwritablePlaces$", "-test.v", "-in-mounts="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSPC) {
		t.Skipf("this system gives no user namespaces: %v", err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestUnwritablePlaces")) {
		t.Fatalf("%v\n%s", err, out)
	}
}

func unwritablePlaces(t *testing.T, dir string) {
	mount := func(from, to, kind string, flags uintptr) {
		t.Helper()
		if err := syscall.Mount(from, to, kind, flags, ""); err != nil {
			t.Fatalf("mount %s: %v", to, err)
		}
	}
	readOnly, file := filepath.Join(dir, "ro"), filepath.Join(dir, "Corefile")
	if err := errors.Join(os.Mkdir(readOnly, 0o755), os.WriteFile(file, []byte("old"), 0o644)); err != nil {
		t.Fatal(err)
	}
	mount("none", readOnly, "tmpfs", syscall.MS_RDONLY)
	mount(file, file, "", syscall.MS_BIND)

	err := publish(filepath.Join(readOnly, "Corefile"), "/b", []byte("new"))
	wantErr(t, err, "cannot write the Corefile "+readOnly+"/Corefile, to which the template /b (-basecorefile) is rendered: read-only file system: "+
		"the directory "+readOnly+" must be writable: mount an emptyDir volume at it, or point -conf into a writable directory")
	if !errors.Is(err, syscall.EROFS) {
		t.Errorf("%v is not EROFS", err)
	}
	err = publish(file, "/b", []byte("new"))
	wantErr(t, err, "cannot write the Corefile "+file+", to which the template /b (-basecorefile) is rendered: device or resource busy: "+
		"the file is a mount point of its own (subPath): mount its directory instead")
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	// A correct file is not written again.
	if err := publish(file, "/b", []byte("old")); err != nil {
		t.Errorf("unchanged content: %v", err)
	}
}

package corefile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// room is a directory with the files of a Source, and its callbacks' calls.
type room struct {
	t                  *testing.T
	dir                string
	opt                Options
	mu                 sync.Mutex
	errs               []string
	recovered, changed int
}

func newRoom(t *testing.T) *room {
	r := &room{t: t, dir: t.TempDir()}
	r.opt = *node()
	r.opt.defaultKubeDNSDir = r.path("none")
	r.opt.Interval = time.Millisecond
	r.opt.OnError = func(err error) { r.mu.Lock(); defer r.mu.Unlock(); r.errs = append(r.errs, err.Error()) }
	r.opt.OnRecovered = func() { r.mu.Lock(); defer r.mu.Unlock(); r.recovered++ }
	r.opt.OnChange = func() { r.mu.Lock(); defer r.mu.Unlock(); r.changed++ }
	return r
}

func (r *room) path(name string) string { return filepath.Join(r.dir, name) }

func (r *room) write(name, content string) string {
	r.t.Helper()
	path := r.path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		r.t.Fatal(err)
	}
	return path
}

func (r *room) read(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

func (r *room) source() *Source {
	r.t.Helper()
	s, err := NewSource(r.opt)
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

// load loads and wants name and content.
func (r *room) load(s *Source, name, content string) {
	r.t.Helper()
	gotName, got, err := s.Load()
	if err != nil || gotName != name || string(got) != content {
		r.t.Fatalf("Load = %q, %q, %v, want %q, %q", gotName, got, err, name, content)
	}
}

// said expects exactly these callbacks.
func (r *room) said(recovered int, errs ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if strings.Join(r.errs, "\n") != strings.Join(errs, "\n") || r.recovered != recovered {
		r.t.Fatalf("reported %q and %d recoveries, want %q and %d", r.errs, r.recovered, errs, recovered)
	}
}

// wantErr wants exactly this error.
func wantErr(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || err.Error() != want {
		t.Fatalf("error\n%v\nwant\n%s", err, want)
	}
}

func TestTemplateIsRendered(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("Corefile.base", "__PILLAR__DNS__DOMAIN__ {\n}\n")
	r.opt.Conf = r.path("Corefile")
	s := r.source()
	if _, err := os.Stat(r.opt.Conf); err == nil {
		t.Fatal("NewSource wrote the Corefile")
	}
	r.load(s, r.opt.Conf, "cluster.local {\n}\n")
	if got := r.read("Corefile"); got != "cluster.local {\n}\n" {
		t.Fatalf("the Corefile is %q", got)
	}
	first, err := os.Stat(r.opt.Conf)
	if err != nil {
		t.Fatal(err)
	}
	if first.Mode() != 0o644 {
		t.Errorf("the Corefile's mode is %v", first.Mode())
	}

	// A new file would have a new inode.
	r.load(s, r.opt.Conf, "cluster.local {\n}\n")
	if again, err := os.Stat(r.opt.Conf); err != nil || !os.SameFile(first, again) || !again.ModTime().Equal(first.ModTime()) {
		t.Errorf("unchanged content was written again (%v)", err)
	}

	r.write("Corefile.base", "errors\n")
	r.load(s, r.opt.Conf, "errors\n")
	if got := r.read("Corefile"); got != "errors\n" {
		t.Errorf("after a change the Corefile is %q", got)
	}
	// A file that another program put there is replaced: the rendered file is served.
	r.write("Corefile", "foreign\n")
	r.load(s, r.opt.Conf, "errors\n")
	if got := r.read("Corefile"); got != "errors\n" {
		t.Errorf("after a foreign change the Corefile is %q", got)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left in the directory: %v, %v", entries, err)
	}
	if want := r.opt.Conf + ", rendered from " + r.opt.Base; s.String() != want {
		t.Errorf("String = %q, want %q", s, want)
	}
	r.said(0)
}

func TestCorefileIsExpandedInMemory(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.path("Corefile.base")
	const source = ". {\n bind __PILLAR__LOCAL__DNS__\n}\n"
	r.opt.Conf = r.write("Corefile", source)
	r.opt.KubeDNSDir = r.path("cm")
	r.write("cm/stubDomains", `{"a.b": ["1.1.1.1"]}`)
	s := r.source()
	const want = ". {\n bind 169.254.20.10 10.0.0.10\n}\n\n# Stub domains of the kube-dns ConfigMap.\n" +
		"a.b:53 {\n    errors\n    cache 30\n    bind 169.254.20.10 10.0.0.10\n    forward . 1.1.1.1\n}\n"
	r.load(s, r.opt.Conf, want)
	// A template that appears later would overwrite the user's own file.
	r.write("Corefile.base", "late\n")
	r.load(s, r.opt.Conf, want)
	if got := r.read("Corefile"); got != source {
		t.Errorf("the Corefile was changed to %q", got)
	}
	if want := r.opt.Conf + ", with the kube-dns ConfigMap in " + r.opt.KubeDNSDir; s.String() != want {
		t.Errorf("String = %q, want %q", s, want)
	}
}

// The caller may change the result of Load, also if nothing was expanded and if it is the last good content again.
func TestLoadReturnsCopy(t *testing.T) {
	r := newRoom(t)
	r.opt.Conf = Stdin
	r.opt.Stdin = strings.NewReader("errors\n")
	r.opt.KubeDNSDir = r.path("cm")
	r.write("cm/upstreamNameservers", "")
	s := r.source()
	for _, upstreams := range []string{"", "broken"} {
		r.write("cm/upstreamNameservers", upstreams)
		for range 2 {
			_, content, err := s.Load()
			if err != nil || string(content) != "errors\n" {
				t.Fatalf("Load = %q, %v", content, err)
			}
			clear(content)
		}
	}
}

func TestCorefileLocation(t *testing.T) {
	r := newRoom(t)
	t.Chdir(r.dir)
	base, conf, old := r.path("base"), r.path("conf"), r.path("old")
	r.opt.Base = base
	fails := func(want string) {
		t.Helper()
		_, err := NewSource(r.opt)
		wantErr(t, err, want)
	}
	fails("no Corefile found; looked for the template " + base + " (-basecorefile), " + r.path("Corefile") + ": give one with -conf")
	r.opt.Corefile = old
	fails("no Corefile found; looked for the template " + base + " (-basecorefile), " + old + " (-corefile), " + r.path("Corefile") + ": give one with -conf")
	r.write("Corefile", "of the working directory")
	r.load(r.source(), "Corefile", "of the working directory")
	r.write("old", "old")
	r.load(r.source(), old, "old")
	r.opt.Conf = conf
	fails("no Corefile found; looked for the template " + base + " (-basecorefile), " + conf + " (-conf): give one with -conf")
	r.write("conf", "conf")
	r.load(r.source(), conf, "conf")
	r.write("base", "base")
	r.load(r.source(), conf, "base")
	r.opt.Conf = ""
	r.load(r.source(), old, "base")
	if got := r.read("old"); got != "base" {
		t.Errorf("-corefile holds %q", got)
	}
	r.opt.Conf = base
	fails("-basecorefile " + base + " and -conf " + base + " are one file, which rendering would overwrite: name another one with -conf, " +
		"or leave -basecorefile empty to serve the file with its placeholders expanded in memory")
	r.opt.Conf = r.path("link")
	if err := os.Symlink(base, r.opt.Conf); err != nil {
		t.Fatal(err)
	}
	fails("-basecorefile " + base + " and -conf " + r.opt.Conf + " are one file, which rendering would overwrite: name another one with -conf, " +
		"or leave -basecorefile empty to serve the file with its placeholders expanded in memory")
	r.opt.Base, r.opt.Conf = r.path("base/x"), conf
	fails("cannot look for the template (-basecorefile): stat " + r.path("base/x") + ": not a directory")
}

func TestStdin(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("base", "not this")
	r.opt.Conf = Stdin
	r.opt.Stdin = strings.NewReader("bind __PILLAR__LOCAL__DNS__")
	s := r.source()
	r.load(s, "stdin", "bind 169.254.20.10 10.0.0.10")
	r.load(s, "stdin", "bind 169.254.20.10 10.0.0.10")

	fails := func(in io.Reader, want string) {
		t.Helper()
		r.opt.Stdin = in
		_, err := NewSource(r.opt)
		wantErr(t, err, want)
	}
	fails(strings.NewReader(" \n"), "-conf stdin: nothing came in; pipe the Corefile into the process")
	fails(strings.NewReader(strings.Repeat("#", MaxFileSize+1)), "-conf stdin: standard input is larger than 1048576 octets: this is no Corefile or ConfigMap")
	fails(&flood{left: 2 * MaxFileSize}, "-conf stdin: standard input is larger than 1048576 octets: this is no Corefile or ConfigMap")
	fails(&flood{}, "-conf stdin: broken")
}

// flood returns left octets and then panics: it notices a reader that does not stop in time.
type flood struct{ left int }

func (f *flood) Read(b []byte) (int, error) {
	if f.left <= 0 {
		return 0, errors.New("broken")
	}
	n := min(f.left, len(b))
	f.left -= n
	return n, nil
}

func TestStartFails(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(r *room)
		want string // %s is the directory
	}{
		{"bad template", func(r *room) { r.opt.Base = r.write("base", "\n__PILLAR__X__") },
			"%s/base:2: unknown placeholder __PILLAR__X__; known are " + strings.Join(placeholders, ", ")},
		{"bad ConfigMap and bad template", func(r *room) {
			r.opt.Base = r.write("base", "__PILLAR__LOCAL__DNS__")
			r.opt.LocalIPs = nil
			r.write("cm/stubDomains", "x")
			r.opt.KubeDNSDir = r.path("cm")
		}, "%[1]s/cm/stubDomains:1: not valid JSON: invalid character 'x' looking for beginning of value\n" +
			"%[1]s/base:1: __PILLAR__LOCAL__DNS__ needs -localip"},
		{"no ConfigMap directory", func(r *room) { r.opt.Base = r.write("base", ""); r.opt.KubeDNSDir = r.path("cm") },
			"cannot read the kube-dns ConfigMap: the directory %s/cm (-kubednscm) does not exist: mount the ConfigMap there, with optional: true where there may be none, or leave the flag out"},
		{"a file for a directory", func(r *room) { r.opt.Base = r.write("base", ""); r.opt.KubeDNSDir = r.opt.Base },
			"cannot read the kube-dns ConfigMap: %s/base (-kubednscm) is not a directory"},
		{"a directory for a key", func(r *room) {
			r.opt.Base = r.write("base", "")
			r.write("cm/stubDomains/x", "")
			r.opt.KubeDNSDir = r.path("cm")
		}, "cannot read the kube-dns ConfigMap: %s/cm/stubDomains is not a regular file"},
		{"a directory for the template", func(r *room) { r.opt.Base = r.dir },
			"cannot read the Corefile: %s is not a regular file"},
		{"too large", func(r *room) { r.opt.Base = r.write("base", strings.Repeat("#", MaxFileSize+1)) },
			"cannot read the Corefile: %s/base is larger than 1048576 octets: this is no Corefile or ConfigMap"},
		{"no directory for the result", func(r *room) { r.opt.Base = r.write("base", ""); r.opt.Conf = r.path("none/Corefile") },
			"cannot write the Corefile %[1]s/none/Corefile, to which the template %[1]s/base (-basecorefile) is rendered: no such file or directory: " +
				"the directory %[1]s/none is not there: mount an emptyDir volume at it, or point -conf into a writable directory"},
		{"a directory for the result", func(r *room) { r.opt.Base = r.write("base", ""); r.write("out/x", ""); r.opt.Conf = r.path("out") },
			"cannot write the Corefile %[1]s/out, to which the template %[1]s/base (-basecorefile) is rendered: file exists: -conf must name a file"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRoom(t)
			r.opt.Conf = r.path("Corefile")
			tc.set(r)
			s, err := NewSource(r.opt)
			if err != nil {
				t.Fatal(err)
			}
			want := tc.want
			if !strings.Contains(want, "%[1]s") {
				want = strings.Replace(want, "%s", "%[1]s", 1)
			}
			for range 2 { // no error is swallowed before the first success
				name, content, err := s.Load()
				wantErr(t, err, fmt.Sprintf(want, r.dir))
				if content != nil || name != r.opt.Conf {
					t.Errorf("beside the error there is %q, %q", name, content)
				}
			}
			r.said(0)
			if _, err := os.Stat(r.path("Corefile")); err == nil {
				t.Error("a Corefile was written")
			}
		})
	}
}

func TestBadEditKeepsServing(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("base", "forward . __PILLAR__UPSTREAM__SERVERS__\n")
	r.opt.Conf = r.path("Corefile")
	r.opt.KubeDNSDir = r.path("cm")
	r.write("cm/upstreamNameservers", `["8.8.8.8"]`)
	s := r.source()
	const good = "forward . 8.8.8.8\n"
	r.load(s, r.opt.Conf, good)

	badJSON := r.path("cm/upstreamNameservers") + ":1: not valid JSON: unexpected end of JSON input"
	r.write("cm/upstreamNameservers", `["9.9.9.9"`)
	r.load(s, r.opt.Conf, good)
	r.load(s, r.opt.Conf, good)
	r.said(0, badJSON)
	if got := r.read("Corefile"); got != good {
		t.Errorf("the Corefile became %q", got)
	}

	// Another problem, then the first again: each is reported once.
	notJSON := r.path("cm/upstreamNameservers") + `: want a list of servers like ["10.0.0.1"], found "9.9.9.9"`
	r.write("cm/upstreamNameservers", `"9.9.9.9"`)
	r.load(s, r.opt.Conf, good)
	r.write("cm/upstreamNameservers", `["9.9.9.9"`)
	r.load(s, r.opt.Conf, good)
	r.said(0, badJSON, notJSON)

	r.write("cm/upstreamNameservers", `["9.9.9.9"]`)
	r.load(s, r.opt.Conf, "forward . 9.9.9.9\n")
	r.load(s, r.opt.Conf, "forward . 9.9.9.9\n")
	r.said(1, badJSON, notJSON)

	// After a recovery the same problem is news again.
	r.write("cm/upstreamNameservers", `["9.9.9.9"`)
	r.load(s, r.opt.Conf, "forward . 9.9.9.9\n")
	r.said(1, badJSON, notJSON, badJSON)
	r.write("cm/upstreamNameservers", `["9.9.9.9"]`)
	r.load(s, r.opt.Conf, "forward . 9.9.9.9\n")

	// Without the template, the rendered file does not become a source.
	if err := os.Remove(r.opt.Base); err != nil {
		t.Fatal(err)
	}
	r.load(s, r.opt.Conf, "forward . 9.9.9.9\n")
	r.said(2, badJSON, notJSON, badJSON, "cannot read the Corefile: stat "+r.opt.Base+": no such file or directory")
}

// The message of a write that fails again and again must be one message, though the temporary file's
// name differs each time.
func TestFailingWriteIsReportedOnce(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("base", "one\n")
	r.opt.Conf = r.write("out/Corefile", "")
	s := r.source()
	r.load(s, r.opt.Conf, "one\n")
	if err := os.RemoveAll(r.path("out")); err != nil {
		t.Fatal(err)
	}
	r.write("base", "two\n")
	for range 3 {
		r.load(s, r.opt.Conf, "one\n")
	}
	failed := "cannot write the Corefile " + r.opt.Conf + ", to which the template " + r.opt.Base + " (-basecorefile) is rendered: " +
		"no such file or directory: the directory " + r.path("out") + " is not there: mount an emptyDir volume at it, or point -conf into a writable directory"
	r.said(0, failed)
	if err := os.Mkdir(r.path("out"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.load(s, r.opt.Conf, "two\n")
	r.said(1, failed)
}

func TestKubeDNSDirIsFound(t *testing.T) {
	r := newRoom(t)
	r.opt.Conf = r.write("Corefile", "forward . __PILLAR__UPSTREAM__SERVERS__\n")
	r.load(r.source(), r.opt.Conf, "forward . /etc/resolv.conf\n")
	r.write("none/upstreamNameservers", `["8.8.8.8"]`)
	r.load(r.source(), r.opt.Conf, "forward . 8.8.8.8\n")
}

func TestDefaults(t *testing.T) {
	r := newRoom(t)
	t.Setenv("KUBE_DNS_SERVICE_HOST", "10.96.0.10")
	s, err := NewSource(Options{Conf: r.write("Corefile", ". {\n forward . __PILLAR__CLUSTER__DNS__\n}\n"), KubeDNSDir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	r.load(s, r.path("Corefile"), ". {\n forward . 10.96.0.10\n}\n")
	r.write("stubDomains", `{"a.b": ["1.1.1.1"]}`)
	if _, content, err := s.Load(); err != nil || !strings.Contains(string(content), "a.b:53 {") {
		t.Errorf("Load = %q, %v", content, err)
	}
	if s.opt.Interval != 10*time.Second {
		t.Errorf("Watch looks every %v", s.opt.Interval)
	}
}

// until waits for the condition.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("%s did not come in 10 s", what)
}

func TestWatch(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("base", "one\n")
	r.opt.Conf = r.path("Corefile")
	var s *Source
	seen := make(chan string, 10)
	r.opt.OnChange = func() {
		_, content, _ := s.Load() // a callback may load
		seen <- string(content)
	}
	r.opt.OnError = func(err error) {
		_, content, _ := s.Load()
		seen <- "error, still " + string(content)
	}
	s = r.source()
	r.load(s, r.opt.Conf, "one\n")
	next := func(want string) {
		t.Helper()
		select {
		case got := <-seen:
			if got != want {
				t.Fatalf("told of %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("not told of %q", want)
		}
	}
	// A change between the first Load and Watch counts, also if a Load saw it.
	r.write("base", "two\n")
	r.load(s, r.opt.Conf, "two\n")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.Watch(ctx) }()
	next("two\n")

	replace1 := func(content string) { // a writer that is no ConfigMap must not be seen half done
		t.Helper()
		if err := replace(r.opt.Base, []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	replace1("three\n")
	next("three\n")
	until(t, "the new Corefile", func() bool { return r.read("Corefile") == "three\n" })
	replace1("__PILLAR__X__")
	next("error, still three\n")
	replace1("four\n")
	next("four\n")

	cancel()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("Watch goes on after its context ended")
	}
	if len(seen) > 0 {
		t.Errorf("also told of %q", <-seen)
	}
}

func TestUnchangedPodsSignalNothing(t *testing.T) {
	r := newRoom(t)
	r.opt.Conf = r.write("Corefile", "one\n")
	s := r.source()
	changed := func(want int) {
		t.Helper()
		if s.look(); r.changed != want {
			t.Fatalf("OnChange was called %d times, want %d", r.changed, want)
		}
	}
	changed(0) // the first content is the one served at start
	r.load(s, r.opt.Conf, "one\n")
	changed(0)
	r.write("Corefile", "two\n")
	changed(1)
	changed(1)
	r.write("Corefile", "__PILLAR__X__")
	changed(1)
	r.write("Corefile", "two\n")
	changed(1)
	r.said(1, r.opt.Conf+":1: unknown placeholder __PILLAR__X__; known are "+strings.Join(placeholders, ", "))
}

// Load is called by CoreDNS's reload, by Watch and by callbacks at the same time.
func TestConcurrentLoads(t *testing.T) {
	r := newRoom(t)
	r.opt.Base = r.write("base", "v0\n")
	r.opt.Conf = r.path("Corefile")
	s := r.source()
	r.load(s, r.opt.Conf, "v0\n")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.Watch(ctx) })
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, content, err := s.Load(); err != nil || !strings.HasPrefix(string(content), "v") {
					t.Errorf("Load = %q, %v", content, err)
					return
				}
			}
		})
	}
	for i := 1; i <= 50; i++ {
		text := fmt.Sprintf("v%d\n", i)
		if i%5 == 0 {
			text = "__PILLAR__X__"
		}
		if err := replace(r.opt.Base, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := replace(r.opt.Base, []byte("vlast\n")); err != nil {
		t.Fatal(err)
	}
	until(t, "the last version", func() bool { return r.read("Corefile") == "vlast\n" })
	cancel()
	wg.Wait()
	r.load(s, r.opt.Conf, "vlast\n")
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.recovered > len(r.errs) {
		t.Errorf("%d recoveries of %d errors", r.recovered, len(r.errs))
	}
}

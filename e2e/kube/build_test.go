package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"localcache.dev/localcache/e2e/kube/cluster"
	"localcache.dev/localcache/e2e/kube/image"
)

// root is the repository.
var root = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()

// Names of the images under test, as in doc/operations.md.
const (
	imageV1       = "registry.example.org/localcache:v1"
	imageV2       = "registry.example.org/localcache:v2"
	imageIptables = "registry.example.org/localcache-iptables:v1"
)

// artifacts are built before a cluster is raised.
type artifacts struct {
	kubernetes string   // folder of programs
	probe      string   // the program of probe/
	coredns    string   // stock CoreDNS, of the version that localcache contains
	images     []string // archives
}

var built struct {
	sync.Once
	artifacts
	err error
}

// build builds everything, once for all tests.
func build(ctx context.Context, t *testing.T) *artifacts {
	t.Helper()
	built.Do(func() { built.artifacts, built.err = buildAll(ctx) })
	must(t, built.err)
	return &built.artifacts
}

func buildAll(ctx context.Context) (artifacts, error) {
	bin := filepath.Join(root, ".cache/kube/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return artifacts{}, err
	}
	a := artifacts{coredns: filepath.Join(bin, "coredns")}
	out, err := command(ctx, "kubernetes/build.sh")
	if err != nil {
		return a, err
	}
	a.kubernetes = strings.TrimSpace(out)

	progress("building localcache, CoreDNS and what runs in pods")
	a.probe = filepath.Join(bin, "probe")
	probe, musl, glibc := a.probe, filepath.Join(bin, "lookup-musl"), filepath.Join(bin, "lookup-glibc")
	const source = "probe/libc/lookup.c"
	for _, args := range [][]string{
		{"make", "--no-print-directory", "-C", root, "build"},
		{"go", "build", "-trimpath", "-ldflags=-s -w", "-o", a.coredns, "github.com/coredns/coredns"},
		{"go", "build", "-trimpath", "-o", probe, "./probe"},
		{"gcc", "-O2", "-o", glibc, source, "-lresolv"},
		{"musl-gcc", "-O2", "-static", "-o", musl, source},
	} {
		if _, err := command(ctx, args[0], args[1:]...); err != nil {
			return a, err
		}
	}

	add := func(i image.Image) error {
		file := filepath.Join(bin, filepath.Base(strings.ReplaceAll(i.Name, ":", "-"))+".tar")
		a.images = append(a.images, file)
		return i.Write(file)
	}
	inPods := image.Image{Name: "localhost/probe:1", Entrypoint: []string{"/probe"},
		Files: map[string]string{"probe": probe, "lookup-musl": musl}}
	stock := image.Image{Name: "localhost/coredns:1", Entrypoint: []string{"/coredns"}, Files: map[string]string{"coredns": a.coredns}}
	pause := image.Image{Name: cluster.Pause, Entrypoint: []string{"/probe", "sleep"}, Files: map[string]string{"probe": probe}}
	busybox := image.Image{Name: "docker.io/library/busybox:1.36"}
	box, err := exec.LookPath("busybox")
	if err != nil {
		return a, fmt.Errorf("%w: apt-get install busybox-static", err)
	}
	busybox.Links = map[string]string{}
	for _, name := range []string{"sh", "nslookup", "sleep", "wget"} {
		busybox.Links["bin/"+name] = "busybox"
	}
	err = errors.Join(
		inPods.AddProgram("lookup-glibc", glibc), addResolverModules(&inPods),
		busybox.AddProgram("bin/busybox", box),
		add(pause), add(inPods), add(stock), add(busybox))
	if err != nil {
		return a, err
	}
	images, err := buildLocalcache(ctx, bin)
	a.images = append(a.images, images...)
	return a, err
}

// command runs a program in this folder and shows its standard error.
func command(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "GOFLAGS=")
	if name == "go" {
		cmd.Env = append(cmd.Env, "CGO_ENABLED=0")
	}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w", name, strings.Join(args, " "), err)
	}
	return string(out), err
}

// addResolverModules adds the modules that glibc loads by name at run time. Since 2.34 the DNS part is in libc
// itself.
func addResolverModules(i *image.Image) error {
	found, err := filepath.Glob("/lib/*/libnss_dns.so.2")
	if err != nil {
		return err
	}
	for _, f := range found {
		if err := i.AddProgram(f, f); err != nil {
			return err
		}
	}
	return nil
}

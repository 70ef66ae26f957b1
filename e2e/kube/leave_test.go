package kube

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// victim is in the environment of a process of this program that only raises a cluster, to be killed with it. Its
// value is a list of paths: the folder for the cluster, the programs, and the image of pod sandboxes.
const victim = "LOCALCACHE_KUBE_VICTIM"

// TestVictim is that process.
func TestVictim(t *testing.T) {
	if os.Getenv(victim) == "" {
		t.Skip("TestEndsWithItsProcess runs it")
	}
	paths := filepath.SplitList(os.Getenv(victim))
	_, err := cluster.Up(t.Context(), cluster.Options{ // no signal is caught
		Dir: paths[0], Kubernetes: paths[1], Images: paths[2:], Proxy: "iptables", Logf: t.Logf,
		Logs: filepath.Join(root, ".cache/kube/logs", t.Name()),
	})
	must(t, err)
	fmt.Println(upMark)
	select {}
}

const upMark = "the cluster is up"

// A cluster ends with the process that raised it, in whatever way, and leaves nothing on the machine.
func TestEndsWithItsProcess(t *testing.T) {
	ctx := needCluster(t)
	a := build(ctx, t)
	for _, s := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		t.Run(s.String(), func(t *testing.T) {
			before := readMachine(t)
			dir, err := os.MkdirTemp(filepath.Join(root, ".cache/kube"), "victim.")
			must(t, err)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestVictim$", "-test.v")
			cmd.Env = append(os.Environ(), victim+"="+strings.Join([]string{dir, a.kubernetes, a.images[0]}, string(filepath.ListSeparator)))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() }) // after a failure
			var said strings.Builder
			up := false
			for lines := bufio.NewScanner(out); !up && lines.Scan(); {
				said.WriteString(lines.Text() + "\n")
				up = lines.Text() == upMark
			}
			if !up {
				t.Fatalf("the cluster has not come up:\n%s", said.String())
			}
			requireSameMachine(t, before, readMachine(t))
			runs, err := filepath.Glob(dir + "/run.*")
			must(t, err)
			if len(runs) != 1 {
				t.Fatalf("the cluster has the folders %v", runs)
			}
			run := filepath.Base(runs[0])
			groups, processes := len(cgroups(t, run)), len(processesIn(t, dir))
			must(t, cmd.Process.Signal(s))
			if err := cmd.Wait(); err == nil {
				t.Error("the process ended well")
			}
			// Otherwise the checks below would find nothing in any case.
			if groups == 0 || processes < 10 {
				t.Fatalf("a cluster that is up has %d cgroups and %d processes", groups, processes)
			}
			requireEnd(t, dir, run)
			requireSameMachine(t, before, readMachine(t))
			must(t, os.Remove(dir)) // empty
		})
	}
}

// requireEnd waits until nothing is left of the cluster in the folder run of dir.
func requireEnd(t *testing.T, dir, run string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		folders, err := filepath.Glob(dir + "/*")
		must(t, err)
		left := append(append(processesIn(t, dir), cgroups(t, run)...), folders...)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left after 30 s: %s", strings.Join(left, ", "))
		}
	}
}

// processesIn lists the processes whose command lines or open logs name a folder of a cluster in dir, and all
// in the PID namespaces of those.
func processesIn(t *testing.T, dir string) []string {
	t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	must(t, err)
	spaces := make(map[string]bool)
	type process struct{ space, line string }
	var all []process
	own, err := os.Readlink("/proc/self/ns/pid")
	must(t, err)
	for _, c := range commands {
		// Processes end while they are looked at.
		line, err := os.ReadFile(c)
		space, err2 := os.Readlink(filepath.Join(filepath.Dir(c), "ns/pid"))
		if errors.Join(err, err2) != nil {
			continue
		}
		all = append(all, process{space, strings.ReplaceAll(string(line), "\x00", " ")})
		if strings.Contains(string(line), dir+"/") && space != own {
			spaces[space] = true
		}
	}
	var found []string
	for _, p := range all {
		if spaces[p.space] || strings.Contains(p.line, dir+"/") {
			found = append(found, p.line)
		}
	}
	return found
}

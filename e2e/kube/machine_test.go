package kube

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// machine is the state that a cluster must not change, line by line.
type machine []string

// readMachine reads packet rules, links, mounts, sysctls, and the folders in which the cluster's programs keep
// their things on a machine of their own.
func readMachine(t *testing.T) machine {
	t.Helper()
	var m machine
	for _, look := range [][]string{
		{"nft", "list", "ruleset"}, {"ip", "-o", "link"}, {"ip", "-o", "address"}, {"ip", "route"}, {"hostname"},
		{"iptables-legacy-save"},
	} {
		out, err := exec.Command(look[0], look[1:]...).Output()
		if err != nil {
			t.Fatalf("%v: %v", look, err)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") { // times
				m = append(m, strings.Join(look, " ")+": "+strings.TrimSpace(line))
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	for line := range strings.Lines(string(mounts)) {
		// The program that builds the image mounts and unmounts its own storage.
		if !strings.Contains(line, " /var/lib/containers/") {
			m = append(m, "mount "+strings.TrimSpace(line))
		}
	}
	return append(append(m, sysctls(t)...), folders(t)...)
}

// changing are sysctls that the kernel changes by itself.
var changing = []string{"kernel/random/", "kernel/ns_last_pid", "kernel/pty/nr", "fs/dentry-state", "fs/file-nr",
	"fs/inode-nr", "fs/inode-state", "fs/quota/", "fs/aio-nr", "net/netfilter/nf_conntrack_count", "kernel/perf_event_max_sample_rate",
	"net/ipv4/tcp_fastopen_key", "net/ipv6/conf/", "kernel/tainted"}

func sysctls(t *testing.T) machine {
	t.Helper()
	var m machine
	err := filepath.WalkDir("/proc/sys", func(p string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(p, "/proc/sys/")
		if err != nil || d.IsDir() || slices.ContainsFunc(changing, func(c string) bool { return strings.HasPrefix(name, c) }) {
			return nil // an entry that vanishes while it is read belonged to a link
		}
		if value, err := os.ReadFile(p); err == nil {
			m = append(m, "sysctl "+name+" = "+strings.TrimSpace(string(value)))
		}
		return nil
	})
	must(t, err)
	return m
}

func folders(t *testing.T) machine {
	t.Helper()
	var m machine
	for _, pattern := range []string{
		"/opt/*", "/etc/cni*", "/etc/kubernetes*", "/etc/containerd*", "/usr/libexec/kubernetes*",
		"/run/containerd*", "/run/runc*", "/run/netns*", "/run/netns/*", "/run/nodelocaldns*", "/run/localcache*", "/run/xtables.lock",
		"/var/lib/kubelet*", "/var/lib/cni*", "/var/lib/containerd*", "/var/lib/etcd*", "/var/log/pods*", "/var/log/containers*",
		"/dev/shm/fill-*",
	} {
		found, err := filepath.Glob(pattern)
		must(t, err)
		for _, f := range found {
			m = append(m, "there is "+f)
		}
	}
	return m
}

// cgroups are the folders in the cgroup tree of the cluster whose own folder has this name.
func cgroups(t *testing.T, run string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/localcache-kube-", "/sys/fs/cgroup/*/localcache-kube-"} {
		found, err := filepath.Glob(pattern + run)
		must(t, err)
		all = append(all, found...)
	}
	return all
}

func requireSameMachine(t *testing.T, before, after machine) {
	t.Helper()
	for _, line := range after {
		if !slices.Contains(before, line) {
			t.Errorf("new on the machine: %s", line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			t.Errorf("gone from the machine: %s", line)
		}
	}
}

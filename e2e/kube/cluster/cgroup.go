package cluster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupRoot is the one place of the machine that a cluster cannot have for itself: cgroups are folders of
// a tree that all namespaces share. Each cluster has one folder in it, with a folder for each node.
const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the cgroup trees of the machine: one with version 2, one for each controller with
// version 1 or both.
func hierarchies() ([]string, error) {
	if _, err := os.Stat(cgroupRoot + "/cgroup.controllers"); err == nil {
		return []string{cgroupRoot}, nil
	}
	entries, err := os.ReadDir(cgroupRoot)
	if err != nil {
		return nil, err
	}
	var trees []string
	for _, e := range entries {
		// Links such as cpu -> cpu,cpuacct name the same tree twice.
		if e.IsDir() {
			trees = append(trees, filepath.Join(cgroupRoot, e.Name()))
		}
	}
	if len(trees) == 0 {
		return nil, fmt.Errorf("there are no cgroups in %s", cgroupRoot)
	}
	return trees, nil
}

// makeCgroup makes cluster/node in every hierarchy, ready to hold containers.
func makeCgroup(cluster, node string) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		parent := tree
		for _, name := range []string{cluster, node} {
			dir := filepath.Join(parent, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := inherit(parent, dir); err != nil {
				return err
			}
			parent = dir
		}
	}
	return nil
}

// inherit gives a new cgroup what version 1 leaves empty (its CPUs and memory nodes), and what version 2
// leaves switched off (controllers for the groups in it).
func inherit(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		value, err := os.ReadFile(filepath.Join(parent, file))
		if err != nil || strings.TrimSpace(string(value)) == "" {
			continue // not a cpuset hierarchy, or version 2, where empty means the parent's
		}
		if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
			return err
		}
	}
	controllers, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil // version 1
	}
	for _, c := range strings.Fields(string(controllers)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroups removes the cluster's folders. Its processes are dead by then, but the kernel may take
// moments to let go of their groups.
func removeCgroups(cluster string) error {
	trees, err := hierarchies()
	if err != nil {
		return err
	}
	for _, tree := range trees {
		var dirs []string
		err := filepath.WalkDir(filepath.Join(tree, cluster), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return err
		})
		if err != nil {
			return err
		}
		slices.Reverse(dirs)
		for _, d := range dirs {
			// rmdir(2), because os.Remove would try unlink(2) first.
			for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
				err = unix.Rmdir(d)
				if err == nil || errors.Is(err, unix.ENOENT) {
					break
				}
				if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
					return fmt.Errorf("remove cgroup %s: %w", d, err)
				}
			}
		}
	}
	return nil
}

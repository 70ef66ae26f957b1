package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// etcFiles are the files that a host sees below /etc in place of the machine's own: name to content.
type etcFiles map[string]string

// mount writes the files to dir and mounts them over /etc in the calling thread's mount namespace. The files in dir
// stay visible: rewriting one in place changes what the host reads.
func (files etcFiles) mount(dir string) error {
	absent := false
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write the host's %s: %w", name, err)
		}
		err := reachable("/etc/" + name)
		if errors.Is(err, fs.ErrNotExist) {
			absent = true
		} else if err != nil {
			return err
		}
	}
	if absent {
		if err := growEtc(files, dir); err != nil {
			return err
		}
	}
	for name := range files {
		if err := unix.Mount(filepath.Join(dir, name), "/etc/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount the host's /etc/%s: %w", name, err)
		}
	}
	return nil
}

// reachable makes path lead to a file that can be mounted over. /etc/resolv.conf is often a link into /run, which is
// empty here: the target of the link is created. fs.ErrNotExist means that there is nothing at path, not even a link.
func reachable(path string) error {
	for range 8 { // links to links, bounded
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return nil
		}
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(filepath.Dir(path), target)
		}
		if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) {
			if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
				return fmt.Errorf("%s leads to %s: %w", path, target, err)
			}
			if err := os.WriteFile(target, nil, 0o644); err != nil {
				return fmt.Errorf("%s leads to %s: %w", path, target, err)
			}
		}
		path = target
	}
	return fmt.Errorf("%s: %w", path, unix.ELOOP)
}

// growEtc adds missing files to /etc, for this mount namespace only: a mount needs an existing file, and the
// machine's /etc must not be changed.
func growEtc(files etcFiles, dir string) error {
	upper, work := filepath.Join(dir, "etc"), filepath.Join(dir, "etc-work")
	for _, d := range []string{upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for name := range files {
		if _, err := os.Lstat("/etc/" + name); errors.Is(err, fs.ErrNotExist) {
			if err := os.WriteFile(filepath.Join(upper, name), nil, 0o644); err != nil {
				return err
			}
		}
	}
	options := fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s,userxattr", upper, work)
	if err := unix.Mount("overlay", "/etc", "overlay", 0, options); err != nil {
		return fmt.Errorf("lay an overlay on /etc, which lacks one of resolv.conf, hosts and nsswitch.conf (create it, empty, to do without): %w", err)
	}
	return nil
}

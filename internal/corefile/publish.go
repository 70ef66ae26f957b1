package corefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// confMode is the mode of the rendered Corefile: it holds no secret, and people debug with it.
const confMode = 0o644

// publish writes content to the file at path, unless the file already has it: completely or not at all, so that no
// reader sees a part. A symbolic link stays, and its target is replaced. base is the template, for the message.
func publish(path, base string, content []byte) error {
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		target = path // the file is new, or the rename reports what is wrong
	}
	if old, err := readBounded(target); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := replace(target, content); err != nil {
		return fmt.Errorf("cannot write the Corefile %s, to which the template %s (-basecorefile) is rendered: %w: %s",
			path, base, cause(err), remedy(path, err))
	}
	return nil
}

// replace writes content beside path and renames it into place. The file is synced first, because a renamed file that
// is not on disk may be empty after a crash; its directory is not, since the old file is as good: every start renders
// again.
func replace(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			if rmErr := os.Remove(f.Name()); !errors.Is(rmErr, fs.ErrNotExist) {
				err = errors.Join(err, rmErr)
			}
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(confMode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// cause strips err of the temporary name, which says nothing to a reader and would make each try's
// message a new one.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// remedy says what to do about err.
func remedy(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Sprintf("the directory %s is not there: mount an emptyDir volume at it, or point -conf into a writable directory", filepath.Dir(path))
	case errors.Is(err, syscall.EBUSY):
		return "the file is a mount point of its own (subPath): mount its directory instead"
	case errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.EEXIST):
		return "-conf must name a file"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "make room on that file system"
	}
	return fmt.Sprintf("the directory %s must be writable: mount an emptyDir volume at it, or point -conf into a writable directory", filepath.Dir(path))
}

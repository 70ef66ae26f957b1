package corefile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// dataLink is the link that the kubelet switches when a ConfigMap volume changes: the visible files are
// links through it, so that all of them change at one moment (kubernetes, pkg/volume/util, AtomicWriter).
const dataLink = "..data"

// maxRereads bounds how often a read is repeated because the volume was switched meanwhile. The kubelet does so about
// once a minute.
const maxRereads = 5

// read returns the current inputs. Files of one ConfigMap volume are of one version of it.
func (s *Source) read() (inputs, error) {
	in := inputs{file: s.template, dir: s.kubeDNS}
	if s.stdin {
		in.template = s.fromStdin
	} else {
		err := consistently(filepath.Dir(s.template), func() (err error) {
			in.template, err = readBounded(s.template)
			return err
		})
		if err != nil {
			return in, fmt.Errorf("cannot read the Corefile: %w", err)
		}
	}
	if s.kubeDNS == "" {
		return in, nil
	}
	err := consistently(s.kubeDNS, func() (err error) {
		if err = checkDir(s.kubeDNS); err != nil {
			return err
		}
		if in.stubs, err = readOptional(filepath.Join(s.kubeDNS, keyStubDomains)); err != nil {
			return err
		}
		in.upstreams, err = readOptional(filepath.Join(s.kubeDNS, keyUpstreams))
		return err
	})
	if err != nil {
		return in, fmt.Errorf("cannot read the kube-dns ConfigMap: %w", err)
	}
	return in, nil
}

// consistently runs read until the version of the volume in dir is the same before and after. In a
// plain directory, which has no versions, it runs once.
func consistently(dir string, read func() error) error {
	for range maxRereads {
		before := version(dir)
		err := read()
		if version(dir) == before {
			return err
		}
	}
	return fmt.Errorf("%s changed during each of %d attempts to read it", dir, maxRereads)
}

// version returns the version of the ConfigMap volume in dir; empty for a plain directory, and for one that cannot be
// read, which reading its files reports better.
func version(dir string) string {
	v, err := os.Readlink(filepath.Join(dir, dataLink))
	if err != nil {
		return ""
	}
	return v
}

// checkDir returns an error unless the directory of the kube-dns ConfigMap exists: a missing mount differs from a
// ConfigMap without the two keys.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("the directory %s (-kubednscm) does not exist: mount the ConfigMap there, with optional: true "+
			"where there may be none, or leave the flag out", dir)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s (-kubednscm) is not a directory", dir)
	}
	return nil
}

// readOptional is readBounded with nil for a file that does not exist.
func readOptional(path string) ([]byte, error) {
	b, err := readBounded(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// readBounded reads the regular file at path, of at most MaxFileSize octets. Any other kind of file could block, or
// have other content at the next read.
func readBounded(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := readAll(path, f)
	return b, errors.Join(err, f.Close())
}

// readAll reads r to its end, at most MaxFileSize octets.
func readAll(name string, r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, MaxFileSize+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > MaxFileSize:
		return nil, fmt.Errorf("%s is larger than %d octets: this is no Corefile or ConfigMap", name, MaxFileSize)
	}
	return b, nil
}

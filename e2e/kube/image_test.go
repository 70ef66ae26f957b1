package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"localcache.dev/localcache/e2e/kube/image"
)

// noEngine is the status with which deploy/image.sh reports that no program here builds images.
const noEngine = 3

// buildLocalcache writes the images under test to a folder: two versions of localcache, which differ in
// their names only, and the image with iptables.
func buildLocalcache(ctx context.Context, dir string) ([]string, error) {
	v1, v2 := filepath.Join(dir, "localcache-v1.tar"), filepath.Join(dir, "localcache-v2.tar")
	files := filepath.Join(dir, "files")
	if err := os.RemoveAll(files); err != nil {
		return nil, err
	}
	if err := imageScript(ctx, "FILES="+files); err != nil {
		return nil, err
	}
	for name, archive := range map[string]string{imageV1: v1, imageV2: v2} {
		err := imageScript(ctx, "IMAGE="+name, "ARCHIVE="+archive)
		var status *exec.ExitError
		if errors.As(err, &status) && status.ExitCode() == noEngine {
			progress("no engine builds images here: %s is packed without one", name)
			err = pack(name, files, archive, nil)
		}
		if err != nil {
			return nil, err
		}
	}
	iptables := filepath.Join(dir, "localcache-iptables.tar")
	return []string{v1, v2, iptables}, pack(imageIptables, files, iptables, addIptables)
}

// imageScript runs deploy/image.sh, which is quiet unless it fails.
func imageScript(ctx context.Context, environment ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(root, "deploy/image.sh"))
	cmd.Env = append(os.Environ(), environment...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s deploy/image.sh: %w: %s", strings.Join(environment, " "), err, out)
	}
	return err
}

// pack builds an image of the files that deploy/image.sh lays out, with the Dockerfile's entry point.
func pack(name, files, archive string, more func(*image.Image) error) error {
	entrypoint, err := image.EntrypointOf(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return err
	}
	i := image.Image{Name: name, Entrypoint: []string{entrypoint}}
	if err := i.AddTree(files); err != nil {
		return err
	}
	if more != nil {
		if err := more(&i); err != nil {
			return err
		}
	}
	return i.Write(archive)
}

// addIptables adds this machine's iptables and sleep. The Dockerfile takes them from Debian's image, which needs a
// registry.
func addIptables(i *image.Image) error {
	i.Links = make(map[string]string)
	for _, kind := range []string{"nft", "legacy"} {
		program, err := exec.LookPath("xtables-" + kind + "-multi")
		if err != nil {
			return fmt.Errorf("%w: apt-get install iptables", err)
		}
		target := "xtables-" + kind + "-multi"
		if err := i.AddProgram("usr/sbin/"+target, program); err != nil {
			return err
		}
		for _, name := range []string{"iptables", "ip6tables"} {
			for _, suffix := range []string{"", "-save", "-restore"} {
				i.Links["usr/sbin/"+name+"-"+kind+suffix] = target
				if kind == "nft" {
					i.Links["usr/sbin/"+name+suffix] = target
				}
			}
		}
	}
	extensions, err := filepath.Glob("/usr/lib/*/xtables/*.so")
	if err != nil {
		return err
	}
	for _, e := range extensions {
		if err := i.AddProgram(e, e); err != nil {
			return err
		}
	}
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		return err
	}
	return i.AddProgram("bin/sleep", sleep)
}

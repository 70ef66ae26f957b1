package image

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// AddTree adds every file under a folder of the machine, under the same names below the root of the image.
func (i *Image) AddTree(dir string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, p)
		i.add(name, p)
		return err
	})
}

func (i *Image) add(name, file string) {
	if i.Files == nil {
		i.Files = make(map[string]string)
	}
	i.Files[strings.TrimPrefix(name, "/")] = file
}

var libraryLine = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// AddProgram adds a program of the machine at a path of the image, with the libraries that it is linked
// with at their own paths, so that it runs in an image without a distribution.
func (i *Image) AddProgram(name, file string) error {
	i.add(name, file)
	// ldd fails for a static program, which needs nothing more.
	out, err := exec.Command("ldd", file).Output()
	if err != nil {
		return nil
	}
	for _, m := range libraryLine.FindAllStringSubmatch(string(out), -1) {
		i.add(m[1], m[1])
	}
	return nil
}

// entrypoint is the last line of this kind of each stage; all stages of our Dockerfile have the same.
var entrypoint = regexp.MustCompile(`(?m)^ENTRYPOINT \["([^"]+)"\]`)

// EntrypointOf reads the entry point from a Dockerfile in which every stage that has one has the same.
func EntrypointOf(dockerfile string) (string, error) {
	content, err := os.ReadFile(dockerfile)
	if err != nil {
		return "", err
	}
	found := ""
	for _, m := range entrypoint.FindAllStringSubmatch(string(content), -1) {
		if found != "" && found != m[1] {
			return "", fmt.Errorf("%s has two entry points, %s and %s", dockerfile, found, m[1])
		}
		found = m[1]
	}
	if found == "" {
		return "", fmt.Errorf("%s has no ENTRYPOINT of the form [\"/program\"]", dockerfile)
	}
	return found, nil
}

package corefile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// openStdin reads the Corefile from standard input, which is possible once.
func (s *Source) openStdin() (err error) {
	s.name, s.template, s.stdin = Stdin, Stdin, true
	s.fromStdin, err = readAll("standard input", s.opt.Stdin)
	if err != nil {
		return fmt.Errorf("-conf %s: %w", Stdin, err)
	}
	if len(bytes.TrimSpace(s.fromStdin)) == 0 {
		return fmt.Errorf("-conf %s: nothing came in; pipe the Corefile into the process", Stdin)
	}
	return nil
}

// openFiles finds the template and the Corefile. The result holds for the life of the process: a template that
// appears later would overwrite the Corefile that was served until then, and one that vanishes would turn the
// rendered file into the source.
func (s *Source) openFiles() error {
	if s.opt.Base != "" {
		found, err := exists(s.opt.Base)
		if err != nil {
			return fmt.Errorf("cannot look for the template (-basecorefile): %w", err)
		}
		if found {
			s.template, s.rendered = s.opt.Base, firstOf(s.opt.Conf, s.opt.Corefile, DefaultRendered)
			s.name = s.rendered
			return s.checkDistinct()
		}
	}
	for _, path := range []string{firstOf(s.opt.Conf, s.opt.Corefile), DefaultConf} {
		if path == "" {
			continue
		}
		found, err := exists(path)
		if err != nil {
			return fmt.Errorf("cannot look for the Corefile: %w", err)
		}
		if found {
			s.name, s.template = path, path
			return nil
		}
		if path == s.opt.Conf {
			break // it was asked for by name, and no other will do
		}
	}
	return s.noneFound()
}

// noneFound says where a Corefile was looked for.
func (s *Source) noneFound() error {
	var looked []string
	if s.opt.Base != "" {
		looked = append(looked, fmt.Sprintf("the template %s (-basecorefile)", s.opt.Base))
	}
	switch {
	case s.opt.Conf != "":
		looked = append(looked, fmt.Sprintf("%s (-conf)", s.opt.Conf))
	case s.opt.Corefile != "":
		looked = append(looked, fmt.Sprintf("%s (-corefile)", s.opt.Corefile))
		fallthrough
	default:
		where := DefaultConf
		if dir, err := os.Getwd(); err == nil {
			where = filepath.Join(dir, DefaultConf)
		}
		looked = append(looked, where)
	}
	return fmt.Errorf("no Corefile found; looked for %s: give one with -conf", strings.Join(looked, ", "))
}

// checkDistinct refuses to render a template onto itself.
func (s *Source) checkDistinct() error {
	same := filepath.Clean(s.template) == filepath.Clean(s.rendered)
	if from, err := os.Stat(s.template); err == nil {
		if to, err := os.Stat(s.rendered); err == nil {
			same = same || os.SameFile(from, to)
		}
	}
	if same {
		return fmt.Errorf("-basecorefile %s and -conf %s are one file, which rendering would overwrite: name another one with -conf, "+
			"or leave -basecorefile empty to serve the file with its placeholders expanded in memory", s.template, s.rendered)
	}
	return nil
}

// exists reports whether path is there. A dangling link is not.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func firstOf(candidates ...string) string {
	for _, s := range candidates {
		if s != "" {
			return s
		}
	}
	return ""
}

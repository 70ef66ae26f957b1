package iptables

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// versionLimit bounds asking a program for its version, which needs neither lock nor kernel.
const versionLimit = 5 * time.Second

// Variant names the programs of one variant of iptables.
type Variant struct {
	Name   string    // rule.IPTablesNFT or rule.IPTablesLegacy
	paths  [2]string // of the programs for IPv4 and IPv6; "" where there is none
	legacy bool
}

// Find looks for the programs of both variants in PATH: iptables-nft and iptables-legacy, or iptables if
// its version names the variant.
func Find(ctx context.Context) []Variant {
	var found []Variant
	for _, v := range []Variant{{Name: rule.IPTablesNFT}, {Name: rule.IPTablesLegacy, legacy: true}} {
		for i, name := range []string{"iptables", "ip6tables"} {
			if path, err := exec.LookPath(name + strings.TrimPrefix(v.Name, "iptables")); err == nil {
				v.paths[i] = path
			} else if path, err := exec.LookPath(name); err == nil {
				if legacy, err := isLegacy(ctx, path); err == nil && legacy == v.legacy {
					v.paths[i] = path
				}
			}
		}
		// The IPv6 program of the same package lies beside it, perhaps outside PATH.
		if v4 := v.paths[0]; v4 != "" && v.paths[1] == "" {
			twin := filepath.Join(filepath.Dir(v4), strings.Replace(filepath.Base(v4), "iptables", "ip6tables", 1))
			v.paths[1], _ = exec.LookPath(twin) // "" if there is none
		}
		if v.paths != [2]string{} {
			found = append(found, v)
		}
	}
	return found
}

// isLegacy reports whether the program at path drives ip_tables rather than nf_tables, from its version:
// "iptables v1.8.9 (nf_tables)". Before 1.8 all programs were legacy.
func isLegacy(ctx context.Context, path string) (bool, error) {
	return variants.get(question{path: path}, func() (bool, error) {
		out, err := call(ctx, path, versionLimit, func() ([]byte, error) { return (&exec.Cmd{Path: path, Args: []string{path, "--version"}}).Output() })
		if err == nil && !strings.Contains(string(out), " v") {
			err = fmt.Errorf("no version in %q", out)
		}
		if err != nil {
			return false, fmt.Errorf("%s --version: %w", path, err)
		}
		return !strings.Contains(string(out), "(nf_tables)"), nil
	})
}

// openLibrary returns go-iptables for the program at path.
func openLibrary(ctx context.Context, path string, v6 bool, seconds int) (*goiptables.IPTables, error) {
	return libraries.get(question{path: path, v6: v6, seconds: seconds}, func() (*goiptables.IPTables, error) {
		family := goiptables.ProtocolIPv4
		if v6 {
			family = goiptables.ProtocolIPv6
		}
		library, err := call(ctx, path, versionLimit, func() (*goiptables.IPTables, error) {
			return goiptables.New(goiptables.Path(path), goiptables.IPFamily(family), goiptables.Timeout(seconds))
		})
		if err != nil {
			return nil, fmt.Errorf("%s --version: %w", path, err)
		}
		return library, nil
	})
}

// The answers of programs to --version. It is asked several times at a start, and each start of a program
// takes milliseconds.
var (
	variants  answers[bool]
	libraries answers[*goiptables.IPTables]
)

// question identifies a program file and what it was asked. An upgrade puts another file at the path.
type question struct {
	path    string
	v6      bool
	seconds int
	file    unix.Stat_t // without the time of the last access
}

// answers caches the answers of programs. It is safe for concurrent use.
type answers[T any] struct {
	mu    sync.Mutex
	known map[question]T
}

// get returns the cached answer to q, or the result of ask. An error is not cached.
func (a *answers[T]) get(q question, ask func() (T, error)) (T, error) {
	if err := unix.Stat(q.path, &q.file); err != nil {
		return ask() // its error names the cause
	}
	q.file.Atim = unix.Timespec{}
	a.mu.Lock()
	value, ok := a.known[q]
	a.mu.Unlock()
	if ok {
		return value, nil
	}
	value, err := ask()
	if err == nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.known == nil || len(a.known) > 64 { // a node has some twenty; each upgrade adds as many
			a.known = map[question]T{}
		}
		a.known[q] = value
	}
	return value, err
}

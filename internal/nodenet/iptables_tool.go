package nodenet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// lockWait is how long a call waits for the xtables lock, the -w of iptables. Programs hold it for
// milliseconds; on nodes with tens of thousands of rules for a second or two.
const lockWait = 5 * time.Second

// exitLocked is the exit status of iptables where it did not get the lock (RESOURCE_PROBLEM in
// xtables.h).
const exitLocked = 4

// exitNotThere is the exit status of iptables for a chain or a rule that does not exist, and for any
// other thing that it could not do (OTHER_PROBLEM).
const exitNotThere = 1

// xtablesProgram is one iptables or ip6tables program.
type xtablesProgram struct {
	path   string
	legacy bool // it drives ip_tables, not nf_tables
	v6     bool
	ipt    *iptables.IPTables
	calls  int // programs started, for tests
}

func openXtables(path string, legacy, v6 bool, wait time.Duration) (*xtablesProgram, error) {
	proto := iptables.ProtocolIPv4
	if v6 {
		proto = iptables.ProtocolIPv6
	}
	// Whole seconds are all that -w takes from version 1.8.8 on; 0 would wait for ever.
	seconds := max(1, int(wait/time.Second))
	ipt, err := iptables.New(iptables.IPFamily(proto), iptables.Path(path), iptables.Timeout(seconds))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &xtablesProgram{path: path, legacy: legacy, v6: v6, ipt: ipt}, nil
}

func (x *xtablesProgram) family() string {
	if x.v6 {
		return "IPv6"
	}
	return "IPv4"
}

// run calls the program once. go-iptables takes no context: a call that has begun ends by itself, after
// the wait for the lock at the latest.
func (x *xtablesProgram) run(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", x.path, err)
	}
	x.calls++
	err := f()
	if x.legacy && exitStatus(err) == exitLocked {
		// The program ends this way too where it cannot even open the lock's file, which no waiting
		// mends.
		if file, openErr := openLock(); openErr != nil {
			return fmt.Errorf("%s cannot open its lock: %w: make the directory writable or mount the host's file", x.path, openErr)
		} else if closeErr := file.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
		return fmt.Errorf("%w: %w", ErrLocked, err)
	}
	return err
}

// openLock opens the file of the xtables lock as iptables does (xtables_lock in iptables/xshared.c).
func openLock() (*os.File, error) {
	name := os.Getenv("XTABLES_LOCKFILE")
	if name == "" {
		name = "/run/xtables.lock"
	}
	return os.OpenFile(name, os.O_RDONLY|os.O_CREATE, 0o600)
}

// exitStatus returns the exit status behind an error of go-iptables, or 0.
func exitStatus(err error) int {
	var e *iptables.Error
	if errors.As(err, &e) {
		return e.ExitStatus()
	}
	return 0
}

// loaded tells whether the kernel has the table. A legacy table that nobody has asked for holds no
// rule, and asking for it would load its module and hook it into every packet's way.
func (x *xtablesProgram) loaded(table string) bool {
	if !x.legacy {
		return true
	}
	names := "/proc/thread-self/net/ip_tables_names"
	if x.v6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(names)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	// Where the list cannot be read the program has to say what is wrong.
	return err != nil || slices.Contains(strings.Fields(string(b)), table)
}

// list returns the lines of a chain, or with chain "" of the whole table.
func (x *xtablesProgram) list(ctx context.Context, table, chain string) ([]ruleLine, error) {
	if chain == "" {
		// -S without a chain is out of go-iptables' reach. The options -4 and -6 have no effect on a
		// program of their family (iptables(8)) and keep the place.
		chain = "-4"
		if x.v6 {
			chain = "-6"
		}
	}
	var text []string
	err := x.run(ctx, func() (err error) {
		text, err = x.ipt.List(table, chain)
		return err
	})
	if err != nil {
		return nil, err
	}
	var lines []ruleLine
	for _, s := range text {
		if l, ok := parseRuleLine(s); ok {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// deleteRule deletes the first rule of these arguments. It is no error if somebody else was faster.
func (x *xtablesProgram) deleteRule(ctx context.Context, table, chain string, args []string) error {
	err := x.run(ctx, func() error { return x.ipt.Delete(table, chain, args...) })
	if exitStatus(err) != exitNotThere {
		return err
	}
	var there bool
	if e := x.run(ctx, func() (e error) { there, e = x.ipt.Exists(table, chain, args...); return e }); e != nil {
		return errors.Join(err, e)
	}
	if there {
		return err
	}
	return nil
}

// dropChain empties and deletes a chain of ours that no rule leads to any more. The answer is whether
// there was one.
func (x *xtablesProgram) dropChain(ctx context.Context, table, chain string) (bool, error) {
	var there bool
	err := x.run(ctx, func() (e error) { there, e = x.ipt.ChainExists(table, chain); return e })
	if err != nil || !there {
		return false, err
	}
	return true, x.run(ctx, func() error { return x.ipt.ClearAndDeleteChain(table, chain) })
}

// iptablesTools are the programs of one variant. A path is empty where there is no such program.
type iptablesTools struct {
	name   string // iptables-nft or iptables-legacy
	path4  string
	path6  string
	legacy bool
}

// The names of the front ends.
const (
	nameIPTablesNFT    = "iptables-nft"
	nameIPTablesLegacy = "iptables-legacy"
	nameNFTables       = "nftables"
)

// findIPTables looks for the programs of both variants in PATH. A program whose name does not tell its
// variant is asked for its version; before 1.8 there was only what is now called legacy.
func findIPTables(ctx context.Context) []iptablesTools {
	var found []iptablesTools
	for _, variant := range []struct {
		name, suffix string
		legacy       bool
	}{{nameIPTablesNFT, "-nft", false}, {nameIPTablesLegacy, "-legacy", true}} {
		t := iptablesTools{name: variant.name, legacy: variant.legacy}
		for _, p := range []struct {
			name string
			path *string
		}{{"iptables", &t.path4}, {"ip6tables", &t.path6}} {
			if path, err := exec.LookPath(p.name + variant.suffix); err == nil {
				*p.path = path
			} else if path, err := exec.LookPath(p.name); err == nil {
				if legacy, err := isLegacy(ctx, path); err == nil && legacy == variant.legacy {
					*p.path = path
				}
			}
		}
		// The other family's program of the same package lies beside it, perhaps out of PATH.
		if t.path4 != "" && t.path6 == "" {
			twin := filepath.Join(filepath.Dir(t.path4), strings.Replace(filepath.Base(t.path4), "iptables", "ip6tables", 1))
			if path, err := exec.LookPath(twin); err == nil {
				t.path6 = path
			}
		}
		if t.path4 != "" || t.path6 != "" {
			found = append(found, t)
		}
	}
	return found
}

// isLegacy asks the program at path which variant it is.
func isLegacy(ctx context.Context, path string) (bool, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return false, fmt.Errorf("%s --version: %w", path, err)
	}
	return !bytes.Contains(out, []byte("(nf_tables)")), nil
}

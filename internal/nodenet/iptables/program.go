package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// LockWait is how long a call waits for the xtables lock, the -w of iptables. Programs hold it for
// milliseconds; on nodes with tens of thousands of rules for a second or two.
const LockWait = 5 * time.Second

// Program is one iptables or ip6tables program.
type Program struct {
	Path   string
	Legacy bool // it drives ip_tables, not nf_tables
	V6     bool
	// Restore is the program of the same variant that makes many changes at once; "" if there is none.
	Restore string

	Wait  []string      // the options by which a call waits for the lock
	Limit time.Duration // of one call
	Lock  *LockWatch
	Left  <-chan struct{} // a call that could not even be killed, until it ends
	Calls int             // programs started, for tests
}

// OpenXtables asks the program at path for its version. wait is how long each call waits for the lock.
func OpenXtables(ctx context.Context, path string, legacy, v6 bool, wait time.Duration, lock *LockWatch) (*Program, error) {
	v, err := AskVersion(ctx, path)
	if err != nil {
		return nil, err
	}
	x := &Program{Path: path, Legacy: legacy, V6: v6, Limit: wait + callMargin, Lock: lock}
	switch {
	case slices.Compare(v.number[:], []int{1, 4, 20}) < 0:
		return nil, fmt.Errorf("%s is of version %s and cannot wait for the xtables lock: 1.4.20 is the first that can", path, v)
	case slices.Compare(v.number[:], []int{1, 6, 0}) < 0:
		x.Wait = []string{"-w"} // for ever, but for limit
	default:
		// Whole seconds are all that -w takes from version 1.8.8 on; 0 would not wait.
		x.Wait = []string{"-w", strconv.Itoa(max(1, int(wait/time.Second)))}
	}
	// iptables-restore knows -w from 1.6.2 on. What lies beside a program of no telling name may be of
	// the other variant.
	if r, err := AskVersion(ctx, path+"-restore"); err == nil && r.Legacy == legacy && slices.Compare(r.number[:], []int{1, 6, 2}) >= 0 {
		x.Restore = path + "-restore"
	}
	return x, nil
}

func (x *Program) family() string {
	if x.V6 {
		return "IPv6"
	}
	return "IPv4"
}

// wanted tells whether one of the addresses is of the program's family.
func (x *Program) wanted(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is6() == x.V6 })
}

// Run calls the program once. A call ends with ctx, and after limit at the latest: a program that hangs
// is killed. Where not even that ends it, further calls fail until it has ended, so that there is one of
// them at most.
//
// Errors: *exitError; one that wraps errHung; one that wraps ErrLocked, where the lock was held, and
// with ctx.Err() where the waits for it have used up the time.
func (x *Program) Run(ctx context.Context, args ...string) ([]byte, error) {
	return x.call(ctx, "", x.Path, args...)
}

// call is run for the program at path, which is x's or its restore, with an input.
func (x *Program) call(ctx context.Context, stdin, path string, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, x.Lock.explain(fmt.Errorf("%s: %w", x.Path, err))
	}
	select {
	case <-x.Left:
		x.Left = nil
	default:
		if x.Left != nil {
			return nil, fmt.Errorf("%s: an earlier call was killed: %w", x.Path, ErrHung)
		}
	}
	x.Calls++
	start := time.Now()
	out, left, err := RunProgram(ctx, x.Limit, stdin, path, append(args, x.Wait...)...)
	x.Left = left
	if !x.Legacy {
		return out, err // nf_tables needs no lock
	}
	if exitStatus(err) == exitLocked {
		// The program ends this way too where it cannot even open the lock's file, which no waiting
		// mends.
		if file, openErr := OpenLock(); openErr != nil {
			return nil, fmt.Errorf("%s cannot open its lock: %w: make the directory writable or mount the host's file", x.Path, openErr)
		} else if closeErr := file.Close(); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}
	x.Lock.note(time.Since(start), err)
	if exitStatus(err) == exitLocked || errors.Is(err, ErrHung) || err != nil && ctx.Err() != nil {
		err = x.Lock.explain(err)
	}
	return out, err
}

// change calls the program for what it does.
func (x *Program) change(ctx context.Context, args ...string) error {
	_, err := x.Run(ctx, args...)
	return err
}

// ask calls the program to know whether a rule or a chain is there.
func (x *Program) ask(ctx context.Context, args ...string) (bool, error) {
	_, err := x.Run(ctx, args...)
	if exitStatus(err) == exitNotThere {
		return false, nil
	}
	return err == nil, err
}

// Loaded tells whether the kernel has the table. A legacy table that nobody has asked for holds no
// rule, and asking for it would load its module and hook it into every packet's way.
func (x *Program) Loaded(table string) bool {
	if !x.Legacy {
		return true
	}
	names := "/proc/thread-self/net/ip_tables_names"
	if x.V6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(names)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	// Where the list cannot be read the program has to say what is wrong.
	return err != nil || slices.Contains(strings.Fields(string(b)), table)
}

// List returns the lines of a chain, or with chain "" of the whole table.
func (x *Program) List(ctx context.Context, table, chain string) ([]RuleLine, error) {
	args := []string{"-t", table, "-S"}
	if chain != "" {
		args = append(args, chain)
	}
	out, err := x.Run(ctx, args...)
	if err != nil {
		return nil, err
	}
	var lines []RuleLine
	for s := range strings.Lines(string(out)) {
		if l, ok := parseRuleLine(s); ok {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// clearChain makes an empty chain, or empties the one of that name.
func (x *Program) clearChain(ctx context.Context, table, chain string) error {
	err := x.change(ctx, "-t", table, "-N", chain)
	if exitStatus(err) != exitNotThere {
		return err
	}
	// Most likely it is there. If not, the reason is that of the first call.
	if e := x.change(ctx, "-t", table, "-F", chain); e != nil {
		return errors.Join(err, e)
	}
	return nil
}

// fillChain makes chain hold the rules and nothing else, and then puts a rule of the arguments jump at the
// head of the chain hook. Each call waits for the lock anew, so that it is one call where that can be.
func (x *Program) fillChain(ctx context.Context, table, chain string, rules [][]string, hook string, jump []string) error {
	if x.Restore != "" {
		var b strings.Builder
		// A chain that is declared is made, or emptied (iptables-restore(8)).
		fmt.Fprintf(&b, "*%s\n:%s - [0:0]\n", table, chain)
		for _, args := range rules {
			fmt.Fprintln(&b, RuleLine{Command: "-A", Chain: chain, Args: args})
		}
		fmt.Fprintln(&b, RuleLine{Command: "-I", Chain: hook, Args: append([]string{"1"}, jump...)})
		b.WriteString("COMMIT\n")
		_, err := x.call(ctx, b.String(), x.Restore, "--noflush")
		return err
	}
	if err := x.clearChain(ctx, table, chain); err != nil {
		return err
	}
	for _, args := range rules {
		if err := x.appendRule(ctx, table, chain, args); err != nil {
			return err
		}
	}
	return x.insertRule(ctx, table, hook, jump)
}

// appendRule adds a rule at the end of a chain.
func (x *Program) appendRule(ctx context.Context, table, chain string, args []string) error {
	return x.change(ctx, append([]string{"-t", table, "-A", chain}, args...)...)
}

// insertRule puts a rule at the head of a chain.
func (x *Program) insertRule(ctx context.Context, table, chain string, args []string) error {
	return x.change(ctx, append([]string{"-t", table, "-I", chain, "1"}, args...)...)
}

// deleteRule deletes the first rule of these arguments. It is no error if somebody else was faster.
func (x *Program) deleteRule(ctx context.Context, table, chain string, args []string) error {
	err := x.change(ctx, append([]string{"-t", table, "-D", chain}, args...)...)
	if exitStatus(err) != exitNotThere {
		return err
	}
	there, e := x.ask(ctx, append([]string{"-t", table, "-C", chain}, args...)...)
	if e != nil {
		return errors.Join(err, e)
	}
	if there {
		return err
	}
	return nil
}

// dropChain empties and deletes a chain of ours that no rule leads to any more. The answer is whether
// there was one.
func (x *Program) dropChain(ctx context.Context, table, chain string) (bool, error) {
	// One rule is enough to know, of however many.
	there, err := x.ask(ctx, "-t", table, "-S", chain, "1")
	if err != nil || !there {
		return false, err
	}
	if err := x.change(ctx, "-t", table, "-F", chain); err != nil {
		return true, err
	}
	return true, x.change(ctx, "-t", table, "-X", chain)
}

// Tools are the programs of one variant. A path is empty where there is no such program.
type Tools struct {
	Name   string // iptables-nft or iptables-legacy
	path4  string
	Path6  string
	legacy bool
}

// Find looks for the programs of both variants in PATH. A program whose name does not tell its
// variant is asked for its version; before 1.8 there was only what is now called legacy.
func Find(ctx context.Context) []Tools {
	var found []Tools
	for _, variant := range []struct {
		name, suffix string
		legacy       bool
	}{{rule.IPTablesNFT, "-nft", false}, {rule.IPTablesLegacy, "-legacy", true}} {
		t := Tools{Name: variant.name, legacy: variant.legacy}
		for _, p := range []struct {
			name string
			path *string
		}{{"iptables", &t.path4}, {"ip6tables", &t.Path6}} {
			if path, err := exec.LookPath(p.name + variant.suffix); err == nil {
				*p.path = path
			} else if path, err := exec.LookPath(p.name); err == nil {
				if v, err := AskVersion(ctx, path); err == nil && v.Legacy == variant.legacy {
					*p.path = path
				}
			}
		}
		// The other family's program of the same package lies beside it, perhaps out of PATH.
		if t.path4 != "" && t.Path6 == "" {
			twin := filepath.Join(filepath.Dir(t.path4), strings.Replace(filepath.Base(t.path4), "iptables", "ip6tables", 1))
			if path, err := exec.LookPath(twin); err == nil {
				t.Path6 = path
			}
		}
		if t.path4 != "" || t.Path6 != "" {
			found = append(found, t)
		}
	}
	return found
}

// toolVersion is what a program says of itself.
type toolVersion struct {
	number [3]int
	Legacy bool
}

func (v toolVersion) String() string {
	return fmt.Sprintf("%d.%d.%d", v.number[0], v.number[1], v.number[2])
}

// versions are those of programs that were asked, by the file that each is. They are looked for several times at a
// start, and to start a program takes milliseconds in which a process with one processor answers nobody.
var versions struct {
	sync.Mutex
	of map[programFile]toolVersion
}

// programFile tells one program from another that has come to its path.
type programFile struct {
	path       string
	dev, ino   uint64
	size       int64
	mtim, ctim unix.Timespec
}

func programAt(path string) (programFile, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return programFile{}, false
	}
	return programFile{path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}, true
}

// AskVersion asks the program at path for its version and variant, once for each that is there.
func AskVersion(ctx context.Context, path string) (toolVersion, error) {
	file, ok := programAt(path)
	if !ok {
		return askVersionAgain(ctx, path) // which says what is wrong
	}
	versions.Lock()
	v, known := versions.of[file]
	versions.Unlock()
	if known {
		return v, nil
	}
	v, err := askVersionAgain(ctx, path)
	if err == nil {
		versions.Lock()
		defer versions.Unlock()
		if versions.of == nil || len(versions.of) > 64 { // there are eight, and others after an upgrade
			versions.of = map[programFile]toolVersion{}
		}
		versions.of[file] = v
	}
	return v, err
}

func askVersionAgain(ctx context.Context, path string) (toolVersion, error) {
	out, _, err := RunProgram(ctx, versionLimit, "", path, "--version")
	if err != nil {
		return toolVersion{}, fmt.Errorf("ask for the version: %w", err)
	}
	// iptables v1.8.9 (nf_tables); before 1.8 nothing stands behind the number.
	v := toolVersion{Legacy: !bytes.Contains(out, []byte("(nf_tables)"))}
	_, number, _ := strings.Cut(string(out), " v")
	if n, err := fmt.Sscanf(number, "%d.%d.%d", &v.number[0], &v.number[1], &v.number[2]); n < 2 {
		return v, fmt.Errorf("%s --version: no version in %q: %w", path, out, err)
	}
	return v, nil
}

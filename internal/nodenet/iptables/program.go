package iptables

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	goiptables "github.com/coreos/go-iptables/iptables"

	"localcache.dev/localcache/internal/nodenet/rule"
)

const (
	// callMargin is how long a call may take beyond its wait for the lock. Tens of thousands of rules
	// are listed within a second or two. With LockWait it is less than any step is given, so that the
	// error says that the program hangs.
	callMargin = 3 * time.Second
	// cleanupLimit bounds the removal of what a call has made when its context has no time left.
	cleanupLimit = 2 * time.Second
)

// The exit statuses of iptables (enum xtables_exittype in xtables.h) that matter here.
const (
	// exitFailed means that a chain or rule does not exist, or any other failure (OTHER_PROBLEM).
	exitFailed = 1
	// exitLocked means that the program did not get the lock (RESOURCE_PROBLEM).
	exitLocked = 4
)

// program is one iptables or ip6tables program. go-iptables runs it for everything but two things that
// the library cannot do: read a table with all its chains in one call, and fill a chain in one transaction.
type program struct {
	library *goiptables.IPTables
	path    string
	legacy  bool // it drives ip_tables, not nf_tables
	v6      bool
	// restore is the path of the variant's iptables-restore, or "".
	restore string

	wait  []string      // the options by which our own calls wait for the lock
	limit time.Duration // of one call
	lock  *lockWatch
}

// openProgram returns the program at path, after asking it for its version. wait is how long each call
// waits for the lock, in whole seconds of at least one.
func openProgram(ctx context.Context, path string, legacy, v6 bool, wait time.Duration, lock *lockWatch) (*program, error) {
	// Whole seconds are all that iptables takes from version 1.8.8 on; go-iptables takes 0 for no limit.
	seconds := max(1, int(wait/time.Second))
	library, err := openLibrary(ctx, path, v6, seconds)
	if err != nil {
		return nil, err
	}
	p := &program{library: library, path: path, legacy: legacy, v6: v6, limit: wait + callMargin, lock: lock}
	major, minor, patch := library.GetIptablesVersion()
	atLeast := func(v ...int) bool { return slices.Compare([]int{major, minor, patch}, v) >= 0 }
	switch {
	case !atLeast(1, 4, 20):
		return nil, fmt.Errorf("%s is of version %d.%d.%d and cannot wait for the xtables lock: install 1.4.20 or later", path, major, minor, patch)
	case !atLeast(1, 6, 0):
		p.wait = []string{"-w"} // without a limit but for that of the call
	default:
		p.wait = []string{"-w", strconv.Itoa(seconds)}
	}
	// iptables-restore has the option -w since 1.6.2. The file beside a program with a neutral name such as
	// "iptables" may be of the other variant.
	if atLeast(1, 6, 2) {
		if l, err := isLegacy(ctx, path+"-restore"); err == nil && l == legacy {
			p.restore = path + "-restore"
		}
	}
	return p, nil
}

// family returns the name of the address family.
func (p *program) family() string {
	if p.v6 {
		return "IPv6"
	}
	return "IPv4"
}

// handles reports whether one of the addresses is of the program's family.
func (p *program) handles(addrs []netip.Addr) bool {
	return slices.ContainsFunc(addrs, func(a netip.Addr) bool { return a.Is6() == p.v6 })
}

// exitError is the end of a program with a status other than 0.
type exitError struct {
	status   int  // -1 where a signal ended it
	notExist bool // the program says that the rule or chain does not exist
	text     string
}

func (e *exitError) Error() string { return e.text }

// exitStatus returns the exit status behind an error, or 0.
func exitStatus(err error) int {
	var e *exitError
	if errors.As(err, &e) {
		return e.status
	}
	return 0
}

// unanswered reports whether err says nothing of the rules or the kernel: the lock was held, or the
// program did not end.
func unanswered(err error) bool { return errors.Is(err, rule.ErrLocked) || errors.Is(err, errHung) }

// run bounds one call of p with p's limit and returns its result.
//
// Errors: *exitError; one that wraps errHung; one that wraps rule.ErrLocked, where the lock was held, and
// with ctx.Err() where waiting for it has used up the time.
func run[T any](ctx context.Context, p *program, f func() (T, error)) (T, error) {
	start := time.Now()
	value, err := call(ctx, p.path, p.limit, f)
	if e := (*goiptables.Error)(nil); errors.As(err, &e) {
		text := strings.TrimSpace(e.Error())
		if e.ExitStatus() < 0 {
			text += " " + e.String()
		}
		err = &exitError{status: e.ExitStatus(), notExist: e.IsNotExist(), text: text}
	}
	locked := false
	if p.legacy { // nf_tables needs no lock
		if locked = exitStatus(err) == exitLocked; locked {
			// The program ends this way too where it cannot open the lock's file, which no wait cures.
			file, openErr := openLock()
			if openErr != nil {
				return value, fmt.Errorf("%s cannot open its lock: %w: make the directory writable or mount the host's file", p.path, openErr)
			}
			file.Close()
		}
		p.lock.note(time.Since(start), err)
	}
	if locked || p.legacy && errors.Is(err, errHung) || err != nil && ctx.Err() != nil {
		err = p.lock.explain(err)
	}
	return value, err
}

// change runs a call that returns nothing but an error.
func (p *program) change(ctx context.Context, f func() error) error {
	_, err := run(ctx, p, func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// command starts the program at path, which is p's or its restore, with an input and returns its output.
func (p *program) command(ctx context.Context, path, stdin string, args ...string) (string, error) {
	return run(ctx, p, func() (string, error) {
		args := append(args, p.wait...)
		var stdout, stderr bytes.Buffer
		cmd := exec.Cmd{Path: path, Args: append([]string{path}, args...), Stdin: strings.NewReader(stdin), Stdout: &stdout, Stderr: &stderr}
		err := cmd.Run()
		if e := (*exec.ExitError)(nil); errors.As(err, &e) {
			err = &exitError{status: e.ExitCode(), text: fmt.Sprintf("running %v: %v: %s", cmd.Args, e, strings.TrimSpace(stderr.String()))}
		}
		return stdout.String(), err
	})
}

// loaded reports whether the kernel has the table. A legacy table that no program has used yet holds no
// rule, and reading it would load its module and hook it into every packet's way.
func (p *program) loaded(table string) bool {
	if !p.legacy {
		return true
	}
	names := "/proc/thread-self/net/ip_tables_names"
	if p.v6 {
		names = "/proc/thread-self/net/ip6_tables_names"
	}
	b, err := os.ReadFile(names)
	if errors.Is(err, os.ErrNotExist) {
		return false
	}
	// If the list cannot be read, the table is read: its error names the cause.
	return err != nil || slices.Contains(strings.Fields(string(b)), table)
}

// list returns the lines of a chain.
func (p *program) list(ctx context.Context, table, chain string) ([]ruleLine, error) {
	lines, err := run(ctx, p, func() ([]string, error) { return p.library.List(table, chain) })
	return parseRuleLines(slices.Values(lines)), err
}

// listTable returns the lines of all chains of a table.
func (p *program) listTable(ctx context.Context, table string) ([]ruleLine, error) {
	text, err := p.command(ctx, p.path, "", "-t", table, "-S")
	return parseRuleLines(strings.Lines(text)), err
}

// fillChain makes chain hold the rules and nothing else, and then inserts a rule of the arguments jump at
// the head of the chain hook. Each call waits for the lock anew, so it is one call where possible.
func (p *program) fillChain(ctx context.Context, table, chain string, rules [][]string, hook string, jump []string) error {
	if p.restore == "" {
		err := p.change(ctx, func() error { return p.library.ClearChain(table, chain) })
		for _, args := range rules {
			if err == nil {
				err = p.change(ctx, func() error { return p.library.Append(table, chain, args...) })
			}
		}
		if err == nil {
			err = p.change(ctx, func() error { return p.library.Insert(table, hook, 1, jump...) })
		}
		return err
	}
	var b strings.Builder
	// A declared chain is created, or emptied (iptables-restore(8)).
	fmt.Fprintf(&b, "*%s\n:%s - [0:0]\n", table, chain)
	for _, args := range rules {
		fmt.Fprintln(&b, ruleLine{Command: "-A", Chain: chain, Args: args})
	}
	fmt.Fprintln(&b, ruleLine{Command: "-I", Chain: hook, Args: append([]string{"1"}, jump...)})
	b.WriteString("COMMIT\n")
	_, err := p.command(ctx, p.restore, b.String(), "--noflush")
	return err
}

// deleteRule deletes the first rule of these arguments. It is no error if another program was faster.
func (p *program) deleteRule(ctx context.Context, table, chain string, args []string) error {
	err := p.change(ctx, func() error { return p.library.Delete(table, chain, args...) })
	if e := (*exitError)(nil); errors.As(err, &e) && e.status == exitFailed && e.notExist {
		return nil
	}
	return err
}

// dropChain empties and deletes a chain if it exists. No rule may lead to it any more.
func (p *program) dropChain(ctx context.Context, table, chain string) error {
	return p.change(ctx, func() error { return p.library.ClearAndDeleteChain(table, chain) })
}

package uml

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// guestModules are what a node has: kinds of links, packet filters with the matches that kube-proxy and
// localcache use, and nf_tables, which this kernel has without IPv4 and IPv6: localcache must see that it
// is of no use here. They are loaded by name, because the machine may have no modprobe that the kernel
// could call.
var guestModules = []string{
	"dummy", "veth", "ipv6",
	"iptable_raw", "iptable_nat", "iptable_filter", "ip6table_raw", "ip6table_nat", "ip6table_filter",
	"xt_tcpudp", "xt_comment", "xt_conntrack", "xt_statistic", "xt_CT", "xt_nat", "xt_socket",
	"nf_conntrack_netlink", "nf_tables",
}

// bootGuest is the guest's first process: it prepares the guest, runs the tests, reports their status and switches
// the machine off. It never returns.
func bootGuest() {
	if err := liveAsInit(); err != nil {
		fmt.Fprintln(os.Stderr, "init:", err) // to the kernel's console
	}
	unix.Sync()
	err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	fmt.Fprintln(os.Stderr, "init: power off:", err)
	os.Exit(1) // the kernel panics, which ends it too
}

func liveAsInit() error {
	if err := mountGuest(); err != nil {
		return err
	}
	console, err := openConsole("/dev/tty1")
	if err != nil {
		return err
	}
	status, err := runTests(console)
	if err != nil {
		fmt.Fprintln(console, "init:", err)
		status = 1
	}
	// The status counts only once it is on the host whole.
	err = os.WriteFile("/run/report/status", strconv.AppendInt(nil, int64(status), 10), 0o644)
	return errors.Join(err, console.Close())
}

// mountGuest mounts what the root file system, the machine's own seen read-only, lacks.
func mountGuest() error {
	for _, m := range []struct{ kind, source, target, data string }{
		{"proc", "proc", "/proc", ""},
		{"sysfs", "sysfs", "/sys", ""},
		{"devtmpfs", "devtmpfs", "/dev", ""},
		{"tmpfs", "tmpfs", "/run", "mode=755"}, // also holds the xtables lock
		{"hostfs", "none", "/run/report", *report},
	} {
		if strings.HasPrefix(m.target, "/run/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.data); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	return os.MkdirAll("/run/tmp", 0o755)
}

// openConsole opens a terminal and stops it from turning line feeds into two octets.
func openConsole(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		t.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("terminal %s: %w", name, err), f.Close())
	}
	return f, nil
}

// runTests loads the modules and runs this program's tests. Its error is that they could not be run.
func runTests(console *os.File) (int, error) {
	deps, err := readModuleDeps(filepath.Join(*modules, "modules.dep"))
	if err != nil {
		return 0, err
	}
	for _, name := range guestModules {
		if err := deps.load(*modules, name); err != nil {
			return 0, err
		}
	}
	cmd := &exec.Cmd{
		Path:   "/proc/self/exe",
		Args:   slices.DeleteFunc(slices.Clone(os.Args), func(a string) bool { return a == "-init" }),
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/run/tmp", "TMPDIR=/run/tmp", guestMark + "=1"},
		Dir:    "/run/tmp",
		Stdout: console,
		Stderr: console,
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		return 0, fmt.Errorf("run the tests: %w", err)
	}
	if !cmd.ProcessState.Exited() {
		return 0, fmt.Errorf("the tests ended by %v", cmd.ProcessState)
	}
	return cmd.ProcessState.ExitCode(), nil
}

// moduleDeps are a kernel's modules by name, each with the files to load, in the order of modules.dep: the
// module itself first, then what it needs (modules.dep(5)).
type moduleDeps map[string][]string

func readModuleDeps(file string) (moduleDeps, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	deps, err := parseModuleDeps(f)
	return deps, errors.Join(err, f.Close())
}

func parseModuleDeps(r io.Reader) (moduleDeps, error) {
	deps := moduleDeps{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		module, needs, ok := strings.Cut(lines.Text(), ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep: %q has no colon", lines.Text())
		}
		name := strings.TrimSuffix(filepath.Base(module), ".ko")
		deps[name] = append([]string{module}, strings.Fields(needs)...)
	}
	return deps, lines.Err()
}

// load loads a module after all that it needs. Those that are loaded already are no error.
func (d moduleDeps) load(dir, name string) error {
	files := d[name]
	if files == nil {
		return fmt.Errorf("module %s: %w in this kernel", name, fs.ErrNotExist)
	}
	for _, file := range slices.Backward(files) {
		f, err := os.Open(filepath.Join(dir, file))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		if errors.Is(err, unix.EEXIST) {
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("module %s: load %s: %w", name, file, err)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

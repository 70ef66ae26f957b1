package lab

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Environment variables that describe a process's place. They are the lab's only state outside of its values, because
// nothing else survives an exec.
const (
	// envWorld holds the process id of the parent that made the private world. A process is inside only if that is
	// its own parent, so that programs which inherit the variable are not.
	envWorld = "LOCALCACHE_LAB_WORLD"
	// envRefused holds the kernel's reason why there is no private world.
	envRefused = "LOCALCACHE_LAB_REFUSED"
	// envRequired makes a missing lab an error instead of a skipped test (set it in CI).
	envRequired = "LOCALCACHE_LAB_REQUIRED"
)

// StayOutside is an environment variable that keeps a process which a test starts from making a world of its own: it is in the
// test's namespaces already.
const StayOutside = envRefused + "=the process that started this one has a world"

// ErrRefused says that the kernel or its configuration does not let this user have namespaces. The
// wrapping error says why and which setting decides it.
var ErrRefused = errors.New("no network namespaces for this user")

// Init runs the stage that the lab started this process for, and exits; in any other process it
// returns at once. Call it first in main and TestMain, before flags are parsed.
func Init() {
	if os.Args[0] == stageResolve {
		os.Exit(resolveStage(os.Args[1:], os.Stdout, os.Stderr))
	}
}

// Enter brings the program into a private world: new network and mount namespaces (and a user namespace, if the
// caller is not root), in which /run is an empty tmpfs, so that the xtables lock is the world's own, and no link
// exists but loopback.
//
// The first call runs this same program again inside of such a world, with the same arguments, standard files and
// forwarded signals, and waits. It then returns inside == false and the exit status of that run (128 plus the
// signal's number, if a signal ended it), with which the caller should exit. In the second run Enter returns inside
// == true at once.
//
// The world dies with this process, even after SIGKILL. An error that wraps ErrRefused means that the kernel allows
// none of it.
func Enter() (inside bool, status int, err error) { return enter(nil) }

// enter is Enter. The files, which it closes, and the environment are passed on to the run inside.
func enter(files []*os.File, env ...string) (inside bool, status int, err error) {
	if insideWorld() {
		return true, 0, furnish()
	}
	defer func() {
		for _, f := range files {
			_ = f.Close() // unless the run inside has them and closes them
		}
	}()
	status, err = runInside(os.Geteuid() != 0, files, env)
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		// Root without CAP_SYS_ADMIN, as in most containers, may still create a user namespace.
		status, err = runInside(true, files, env)
	}
	if err != nil {
		return false, 1, refusal(err)
	}
	return false, status, nil
}

// Main is the body of TestMain for packages whose tests use a lab:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
// If the kernel refuses a lab the tests run all the same, New returns an error that wraps ErrRefused, and Start
// skips. LOCALCACHE_LAB_REQUIRED=1 makes that a failure. With -short no lab is made.
func Main(m interface{ Run() int }) int {
	Init()
	if os.Getenv(envRefused) != "" {
		return m.Run()
	}
	flag.Parse()
	// Asked by name, because package testing does not belong into the programs that link the lab.
	if short := flag.Lookup("test.short"); short != nil && short.Value.String() == "true" {
		if err := refuse("-short leaves out network labs"); err != nil {
			fmt.Fprintf(os.Stderr, "lab: %v\n", err)
			return 1
		}
		return m.Run()
	}
	inside, status, err := Enter()
	switch {
	case errors.Is(err, ErrRefused) && os.Getenv(envRequired) == "":
		fmt.Fprintf(os.Stderr, "lab: %v; tests that need it are skipped\n", err)
		if err := refuse(strings.TrimPrefix(err.Error(), ErrRefused.Error()+": ")); err != nil {
			fmt.Fprintf(os.Stderr, "lab: %v\n", err)
			return 1
		}
		return m.Run()
	case err != nil:
		fmt.Fprintf(os.Stderr, "lab: %v\n", err)
		return 1
	case !inside:
		return status
	}
	return m.Run()
}

// refuse makes New return ErrRefused with the reason from now on.
func refuse(reason string) error {
	return errors.Join(os.Setenv(envRefused, reason), os.Unsetenv(envRequired))
}

// insideWorld reports whether this process is the second run of Enter.
func insideWorld() bool {
	return os.Getenv(envWorld) == strconv.Itoa(os.Getppid())
}

// AsUser reports whether the world belongs to an ordinary user, so that entering it from outside takes its user
// namespace too. Call it inside.
func AsUser() bool {
	// An ordinary user's world knows a single user; the machine's map has all of them.
	content, err := os.ReadFile("/proc/self/uid_map")
	fields := strings.Fields(string(content))
	return err == nil && len(fields) == 3 && fields[2] == "1"
}

// runInside runs this program again in new namespaces and returns its exit status. Its error is the
// kernel's refusal to make them.
func runInside(asUser bool, files []*os.File, env []string) (int, error) {
	// The child's death signal fires when the thread that started it ends, so this one must last.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	cmd := &exec.Cmd{
		Path:       "/proc/self/exe",
		Args:       os.Args,
		Env:        append(append(os.Environ(), envWorld+"="+strconv.Itoa(os.Getpid())), env...),
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		ExtraFiles: files,
		SysProcAttr: &syscall.SysProcAttr{
			Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS,
			Pdeathsig:  syscall.SIGKILL,
		},
	}
	if asUser {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for _, f := range files {
		_ = f.Close() // of a copy: the run inside decides when the other ends see the end
	}
	ended := make(chan struct{})
	forwarded := make(chan struct{})
	go func() {
		defer close(forwarded)
		for {
			select {
			case s := <-signals:
				// A process that has just ended needs no signal; Wait reports how it ended.
				_ = cmd.Process.Signal(s)
			case <-ended:
				return
			}
		}
	}()
	err := cmd.Wait()
	close(ended)
	<-forwarded

	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, fmt.Errorf("wait for the run inside: %w", err)
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// worldMark exists in the world's own /run once it is furnished.
const worldMark = "/run/localcache-lab"

// furnish makes the mounts of a fresh world private and brings its loopback up.
func furnish() error {
	if _, err := os.Stat(worldMark); err == nil {
		return nil
	}
	// Slave, not private: a file system that the machine unmounts later is unmounted here too and not kept busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return refusal(fmt.Errorf("make the mounts private: %w", err))
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=64m"); err != nil {
		return refusal(fmt.Errorf("mount a private /run: %w", err))
	}
	for _, dir := range []string{worldMark, "/run/lock"} { // /var/lock points to the latter
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("furnish the private /run: %w", err)
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback of the private world: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return refusal(fmt.Errorf("bring up loopback of the private world: %w", err))
	}
	return nil
}

// refusal turns an error of the kernel about namespaces into one that names the responsible setting. Other errors are
// returned unchanged.
func refusal(err error) error {
	var hints []string
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		for _, s := range []struct{ name, refuses, cure string }{
			{"kernel.unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"},
			{"kernel.apparmor_restrict_unprivileged_userns", "1", "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		} {
			if readSysctl(s.name) == s.refuses {
				hints = append(hints, fmt.Sprintf("%s is %s; allow it with '%s'", s.name, s.refuses, s.cure))
			}
		}
		if len(hints) == 0 {
			hints = append(hints, "a security policy (seccomp, AppArmor, SELinux, or a container without CAP_SYS_ADMIN) forbids namespaces")
		}
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
		for _, name := range []string{"user.max_user_namespaces", "user.max_net_namespaces", "user.max_mnt_namespaces"} {
			hints = append(hints, fmt.Sprintf("%s is %s", name, readSysctl(name)))
		}
	case errors.Is(err, unix.EINVAL):
		hints = append(hints, "the kernel is built without user or network namespaces (CONFIG_USER_NS, CONFIG_NET_NS)")
	default:
		return err
	}
	return fmt.Errorf("%w: %w: %s; or run as root", ErrRefused, err, strings.Join(hints, "; "))
}

// readSysctl returns a sysctl's value by its dotted name, or "unknown".
func readSysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}

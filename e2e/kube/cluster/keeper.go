package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Two processes of this very program stand behind a cluster, so that it ends whatever becomes of the test.
//
// The keeper is an ordinary process of the machine. Its standard input is a pipe whose other end only the
// test holds: when the test ends, by SIGKILL too, the kernel closes that end, and the keeper ends the
// cluster and removes what is left of it on the machine's disk and in its cgroups.
//
// The keeper's child is the init of the cluster's PID namespace. When it ends, the kernel kills every process
// of the namespace, and with the last of them go the network and mount namespaces. It dies with the keeper.
const (
	roleVariable = "LOCALCACHE_KUBE_ROLE"
	roleKeeper   = "keeper"
	roleInit     = "init"
)

// Main turns this process into the keeper or the init of a cluster, where it was started as one. Every
// program that raises clusters calls it before anything else; for those it returns without having done
// anything.
func Main() {
	var err error
	switch os.Getenv(roleVariable) {
	case roleKeeper:
		err = keep(os.Args[1], os.Args[2])
	case roleInit:
		err = beInit()
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s of the cluster: %v\n", os.Getenv(roleVariable), err)
		os.Exit(1)
	}
	os.Exit(0)
}

// keep starts the init, tells its PID on standard output, and at the end of standard input takes away the
// cluster, its folder and its cgroups.
func keep(dir, cgroup string) (err error) {
	// An interrupt from the terminal goes to the whole foreground; the test is the one to act on it.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	// The kernel sends Pdeathsig when the thread ends that started the child, not the process.
	runtime.LockOSThread()
	defer func() { err = errors.Join(err, removeCgroups(cgroup), os.RemoveAll(dir)) }()

	init := exec.Command("/proc/self/exe")
	init.Env = append(os.Environ(), roleVariable+"="+roleInit)
	init.Stderr = os.Stderr
	init.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
	}
	ready, err := init.StdoutPipe()
	if err != nil {
		return err
	}
	if err := init.Start(); err != nil {
		return fmt.Errorf("new PID, mount, network, UTS and IPC namespaces: %w", err)
	}
	defer func() {
		// Wait returns when every process of the namespace is dead. That it was killed is no error.
		_ = init.Process.Kill()
		_ = init.Wait()
	}()
	if _, err := bufio.NewReader(ready).ReadString('\n'); err != nil {
		return errors.New("the cluster's init has not started")
	}
	if _, err := fmt.Println(init.Process.Pid); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// fakes are settings of the whole machine that a kubelet writes. The cluster sees files in their place,
// which hold what the kubelet wants.
var fakes = map[string]string{
	"vm/overcommit_memory":     "1",
	"vm/panic_on_oom":          "0",
	"kernel/panic":             "10",
	"kernel/panic_on_oops":     "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// beInit makes the cluster's view of the file system and sleeps until it is killed.
func beInit() error {
	// Processes whose parents ended become ours; the kernel is to reap them.
	signal.Ignore(syscall.SIGCHLD, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := privateRun(); err != nil {
		return err
	}
	for name, value := range fakes {
		fake := "/run/sysctl-" + strings.ReplaceAll(name, "/", "-")
		if err := os.WriteFile(fake, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(fake, "/proc/sys/"+name, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover /proc/sys/%s: %w", name, err)
		}
	}
	fmt.Println("ready")
	select {}
}

// privateRun covers /run, where programs keep sockets and locks, with an empty one.
func privateRun() error {
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for _, d := range []string{"/run/netns", "/run/lock"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile("/run/xtables.lock", nil, 0o600)
}

// keeper is the test's end of the keeper process.
type keeper struct {
	cmd *exec.Cmd
	end io.Closer // of its standard input: closing it ends the cluster
	pid int       // of the init, in the machine's PID namespace
}

// startKeeper starts keeper and init. Their errors go to the file log.
func startKeeper(dir, cgroup, log string) (*keeper, error) {
	errs, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	cmd := exec.Command("/proc/self/exe", dir, cgroup)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleKeeper)
	cmd.Stderr = errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	end, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	k := &keeper{cmd: cmd, end: end}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err == nil {
		k.pid, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		_ = k.stop() // what it says is in the log
		said, _ := os.ReadFile(log)
		return nil, fmt.Errorf("the keeper of the cluster has not started: %s", said)
	}
	return k, nil
}

// stop ends the cluster and returns when nothing of it is left.
func (k *keeper) stop() error {
	return errors.Join(k.end.Close(), k.cmd.Wait())
}

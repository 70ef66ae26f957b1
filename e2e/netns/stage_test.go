package netns

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/lab"
)

// Some helper processes are this test program under one of these names.
const (
	stageHold    = "localcache-e2e:hold"    // hold sockets: args are networks and addresses by turns
	stageWithout = "localcache-e2e:without" // args: capability numbers with commas, program, its arguments
	stageNoRun   = "localcache-e2e:no-run"  // run a program where /run is empty and read-only
	stageStub    = "localcache-e2e:stub"    // Go's stub resolver, for each name on standard input
)

// runStage runs the stage that the process was started for and does not return; in the test process itself it returns
// at once.
func runStage() {
	var err error
	switch os.Args[0] {
	case stageHold:
		err = hold(os.Args[1:])
	case stageWithout:
		err = runWithout(os.Args[1], os.Args[2:])
	case stageNoRun:
		err = runReadOnly(os.Args[1:])
	case stageStub:
		err = resolveLines(os.Stdin, os.Stdout)
	default:
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[0], err)
		os.Exit(125)
	}
	os.Exit(0)
}

// hold opens the sockets, says so, and keeps them until standard input ends.
func hold(args []string) error {
	for pair := range slices.Chunk(args, 2) {
		if strings.HasPrefix(pair[0], "udp") {
			c, err := net.ListenPacket(pair[0], pair[1])
			if err != nil {
				return err
			}
			defer c.Close()
			continue
		}
		l, err := net.Listen(pair[0], pair[1])
		if err != nil {
			return err
		}
		defer l.Close()
	}
	fmt.Println("held")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// runWithout becomes a program without some capabilities. Removed from the bounding set, they do not return for root
// at execve (capabilities(7)).
func runWithout(caps string, program []string) error {
	runtime.LockOSThread() // capabilities are a thread's, and this one becomes the program
	for c := range strings.SplitSeq(caps, ",") {
		n, err := strconv.Atoi(c)
		if err != nil {
			return err
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(n), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	return unix.Exec(program[0], program, os.Environ())
}

// runReadOnly becomes a program that finds an empty and read-only /run, as in a container with a
// read-only root file system.
func runReadOnly(program []string) error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	return unix.Exec(program[0], program, os.Environ())
}

// stage is a command that runs this program as one of the stages.
func stage(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = name
	// Under the race detector it would sleep a second at its end.
	cmd.Env = append(os.Environ(), "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	return cmd
}

// startHolder starts a process on the node that holds sockets until the end of the test, and waits until
// it has them.
func startHolder(t *testing.T, l *lab.Lab, networksAndAddresses ...string) *lab.Program {
	t.Helper()
	cmd := stage(stageHold, networksAndAddresses...)
	said, saying, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	ending, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var problem strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = ending, saying, &problem
	p, err := l.Node.Start(cmd)
	if err := errors.Join(err, ending.Close(), saying.Close()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end.Close(); err != nil {
			t.Error(err)
		}
		<-p.Done()
	})
	if _, err := io.ReadFull(said, make([]byte, len("held\n"))); err != nil {
		t.Fatalf("the holder of %v has not got its sockets: %v", networksAndAddresses, errors.Join(err, p.Wait(), errors.New(problem.String())))
	}
	return p
}

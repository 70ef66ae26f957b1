package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// program is one of the cluster's own programs.
type program struct {
	space *Space
	path  string
	args  []string
	log   string

	process *os.Process
	done    chan struct{} // closed when the process has ended
}

// start starts a program that runs until the cluster ends. Its name is that of its log file.
func (c *Cluster) start(s *Space, name, path string, args ...string) error {
	p := &program{space: s, path: path, args: args, log: filepath.Join(c.Logs, name+".log")}
	// Every run begins a new file; a program that is started again adds to it.
	if err := os.WriteFile(p.log, nil, 0o644); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.programs[name] = p
	return p.start()
}

func (p *program) start() error {
	p.done = make(chan struct{})
	log, err := os.OpenFile(p.log, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		close(p.done)
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	if err := p.space.Start(cmd); err != nil {
		close(p.done)
		return fmt.Errorf("start %s: %w", filepath.Base(p.path), err)
	}
	p.process = cmd.Process
	go func() {
		defer close(p.done)
		_ = cmd.Wait() // that it ends is noticed by whom it should serve; why is in its log
	}()
	return nil
}

// stop ends the program and waits for it.
func (p *program) stop(s syscall.Signal) error {
	if err := p.process.Signal(s); err != nil {
		return fmt.Errorf("stop %s: %w", filepath.Base(p.path), err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(30 * time.Second):
		return fmt.Errorf("%s has not ended within 30 s of signal %v", filepath.Base(p.path), s)
	}
}

// controllers act on what they see at the API server. Elsewhere they are several, and one that cannot renew its lease
// there for 10 s ends. Here there is one of each and no lease, and it would go on with what it saw before: its watches
// come back up to a minute late, and meanwhile it takes nodes for dead and waits for what has happened already.
var controllers = [...]string{"kube-controller-manager", "kube-scheduler"}

// StopAPI ends the API server at once, as a crash does, and the controllers with it. StartAPI starts them again.
func (c *Cluster) StopAPI() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := []error{c.programs["kube-apiserver"].stop(syscall.SIGKILL)}
	for _, name := range controllers {
		errs = append(errs, c.programs[name].stop(syscall.SIGKILL))
	}
	return errors.Join(errs...)
}

// StartAPI starts the API server after StopAPI, waits until it is ready, and starts the controllers.
func (c *Cluster) StartAPI(ctx context.Context) error {
	start := func(name string) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.programs[name].start()
	}
	if err := start("kube-apiserver"); err != nil {
		return err
	}
	if err := c.waitAPI(ctx); err != nil {
		return err
	}
	var errs []error
	for _, name := range controllers {
		errs = append(errs, start(name))
	}
	return errors.Join(errs...)
}

// run runs a program outside of the cluster's namespaces.
func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

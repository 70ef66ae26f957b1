package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"
)

const (
	// maxKubectlOutput bounds what is read of kubectl: the pods of some thousand nodes, or the largest answer of a cache.
	maxKubectlOutput = 64 << 20
	maxKubectlErrors = 4 << 10
	// kubectlGrace is how long kubectl may keep its pipes open after it was ended.
	kubectlGrace = time.Second
)

// kubectl runs the kubectl that is installed. So kubeconfig, contexts, plugins for credentials and proxies are those that
// the administrator has set up, and nothing of that is here.
type kubectl struct {
	context, kubeconfig string
	namespace           string // of the cache's pods
}

// clusterError says that the cluster could not be asked, and what to do about it.
type clusterError struct {
	message, hint string
	status        int // to exit with
}

// Error implements error.
func (e *clusterError) Error() string { return e.message }

// kubectlFailed is the error of a kubectl that ended with a status.
type kubectlFailed struct{ said string }

// Error implements error.
func (e *kubectlFailed) Error() string { return e.said }

// run runs kubectl until ctx ends and returns its standard output, also where it fails.
func (k *kubectl) run(ctx context.Context, args ...string) ([]byte, error) {
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return nil, &clusterError{
			message: fmt.Sprintf("the nodes are found by kubectl, which cannot be run: %v", err),
			hint:    "Install kubectl (https://kubernetes.io/docs/tasks/tools/) and set it up for the cluster, or ask one cache by --url.",
			status:  exitUsage,
		}
	}
	global := []string{"--namespace=" + k.namespace}
	if k.context != "" {
		global = append(global, "--context="+k.context)
	}
	if k.kubeconfig != "" {
		global = append(global, "--kubeconfig="+k.kubeconfig)
	}
	cmd := exec.CommandContext(ctx, path, append(global, args...)...)
	out, errs := bounded{most: maxKubectlOutput}, bounded{most: maxKubectlErrors, cut: true}
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = kubectlGrace
	if terminal(os.Stdin) && args[0] == "get" {
		cmd.Stdin = os.Stdin // a plugin for credentials may ask for a password
	}
	err = cmd.Run()
	if out.over {
		return nil, fmt.Errorf("kubectl %s: it answers more than %d MiB", args[0], maxKubectlOutput>>20)
	}
	var status *exec.ExitError
	if errors.As(err, &status) && ctx.Err() == nil {
		said := strings.Join(strings.FieldsFunc(strings.TrimSpace(errs.buffer.String()), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
		if said == "" {
			said = status.String()
		}
		err = &kubectlFailed{"kubectl " + args[0] + ": " + said}
	} else if err != nil {
		err = fmt.Errorf("kubectl %s: %w", args[0], err)
	}
	return out.buffer.Bytes(), err
}

// bounded is a buffer for at most so many bytes. What is more is cut off or an error.
type bounded struct {
	buffer bytes.Buffer
	most   int
	cut    bool
	over   bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	room := b.most - b.buffer.Len()
	if len(p) <= room {
		return b.buffer.Write(p)
	}
	b.over = true
	b.buffer.Write(p[:room])
	if !b.cut {
		return room, io.ErrShortWrite
	}
	return len(p), nil
}

// denied tells whether the API server says that the right is missing. What it does not say is not known.
func (k *kubectl) denied(ctx context.Context, verb, resource string, more ...string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := k.run(ctx, append([]string{"auth", "can-i", verb, resource}, more...)...) // "no" has the status 1, like an error
	return bytes.HasPrefix(out, []byte("no"))
}

// target is a pod of the cache.
type target struct {
	node, pod string
	ip        string
	image     string
	problem   string // why it cannot be asked; empty where it can
	leaving   bool   // it is being deleted
	alone     bool   // no other pod of its node is asked
}

// label is how people call it.
func (t *target) label() string {
	switch {
	case t.node == "":
		return "pod " + t.pod
	case !t.alone:
		return t.node + " (" + t.pod + ")"
	}
	return t.node
}

// pods lists the cache's pods, one or, during an upgrade, two for each node.
func (k *kubectl) pods(ctx context.Context, selector, container string, timeout time.Duration) ([]target, error) {
	document, err := k.run(ctx, "get", "pods", "--selector="+selector, "--output=json", "--request-timeout="+timeout.String())
	var failed *kubectlFailed
	if errors.As(err, &failed) {
		e := &clusterError{message: "the nodes cannot be found: " + err.Error(), hint: "--context, --kubeconfig and KUBECONFIG say which cluster it is, as with kubectl.", status: exitUsage}
		if k.denied(ctx, "list", "pods") {
			e.hint = fmt.Sprintf("The right to list pods in the namespace %s is missing, and then mostly the one to create pods/exec too.", k.namespace)
		}
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	targets, err := readPods(document, container)
	if err == nil && len(targets) == 0 {
		err = &clusterError{
			message: fmt.Sprintf("there are no pods with %s in the namespace %s", selector, k.namespace),
			hint:    "--cache-namespace and --selector say where the cache is and which labels its pods have.", status: exitFailed,
		}
	}
	return targets, err
}

// readPods reads what kubectl says about pods: those that can be asked, and of each other node one that cannot. They
// are in the order of nodes and names.
func readPods(document []byte, container string) ([]target, error) {
	type state struct {
		Running *struct{}
		Waiting *struct{ Reason string }
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name              string
				DeletionTimestamp *time.Time
			}
			Spec struct {
				NodeName   string
				Containers []struct{ Name, Image string }
			}
			Status struct {
				Phase, PodIP      string
				ContainerStatuses []struct {
					Name  string
					State state
				}
			}
		}
	}
	if err := json.Unmarshal(document, &list); err != nil {
		return nil, fmt.Errorf("kubectl get: its answer cannot be read: %w", err)
	}
	byNode := map[string][]target{}
	var nowhere []target
	for _, item := range list.Items {
		t := target{node: item.Spec.NodeName, pod: item.Metadata.Name, ip: item.Status.PodIP, leaving: item.Metadata.DeletionTimestamp != nil}
		var names []string
		for _, c := range item.Spec.Containers {
			names = append(names, c.Name)
			if c.Name == container {
				t.image = c.Image
			}
		}
		switch {
		case t.node == "":
			t.problem = "it is on no node yet"
		case !slices.Contains(names, container):
			t.problem = fmt.Sprintf("its pod %s has no container %s, but %s: --container names it", t.pod, container, strings.Join(names, ", "))
		case item.Status.Phase != "Running":
			t.problem = fmt.Sprintf("its pod %s is %s", t.pod, item.Status.Phase)
		}
		for _, c := range item.Status.ContainerStatuses {
			if t.problem == "" && c.Name == container && c.State.Running == nil {
				t.problem = fmt.Sprintf("its pod %s does not run", t.pod)
				if c.State.Waiting != nil {
					t.problem += ": " + c.State.Waiting.Reason
				}
			}
		}
		if t.node == "" {
			nowhere = append(nowhere, t)
		} else {
			byNode[t.node] = append(byNode[t.node], t)
		}
	}
	var targets []target
	for _, pods := range byNode {
		chosen := slices.DeleteFunc(slices.Clone(pods), func(t target) bool { return t.problem != "" || t.leaving })
		if len(chosen) == 0 {
			chosen = slices.DeleteFunc(slices.Clone(pods), func(t target) bool { return t.problem != "" })
		}
		if len(chosen) == 0 {
			chosen = pods[:1]
		}
		for i := range chosen {
			chosen[i].alone = len(chosen) == 1
		}
		targets = append(targets, chosen...)
	}
	targets = append(targets, nowhere...)
	slices.SortFunc(targets, func(a, b target) int {
		if c := strings.Compare(a.node, b.node); c != 0 {
			return c
		}
		return strings.Compare(a.pod, b.pod)
	})
	return targets, nil
}

// exec asks the cache of a pod in the pod itself, by 'localcache raw'.
func (k *kubectl) exec(ctx context.Context, t *target, container, request string) ([]byte, error) {
	return k.run(ctx, "exec", "pod/"+t.pod, "--container="+container, "--", programInImage, "raw", request)
}

// programInImage is where the images have the program, see the Dockerfile.
const programInImage = "/localcache"

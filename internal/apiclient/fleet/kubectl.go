// Package fleet asks the caches of all nodes of a cluster: it finds their pods with kubectl, asks each of them directly or
// with kubectl exec, and merges the answers.
package fleet

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

	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/cli"
)

const (
	// maxKubectlOutput bounds the output of kubectl that is read: the pods of some thousand nodes, or the largest
	// answer of a cache.
	maxKubectlOutput = 64 << 20
	maxKubectlErrors = 4 << 10
	// kubectlGrace is how long kubectl may keep its pipes open after it was ended.
	kubectlGrace = time.Second
)

// kubectl runs the installed kubectl, which brings the administrator's kubeconfig, contexts, credential plugins and
// proxies.
type kubectl struct {
	context, kubeconfig string
	namespace           string // of the cache's pods
}

// ClusterError reports that the cluster could not be asked, and what to do about it.
type ClusterError struct {
	message, Hint string
	Status        int // to exit with
}

// Error implements error.
func (e *ClusterError) Error() string { return e.message }

// kubectlFailed is the error of a kubectl that ended with a status.
type kubectlFailed struct{ said string }

// Error implements error.
func (e *kubectlFailed) Error() string { return e.said }

// Run runs kubectl until ctx ends and returns its standard output, also if it fails.
func (k *kubectl) Run(ctx context.Context, args ...string) ([]byte, error) {
	path, err := exec.LookPath("kubectl")
	if err != nil {
		return nil, &ClusterError{
			message: fmt.Sprintf("the nodes are found by kubectl, which cannot be run: %v", err),
			Hint:    "Install kubectl (https://kubernetes.io/docs/tasks/tools/) and set it up for the cluster, or ask one cache by --url.",
			Status:  cli.ExitUsage,
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
	if render.Terminal(os.Stdin) && args[0] == "get" {
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

// bounded is a buffer for a limited number of bytes. More is cut off or an error.
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

// denied reports whether the API server says that the right is missing. Anything else leaves it unknown.
func (k *kubectl) denied(ctx context.Context, verb, resource string, more ...string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, _ := k.Run(ctx, append([]string{"auth", "can-i", verb, resource}, more...)...) // "no" has the status 1, like an error
	return bytes.HasPrefix(out, []byte("no"))
}

// target is a pod of the cache.
type target struct {
	Node, Pod string
	ip        string
	Image     string
	Problem   string // why it cannot be asked; empty if it can
	leaving   bool   // it is being deleted
	Alone     bool   // no other pod of its node is asked
}

// Label returns its name for people.
func (t *target) Label() string {
	switch {
	case t.Node == "":
		return "pod " + t.Pod
	case !t.Alone:
		return t.Node + " (" + t.Pod + ")"
	}
	return t.Node
}

// pods lists the cache's pods, one or, during an upgrade, two for each node.
func (k *kubectl) pods(ctx context.Context, selector, container string, timeout time.Duration) ([]target, error) {
	document, err := k.Run(ctx, "get", "pods", "--selector="+selector, "--output=json", "--request-timeout="+timeout.String())
	var failed *kubectlFailed
	if errors.As(err, &failed) {
		e := &ClusterError{message: "the nodes cannot be found: " + err.Error(), Hint: "--context, --kubeconfig and KUBECONFIG say which cluster it is, as with kubectl.", Status: cli.ExitUsage}
		if k.denied(ctx, "list", "pods") {
			e.Hint = fmt.Sprintf("The right to list pods in the namespace %s is missing, and then mostly the one to create pods/exec too.", k.namespace)
		}
		return nil, e
	}
	if err != nil {
		return nil, err
	}
	targets, err := ReadPods(document, container)
	if err == nil && len(targets) == 0 {
		err = &ClusterError{
			message: fmt.Sprintf("there are no pods with %s in the namespace %s", selector, k.namespace),
			Hint:    "--cache-namespace and --selector say where the cache is and which labels its pods have.", Status: cli.ExitFailed,
		}
	}
	return targets, err
}

// ReadPods parses kubectl's list of pods: those that can be asked, and for each other node one that cannot. They are
// sorted by node and name.
func ReadPods(document []byte, container string) ([]target, error) {
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
		t := target{Node: item.Spec.NodeName, Pod: item.Metadata.Name, ip: item.Status.PodIP, leaving: item.Metadata.DeletionTimestamp != nil}
		var names []string
		for _, c := range item.Spec.Containers {
			names = append(names, c.Name)
			if c.Name == container {
				t.Image = c.Image
			}
		}
		switch {
		case t.Node == "":
			t.Problem = "it is on no node yet"
		case !slices.Contains(names, container):
			t.Problem = fmt.Sprintf("its pod %s has no container %s, but %s: --container names it", t.Pod, container, strings.Join(names, ", "))
		case item.Status.Phase != "Running":
			t.Problem = fmt.Sprintf("its pod %s is %s", t.Pod, item.Status.Phase)
		}
		for _, c := range item.Status.ContainerStatuses {
			if t.Problem == "" && c.Name == container && c.State.Running == nil {
				t.Problem = fmt.Sprintf("its pod %s does not run", t.Pod)
				if c.State.Waiting != nil {
					t.Problem += ": " + c.State.Waiting.Reason
				}
			}
		}
		if t.Node == "" {
			nowhere = append(nowhere, t)
		} else {
			byNode[t.Node] = append(byNode[t.Node], t)
		}
	}
	var targets []target
	for _, pods := range byNode {
		chosen := slices.DeleteFunc(slices.Clone(pods), func(t target) bool { return t.Problem != "" || t.leaving })
		if len(chosen) == 0 {
			chosen = slices.DeleteFunc(slices.Clone(pods), func(t target) bool { return t.Problem != "" })
		}
		if len(chosen) == 0 {
			chosen = pods[:1]
		}
		for i := range chosen {
			chosen[i].Alone = len(chosen) == 1
		}
		targets = append(targets, chosen...)
	}
	targets = append(targets, nowhere...)
	slices.SortFunc(targets, func(a, b target) int {
		if c := strings.Compare(a.Node, b.Node); c != 0 {
			return c
		}
		return strings.Compare(a.Pod, b.Pod)
	})
	return targets, nil
}

// exec asks the cache of a pod in the pod itself, with 'localcache raw'.
func (k *kubectl) exec(ctx context.Context, t *target, container, request string) ([]byte, error) {
	return k.Run(ctx, "exec", "pod/"+t.Pod, "--container="+container, "--", ProgramInImage, "raw", request)
}

// ProgramInImage is the path of the program in the images, see the Dockerfile.
const ProgramInImage = "/localcache"

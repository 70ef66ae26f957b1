package cluster

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// Kubectl runs kubectl as the administrator and returns its standard output.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.World.Run(ctx, c.program("kubectl"), append([]string{"--kubeconfig=" + c.kubeconfig("admin")}, args...)...)
}

// Apply applies a manifest.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	_, err := c.World.Feed(ctx, manifest, c.program("kubectl"), "--kubeconfig="+c.kubeconfig("admin"), "apply", "-f", "-")
	return err
}

// Shell runs a script with bash in a folder, as an administrator would on a machine where kubectl is set up
// for this cluster. It returns all that the script printed. The script ends at the first command that fails.
func (c *Cluster) Shell(ctx context.Context, folder, script string) (string, error) {
	preface := fmt.Sprintf("set -euo pipefail; exec 2>&1; cd %q; export PATH=%q KUBECONFIG=%q\n",
		folder, c.Kubernetes+":"+os.Getenv("PATH"), c.kubeconfig("admin"))
	return c.World.Feed(ctx, preface+script, "bash", "-s")
}

// Rolled waits until a Deployment or DaemonSet of kube-system ("deployment/coredns") is as it should be.
func (c *Cluster) Rolled(ctx context.Context, workload string) error {
	_, err := c.Kubectl(ctx, "-n", "kube-system", "rollout", "status", workload, "--timeout=4m")
	return err
}

// Pod is what tests need to know of a pod.
type Pod struct {
	Name, UID, Node, IP string
	Ready               bool
	Restarts            int
	// Terminated is the reason for which its first container ended the last time.
	Terminated string
	Deleted    bool
}

// Pods lists the pods of a namespace with a label, such as "k8s-app=kube-dns", those that are being
// deleted too.
func (c *Cluster) Pods(ctx context.Context, namespace, label string) ([]Pod, error) {
	var list struct {
		Items []struct {
			Metadata struct {
				Name, UID         string
				DeletionTimestamp *time.Time
			}
			Spec   struct{ NodeName string }
			Status struct {
				PodIP             string
				ContainerStatuses []struct {
					Ready        bool
					RestartCount int
					LastState    struct{ Terminated *struct{ Reason string } }
				}
			}
		}
	}
	path := fmt.Sprintf("/api/v1/namespaces/%s/pods?labelSelector=%s", namespace, strings.ReplaceAll(label, "=", "%3D"))
	if err := c.Get(ctx, path, &list); err != nil {
		return nil, err
	}
	var pods []Pod
	for _, item := range list.Items {
		p := Pod{
			Name: item.Metadata.Name, UID: item.Metadata.UID, Deleted: item.Metadata.DeletionTimestamp != nil,
			Node: item.Spec.NodeName, IP: item.Status.PodIP, Ready: len(item.Status.ContainerStatuses) > 0,
		}
		for _, s := range item.Status.ContainerStatuses {
			p.Ready = p.Ready && s.Ready
			p.Restarts += s.RestartCount
			if s.LastState.Terminated != nil {
				p.Terminated = s.LastState.Terminated.Reason
			}
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// Exec runs a program in the first container of a pod of the namespace default, or of NAMESPACE/POD.
func (c *Cluster) Exec(ctx context.Context, pod string, command ...string) (string, error) {
	namespace := "default"
	if before, after, ok := strings.Cut(pod, "/"); ok {
		namespace, pod = before, after
	}
	return c.Kubectl(ctx, append([]string{"-n", namespace, "exec", pod, "--"}, command...)...)
}

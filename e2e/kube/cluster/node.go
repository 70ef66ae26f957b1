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

	"golang.org/x/sys/unix"
)

// Node is a node of the cluster. Programs that it runs in its Space see what they would see on a machine of
// their own.
type Node struct {
	*Space
	Name string
	// Address is the node's own, which pods with hostNetwork have.
	Address string

	cluster *Cluster
	dir     string
	number  int
}

func nodeName(number int) string    { return fmt.Sprintf("node%d", number) }
func nodeAddress(number int) string { return fmt.Sprintf("10.200.0.%d", 10+number) }
func podSubnet(number int) string   { return fmt.Sprintf("10.244.%d.0/24", number) }

// containerdSocket is in the node's own /run.
const containerdSocket = "/run/containerd/containerd.sock"

// startNode makes a node and starts its programs. It does not wait until the node is ready.
func (c *Cluster) startNode(ctx context.Context, number int) (*Node, error) {
	n := &Node{
		Name: nodeName(number), Address: nodeAddress(number),
		cluster: c, number: number, dir: filepath.Join(c.dir, nodeName(number)),
	}
	if err := makeCgroup(c.name, n.Name); err != nil {
		return nil, err
	}
	var err error
	if n.Space, err = c.World.split(n.Name, n.mounts); err != nil {
		return nil, err
	}
	if err := n.join(ctx); err != nil {
		return n, err
	}
	if err := n.writeConfig(LocalAddress); err != nil {
		return n, err
	}
	if err := c.start(n.Space, n.Name+"-containerd", "containerd", "--config="+n.file("containerd.toml")); err != nil {
		return n, err
	}
	if err := n.load(ctx, c.Images); err != nil {
		return n, err
	}
	if err := c.start(n.Space, n.Name+"-kubelet", c.program("kubelet"), "--config="+n.file("kubelet.yaml"),
		"--kubeconfig="+c.kubeconfig(n.Name), "--hostname-override="+n.Name, "--node-ip="+n.Address,
		"--cert-dir="+n.file("certs"), "--v=2"); err != nil {
		return n, err
	}
	return n, c.start(n.Space, n.Name+"-kube-proxy", c.program("kube-proxy"), "--config="+n.file("kube-proxy.yaml"), "--v=1")
}

func (n *Node) file(name string) string { return filepath.Join(n.dir, name) }

// mounts covers, on the first thread of the node, the folders of the machine into which its programs write.
func (n *Node) mounts() error {
	if err := unix.Sethostname([]byte(n.Name)); err != nil {
		return err
	}
	// The new /sys shows the node's links. Its place for cgroups is empty, so those are put in again.
	cgroups := n.file("cgroups")
	if err := os.MkdirAll(cgroups, 0o755); err != nil {
		return err
	}
	for _, m := range []struct {
		source, target, kind string
		flags                uintptr
	}{
		{cgroupRoot, cgroups, "", unix.MS_BIND | unix.MS_REC},
		{"sysfs", "/sys", "sysfs", 0},
		{cgroups, cgroupRoot, "", unix.MS_BIND | unix.MS_REC},
	} {
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("%s: mount %s: %w", n.Name, m.target, err)
		}
	}
	if err := privateRun(); err != nil {
		return err
	}
	for target, folders := range map[string][]string{
		"/var/lib": {"kubelet", "cni"},
		"/var/log": {"pods", "containers"},
		"/opt":     {"containerd"},
	} {
		source := n.file(strings.ReplaceAll(target[1:], "/", "-"))
		for _, f := range folders {
			if err := os.MkdirAll(filepath.Join(source, f), 0o755); err != nil {
				return err
			}
		}
		if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: cover %s: %w", n.Name, target, err)
		}
	}
	// The kubelet mounts volumes here, which have to show up in containers.
	if err := unix.Mount("", "/var/lib", "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("%s: share /var/lib: %w", n.Name, err)
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
}

// join connects the node with the bridge, and its pods with those of the other nodes.
func (n *Node) join(ctx context.Context) error {
	// The namespace is given to ip(8) as a descriptor, because it has no name and no process.
	port := "to-" + n.Name
	cmd := exec.CommandContext(ctx, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{n.files["net"]}
	var said strings.Builder
	cmd.Stderr = &said
	if err := n.cluster.World.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: its link: %w: %s", n.Name, err, said.String())
	}
	if _, err := n.cluster.World.Run(ctx, "ip", "link", "set", port, "master", "br0", "up"); err != nil {
		return err
	}
	setUp := [][]string{
		{"link", "set", "lo", "up"},
		{"addr", "add", n.Address + "/24", "dev", "eth0"},
		{"link", "set", "eth0", "up"},
		{"route", "add", "default", "via", WorldAddress},
	}
	for i := range nodes {
		if i+1 != n.number {
			setUp = append(setUp, []string{"route", "add", podSubnet(i + 1), "via", nodeAddress(i + 1)})
		}
	}
	for _, args := range setUp {
		if _, err := n.Run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// load waits for containerd and hands it the images.
func (n *Node) load(ctx context.Context, images []string) error {
	wait, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("containerd has not started within 30 s"))
	defer cancel()
	if err := Poll(wait, 100*time.Millisecond, func() error {
		_, err := n.Run(wait, "ctr", "-a", containerdSocket, "version")
		return err
	}); err != nil {
		return err
	}
	for _, image := range images {
		if _, err := n.Run(ctx, "ctr", "-a", containerdSocket, "-n", "k8s.io", "images", "import", image); err != nil {
			return err
		}
	}
	return nil
}

// SetClusterDNS restarts the kubelet with another DNS server for pods that are started from then on.
func (n *Node) SetClusterDNS(ctx context.Context, address string) error {
	if err := n.writeConfig(address); err != nil {
		return err
	}
	n.cluster.mu.Lock()
	kubelet := n.cluster.programs[n.Name+"-kubelet"]
	n.cluster.mu.Unlock()
	if err := kubelet.stop(syscall.SIGTERM); err != nil {
		return err
	}
	if err := kubelet.start(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New("the kubelet has not started within 30 s"))
	defer cancel()
	return Poll(ctx, 200*time.Millisecond, func() error {
		conn, err := n.DialContext(ctx, "tcp", "127.0.0.1:10248")
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// waitNodeReady waits until the API server calls the node ready.
func (c *Cluster) waitNodeReady(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("%s is not ready after 2 minutes", name))
	defer cancel()
	return Poll(ctx, 200*time.Millisecond, func() error {
		var node struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := c.Get(ctx, "/api/v1/nodes/"+name, &node); err != nil {
			return err
		}
		for _, condition := range node.Status.Conditions {
			if condition.Type == "Ready" && condition.Status == "True" {
				return nil
			}
		}
		return fmt.Errorf("%s: %v", name, node.Status.Conditions)
	})
}

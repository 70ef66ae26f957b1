// Package cluster raises a real Kubernetes cluster of several nodes on one Linux machine, as root: etcd,
// API server, controller manager and scheduler in one set of namespaces, and for each node containerd, a
// kubelet and kube-proxy in another, joined by a bridge. It promises two things:
//
//   - what it starts ends with it, and with the process that raised it, however that ends (keeper.go);
//   - nothing of the machine changes but for what is its own: a folder on the disk, and a folder in the cgroup
//     tree, both removed at the end. Sysctls of the whole machine that Kubernetes writes are covered by
//     files.
//
// Pods are cut off from the world. What they find there instead is what a test puts at World.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The address plan. Service addresses are the defaults of kubeadm.
const (
	// WorldAddress is where the nodes' resolv.conf points: the test's own DNS server outside of the cluster.
	WorldAddress = "10.200.0.1"
	// StubAddress is a second address there, for the server of a stub domain.
	StubAddress = "10.200.0.3"
	// KubeDNS is the address of the Service kube-dns.
	KubeDNS = "10.96.0.10"
	// LocalAddress is where pods find their DNS: the kubelets' clusterDNS.
	LocalAddress = "169.254.25.10"

	serviceRange = "10.96.0.0/16"
	podRange     = "10.244.0.0/16"
)

// Options say what to raise.
type Options struct {
	// Kubernetes is the folder of its programs, as kubernetes/build.sh makes it.
	Kubernetes string
	// Dir is an existing folder of the machine for the disks of the nodes; each cluster has one of its own
	// in it. Not on an overlay, unless a slower cluster will do.
	Dir string
	// Logs is a folder for what the programs write. It is made, and stays.
	Logs string
	// Proxy is kube-proxy's mode: iptables or nftables.
	Proxy string
	// Images are archives to load into every node, as of `docker save`. One of them is Pause.
	Images []string
	// Logf shows progress.
	Logf func(format string, args ...any)
}

// Pause is the name of the image of every pod's sandbox.
const Pause = "localhost/pause:1"

// nodes is how many there are: enough for pods of one to ask for pods of the other.
const nodes = 2

// Cluster is a running cluster.
type Cluster struct {
	Options
	World *Space // the control plane's, and the pods' outside world
	Nodes []*Node

	name     string // of its folders
	dir      string
	keeper   *keeper
	api      *client
	mu       sync.Mutex
	programs map[string]*program
}

// Up raises a cluster and returns when its nodes are ready. Missing says beforehand what the machine lacks.
func Up(ctx context.Context, o Options) (*Cluster, error) {
	if err := errors.Join(os.MkdirAll(o.Dir, 0o755), os.MkdirAll(o.Logs, 0o755)); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(o.Dir, "run.")
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		Options: o, dir: dir, name: "localcache-kube-" + filepath.Base(dir),
		programs: make(map[string]*program),
	}
	started := time.Now()
	if err := c.up(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("raise the cluster (its logs are in %s): %w", o.Logs, err), c.Close())
	}
	o.Logf("%d nodes are ready after %.1f s, kube-proxy in %s mode", nodes, time.Since(started).Seconds(), o.Proxy)
	return c, nil
}

func (c *Cluster) up(ctx context.Context) (err error) {
	if c.keeper, err = startKeeper(c.dir, c.name, filepath.Join(c.Logs, "keeper.log")); err != nil {
		return err
	}
	if c.World, err = openSpace("the control plane", fmt.Sprintf("/proc/%d", c.keeper.pid)); err != nil {
		return err
	}
	if err := c.startControlPlane(ctx); err != nil {
		return err
	}
	// The nodes start side by side: most of it is waiting.
	c.Nodes = make([]*Node, nodes)
	errs := make([]error, nodes)
	var group sync.WaitGroup
	for i := range c.Nodes {
		group.Go(func() { c.Nodes[i], errs[i] = c.startNode(ctx, i+1) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := c.waitNodeReady(ctx, n.Name); err != nil {
			return err
		}
	}
	return nil
}

// Close ends the cluster and returns when nothing of it is left but its logs.
func (c *Cluster) Close() error {
	var err error
	if c.keeper != nil {
		err = c.keeper.stop()
	} else {
		err = os.RemoveAll(c.dir)
	}
	for _, p := range c.programs {
		<-p.done
	}
	if c.World != nil {
		err = errors.Join(err, c.World.close())
	}
	for _, n := range c.Nodes {
		if n != nil {
			err = errors.Join(err, n.close())
		}
	}
	return err
}

// Node gives a node by its name.
func (c *Cluster) Node(name string) (*Node, error) {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("there is no node %q", name)
}

// Poll calls f until it returns nil, every interval, and gives up with its last error at the end of ctx.
func Poll(ctx context.Context, interval time.Duration, f func() error) error {
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; last: %w", context.Cause(ctx), err)
		case <-time.After(interval):
		}
	}
}

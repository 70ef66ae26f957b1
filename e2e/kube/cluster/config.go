package cluster

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"

	"golang.org/x/sys/unix"
)

// Pods of a node are behind a pair of links each, routed, without masquerading: a DNS server sees the
// address of the pod.
const cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local", "dataDir": %q,
    "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

// restrict_oom_score_adj is for machines where root may not lower a score.
const containerdConfig = `version = 2
root = %q
state = "/run/containerd"
[grpc]
  address = "` + containerdSocket + `"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + Pause + `"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = %q
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
`

// Whoever reaches the kubelet may do everything: it can only be reached from the cluster, and the API server
// has no certificate for it. Volumes follow their ConfigMaps within seconds instead of a minute.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://` + containerdSocket + `
cgroupDriver: cgroupfs
cgroupRoot: /%s/%s
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
maxOpenFiles: 20000
makeIPTablesUtilChains: false
syncFrequency: 5s
clusterDNS: [%q]
clusterDomain: cluster.local
resolvConf: %q
volumePluginDir: %q
imageGCHighThresholdPercent: 100
evictionHard: {nodefs.available: "0%%", nodefs.inodesFree: "0%%", imagefs.available: "0%%", memory.available: "1Mi"}
`

// The sizes of the conntrack table are settings of the machine; 0 leaves them alone.
const proxyConfig = `apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: %q}
mode: %s
clusterCIDR: ` + podRange + `
hostnameOverride: %s
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// cniFolders are where distributions put the CNI plugins.
var cniFolders = []string{"/usr/lib/cni", "/opt/cni/bin", "/usr/libexec/cni"}

func cniFolder() (string, error) {
	for _, f := range cniFolders {
		if _, err := os.Stat(f + "/ptp"); err == nil {
			return f, nil
		}
	}
	return "", fmt.Errorf("the CNI plugins are in none of %v", cniFolders)
}

// writeConfig writes the configuration of the node's programs.
func (n *Node) writeConfig(clusterDNS string) error {
	plugins, err := cniFolder()
	if err != nil {
		return err
	}
	snapshotter, err := n.snapshotter()
	if err != nil {
		return err
	}
	if err := errors.Join(os.MkdirAll(n.file("cni"), 0o755), os.MkdirAll(n.file("certs"), 0o755)); err != nil {
		return err
	}
	c := n.cluster
	for name, content := range map[string]string{
		"cni/10-pods.conflist": fmt.Sprintf(cniConfig, n.file("ipam"), podSubnet(n.number)),
		"containerd.toml":      fmt.Sprintf(containerdConfig, n.file("containerd"), plugins, n.file("cni"), snapshotter),
		"resolv.conf":          "nameserver " + WorldAddress + "\n",
		"kubelet.yaml":         fmt.Sprintf(kubeletConfig, c.name, n.Name, clusterDNS, n.file("resolv.conf"), n.file("volume-plugins")),
		"kube-proxy.yaml":      fmt.Sprintf(proxyConfig, c.kubeconfig("proxy"), c.Proxy, n.Name),
	} {
		if err := os.WriteFile(n.file(name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// snapshotter is overlayfs where the node's disk can hold an overlay, else native, which copies.
func (n *Node) snapshotter() (string, error) {
	try := n.file("overlay-try")
	var folders [4]string
	for i, f := range []string{"lower", "upper", "work", "merged"} {
		folders[i] = try + "/" + f
		if err := os.MkdirAll(folders[i], 0o755); err != nil {
			return "", err
		}
	}
	kind := "overlayfs"
	err := n.Do(func() error {
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", folders[0], folders[1], folders[2])
		if err := unix.Mount("overlay", folders[3], "overlay", 0, options); err != nil {
			kind = "native"
			return nil
		}
		return unix.Unmount(folders[3], 0)
	})
	return kind, errors.Join(err, os.RemoveAll(try))
}

// programs are what a cluster runs of the machine's, by the Debian packages that have them.
var programs = map[string]string{
	"containerd": "containerd", "ctr": "containerd", "runc": "runc", "ip": "iproute2", "bash": "bash",
	"iptables": "iptables", "nft": "nftables", "conntrack": "conntrack",
}

// Missing says what the machine lacks for a cluster, and of the other programs that its caller needs (Debian
// packages by program), each with what to do; nil where it lacks nothing.
func Missing(others map[string]string) error {
	var errs []error
	if os.Geteuid() != 0 {
		errs = append(errs, errors.New("only root can raise a cluster of namespaces and cgroups: run it as root"))
	}
	all := maps.Clone(programs)
	maps.Copy(all, others)
	for _, program := range slices.Sorted(maps.Keys(all)) {
		if _, err := exec.LookPath(program); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: apt-get install %s", program, all[program]))
		}
	}
	if _, err := cniFolder(); err != nil {
		errs = append(errs, fmt.Errorf("%w: apt-get install containernetworking-plugins", err))
	}
	if _, err := hierarchies(); err != nil {
		errs = append(errs, fmt.Errorf("cgroups: %w", err))
	}
	return errors.Join(errs...)
}

package cluster

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// user is somebody whom the API server knows by a token, which is the user's name: the cluster cannot be
// reached from outside of its namespaces.
type user struct{ file, name, group string }

func users() []user {
	all := []user{
		{"admin", "admin", "system:masters"},
		{"controller-manager", "system:kube-controller-manager", ""},
		{"scheduler", "system:kube-scheduler", ""},
		{"proxy", "system:kube-proxy", ""},
	}
	for i := range nodes {
		all = append(all, user{nodeName(i + 1), "system:node:" + nodeName(i+1), "system:nodes"})
	}
	return all
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: lab, cluster: {server: "https://%s:6443", insecure-skip-tls-verify: true}}]
users: [{name: user, user: {token: %q}}]
contexts: [{name: lab, context: {cluster: lab, user: user}}]
current-context: lab
`

// kubeconfig is the file with which a user of users() reaches the API server.
func (c *Cluster) kubeconfig(u string) string { return filepath.Join(c.dir, u+".kubeconfig") }

// writeCredentials writes the tokens, a kubeconfig for each, and the key of the service accounts.
func (c *Cluster) writeCredentials() error {
	var tokens strings.Builder
	for _, u := range users() {
		fmt.Fprintf(&tokens, "%s,%s,%s,%q\n", u.name, u.name, u.name, u.group)
		if err := os.WriteFile(c.kubeconfig(u.file), fmt.Appendf(nil, kubeconfig, WorldAddress, u.name), 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(c.dir, "tokens.csv"), []byte(tokens.String()), 0o600); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	return os.WriteFile(filepath.Join(c.dir, "accounts.key"), pem.EncodeToMemory(block), 0o600)
}

// startControlPlane makes the network between the nodes and starts the programs that a cluster has once.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	if err := c.writeCredentials(); err != nil {
		return err
	}
	c.api = newClient(c.World)
	setUp := [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "br0", "type", "bridge"},
		{"addr", "add", WorldAddress + "/24", "dev", "br0"},
		{"addr", "add", StubAddress + "/24", "dev", "br0"},
		{"link", "set", "br0", "up"},
	}
	for i := range nodes {
		setUp = append(setUp, []string{"route", "add", podSubnet(i + 1), "via", nodeAddress(i + 1), "dev", "br0", "onlink"})
	}
	for _, args := range setUp {
		if _, err := c.World.Run(ctx, "ip", args...); err != nil {
			return err
		}
	}
	err := c.World.Do(func() error {
		if err := unix.Sethostname([]byte("control-plane")); err != nil {
			return err
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	if err != nil {
		return err
	}

	if err := c.start(c.World, "etcd", c.program("etcd"),
		"--data-dir="+filepath.Join(c.dir, "etcd"), "--log-level=warn", "--unsafe-no-fsync",
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380"); err != nil {
		return err
	}
	key := filepath.Join(c.dir, "accounts.key")
	certs := filepath.Join(c.dir, "certs")
	if err := c.start(c.World, "kube-apiserver", c.program("kube-apiserver"),
		"--etcd-servers=http://127.0.0.1:2379", "--cert-dir="+certs,
		"--advertise-address="+WorldAddress, "--secure-port=6443", "--service-cluster-ip-range="+serviceRange,
		"--token-auth-file="+filepath.Join(c.dir, "tokens.csv"), "--authorization-mode=Node,RBAC",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+key, "--service-account-key-file="+key,
		// Names of Services that start with a digit: alpha in 1.34.
		"--feature-gates=RelaxedServiceNameValidation=true",
		"--allow-privileged=true", "--kubelet-preferred-address-types=InternalIP", "--v=1"); err != nil {
		return err
	}
	if err := c.waitAPI(ctx); err != nil {
		return err
	}
	common := func(user string) []string {
		f := c.kubeconfig(user)
		return []string{
			"--kubeconfig=" + f, "--authentication-kubeconfig=" + f, "--authorization-kubeconfig=" + f,
			"--cert-dir=" + filepath.Join(certs, user), "--leader-elect=false", "--v=1",
		}
	}
	if err := c.start(c.World, "kube-controller-manager", c.program("kube-controller-manager"),
		append(common("controller-manager"), "--service-account-private-key-file="+key,
			"--root-ca-file="+filepath.Join(certs, "apiserver.crt"), "--use-service-account-credentials=true",
			"--flex-volume-plugin-dir="+filepath.Join(c.dir, "volume-plugins"), // it makes the folder
			"--allocate-node-cidrs=false", "--cluster-cidr="+podRange)...); err != nil {
		return err
	}
	return c.start(c.World, "kube-scheduler", c.program("kube-scheduler"), common("scheduler")...)
}

// waitAPI waits until the API server is ready.
func (c *Cluster) waitAPI(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*time.Minute, fmt.Errorf("the API server is not ready after 2 minutes"))
	defer cancel()
	return Poll(ctx, 100*time.Millisecond, func() error {
		_, err := c.api.get(ctx, "/readyz")
		return err
	})
}

// program is the path of one of Kubernetes' programs.
func (c *Cluster) program(name string) string { return filepath.Join(c.Kubernetes, name) }

package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
)

// envKubeBin names a binary that is kube-apiserver and etcd, by the name that it is run under.
const envKubeBin = "LOCALCACHE_KUBE_BIN"

// cluster is etcd and kube-apiserver on ports of 127.0.0.1.
type cluster struct {
	t      *testing.T
	bin    string
	dir    string
	port   string
	etcd   string
	api    *exec.Cmd
	client *http.Client
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	bin := os.Getenv(envKubeBin)
	if bin == "" {
		t.Skipf("%s does not name the multicall Kubernetes binary (make e2e-kube builds it below .cache/kube): the real kube-apiserver is not tried", envKubeBin)
	}
	c := &cluster{t: t, bin: bin, dir: t.TempDir(), port: freePort(t), etcd: "http://127.0.0.1:" + freePort(t)}
	c.client = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the test's own admin, before there is a certificate
	t.Cleanup(c.client.CloseIdleConnections)

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	c.write("sa.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	c.write("tokens.csv", []byte("admin,admin,admin,system:masters\n"))
	peer := "http://127.0.0.1:" + freePort(t)
	c.run("etcd", "--data-dir="+c.path("etcd"), "--listen-client-urls="+c.etcd, "--advertise-client-urls="+c.etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer,
		"--unsafe-no-fsync", "--log-level=error")
	c.startAPI()
	return c
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *cluster) write(name string, content []byte) {
	c.t.Helper()
	if err := os.WriteFile(c.path(name), content, 0o600); err != nil {
		c.t.Fatal(err)
	}
}

// run starts a program of the binary, which ends with the test.
func (c *cluster) run(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	log, err := os.OpenFile(c.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(c.bin, args...)
	cmd.Args[0] = name
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		stop(cmd)
		if c.t.Failed() {
			said, err := os.ReadFile(c.path(name + ".log"))
			c.t.Logf("%s said (%v):\n%s", name, err, said[max(0, len(said)-4000):])
		}
	})
	return cmd
}

func stop(cmd *exec.Cmd) {
	if cmd.ProcessState == nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

func (c *cluster) startAPI() {
	c.t.Helper()
	c.api = c.run("kube-apiserver", "--etcd-servers="+c.etcd, "--cert-dir="+c.path("certs"), "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", "--secure-port="+c.port, "--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file="+c.path("tokens.csv"), "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+c.path("sa.key"), "--service-account-key-file="+c.path("sa.key"),
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--v=0")
	deadline := time.Now().Add(2 * time.Minute)
	for {
		_, err := c.try(http.MethodGet, "/readyz", nil)
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("kube-apiserver is not ready: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// try asks as the administrator.
func (c *cluster) try(method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, "https://127.0.0.1:"+c.port+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer admin")
	req.Header.Set("Content-Type", "application/json")
	switch {
	case method == http.MethodPatch:
		req.Header.Set("Content-Type", "application/merge-patch+json")
	case len(body) > 0 && body[0] != '{':
		req.Header.Set("Content-Type", "application/yaml")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, said)
	}
	return said, err
}

func (c *cluster) do(method, path string, object any) []byte {
	c.t.Helper()
	body, ok := object.([]byte)
	if !ok && object != nil {
		var err error
		if body, err = json.Marshal(object); err != nil {
			c.t.Fatal(err)
		}
	}
	said, err := c.try(method, path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	return said
}

// apply creates the objects in a file of deploy/.
func (c *cluster) apply(collection, file string) {
	c.t.Helper()
	content, err := os.ReadFile(filepath.Join("../../deploy", file))
	if err != nil {
		c.t.Fatal(err)
	}
	c.do(http.MethodPost, collection, content)
}

// token is another token of the service account.
func (c *cluster) token() string {
	c.t.Helper()
	var issued struct{ Status struct{ Token string } }
	said := c.do(http.MethodPost, account+"/nodelocaldns/token", o{"spec": o{"expirationSeconds": 3600}})
	if err := json.Unmarshal(said, &issued); err != nil {
		c.t.Fatal(err)
	}
	return issued.Status.Token
}

const (
	account = "/api/v1/namespaces/kube-system/serviceaccounts"
	rbacIn  = "/apis/rbac.authorization.k8s.io/v1"
	slices1 = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"
)

func (c *cluster) slice(method, name string, addresses ...string) {
	c.t.Helper()
	path := slices1
	if method != http.MethodPost {
		path += "/" + name
	}
	c.do(method, path, kubetest.Slice("kube-system", "kube-dns", name, kubetest.Ready(addresses...)...))
}

// TestAPIServer has the watches ask a real kube-apiserver, as the service account of deploy/ with the rights of
// deploy/ and with fewer.
func TestAPIServer(t *testing.T) {
	c := startCluster(t)
	eventually(t, "the namespace is there", func() error {
		_, err := c.try(http.MethodGet, "/api/v1/namespaces/kube-system", nil)
		return err
	})
	c.do(http.MethodPost, account, o{"metadata": o{"name": "nodelocaldns", "namespace": "kube-system"}})
	c.write("token", []byte(c.token()))
	client := NewClient(Config{Server: "127.0.0.1:" + c.port, TokenFile: c.path("token"), CAFile: c.path("certs/apiserver.crt")})
	client.time.backoff = backoff{first: 20 * time.Millisecond, most: 100 * time.Millisecond, forbidden: 50 * time.Millisecond}
	t.Cleanup(client.Close)
	c.slice(http.MethodPost, "kube-dns-a", "10.0.0.1", "10.0.0.2")

	f := follow(t, client)
	logged := func(text string) {
		t.Helper()
		eventually(t, "it is logged: "+text, func() error {
			if f.log.count(text) == 0 {
				return fmt.Errorf("%q", f.log.all())
			}
			return nil
		})
	}
	logged(`list endpointslices.discovery.k8s.io in namespace kube-system: the API server says 403 Forbidden: endpointslices.discovery.k8s.io is forbidden: User "system:serviceaccount:kube-system:nodelocaldns" cannot list`)
	c.apply(rbacIn+"/namespaces/kube-system/roles", "components/fallback/role.yaml")
	c.apply(rbacIn+"/namespaces/kube-system/rolebindings", "components/fallback/rolebinding.yaml")
	f.want("10.0.0.1", "10.0.0.2")

	changed := time.Now()
	c.slice(http.MethodPut, "kube-dns-a", "10.0.0.3")
	f.want("10.0.0.3")
	t.Logf("a change is known %v after it was asked for", time.Since(changed).Round(time.Millisecond))
	c.slice(http.MethodPost, "kube-dns-6", "fd00::1")
	f.want("10.0.0.3", "fd00::1")
	c.do(http.MethodDelete, slices1+"/kube-dns-6", nil)
	c.slice(http.MethodPut, "kube-dns-a", "10.0.0.4")
	f.want("10.0.0.4", "fd00::1") // of a family that has no endpoint the last stay
	if e, _ := f.w.Endpoints(); !e.Kept {
		t.Error("the endpoint that is gone is not said to be kept")
	}

	// With a right less.
	verbs := func(list ...string) {
		t.Helper()
		c.do(http.MethodPatch, rbacIn+"/namespaces/kube-system/roles/nodelocaldns",
			o{"rules": []o{{"apiGroups": []string{"discovery.k8s.io"}, "resources": []string{"endpointslices"}, "verbs": list}}})
	}
	verbs("list")
	client.mu.Lock()
	transport := client.transport
	client.mu.Unlock()
	stop(c.api) // an allowed watch continues; it must ask again
	transport.CloseIdleConnections()
	f.want("10.0.0.4", "fd00::1")
	c.startAPI()
	logged("cannot watch resource")
	c.slice(http.MethodPut, "kube-dns-a", "10.0.0.5")
	verbs("list", "watch")
	f.want("10.0.0.5", "fd00::1")

	// Away, and back.
	stop(c.api)
	eventually(t, "the watch has ended", func() error {
		if f.w.State().Connected {
			return errors.New("not yet")
		}
		return nil
	})
	f.want("10.0.0.5", "fd00::1")
	c.startAPI()
	c.slice(http.MethodPut, "kube-dns-a", "10.0.0.6")
	f.want("10.0.0.6", "fd00::1")

	t.Run("pods", func(t *testing.T) { podsOf(t, c, client) })
}

package diag

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/freeport"
	"localcache.dev/localcache/internal/kube"
)

// envKubeBin names a binary that is kube-apiserver and etcd, by the name that it is run under (make e2e-kube builds it).
const envKubeBin = "LOCALCACHE_KUBE_BIN"

// apiServer is a real kube-apiserver on 127.0.0.1 and its administrator.
type apiServer struct {
	t         *testing.T
	dir, port string
	admin     *http.Client
}

func startAPIServer(t *testing.T) *apiServer {
	t.Helper()
	bin := os.Getenv(envKubeBin)
	if bin == "" {
		t.Skipf("%s does not name the multicall Kubernetes binary: the real kube-apiserver is not tried", envKubeBin)
	}
	a := &apiServer{t: t, dir: t.TempDir(), port: freeport.Text(t)}
	a.admin = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}} // the test's own
	t.Cleanup(a.admin.CloseIdleConnections)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a.write("sa.key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))
	a.write("tokens.csv", []byte("admin,admin,admin,system:masters\n"))
	run := func(name string, args ...string) {
		log, err := os.Create(filepath.Join(a.dir, name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		cmd := exec.Command(bin, args...)
		cmd.Args[0], cmd.Stdout, cmd.Stderr = name, log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			cmd.Process.Kill()
			cmd.Wait()
			if said, err := os.ReadFile(log.Name()); t.Failed() && err == nil {
				t.Logf("%s said:\n%s", name, said[max(0, len(said)-3000):])
			}
		})
	}
	etcd, peer := "http://127.0.0.1:"+freeport.Text(t), "http://127.0.0.1:"+freeport.Text(t)
	run("etcd", "--data-dir="+filepath.Join(a.dir, "etcd"), "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=default="+peer, "--unsafe-no-fsync", "--log-level=error")
	run("kube-apiserver", "--etcd-servers="+etcd, "--cert-dir="+filepath.Join(a.dir, "certs"), "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", "--secure-port="+a.port, "--service-cluster-ip-range=10.96.0.0/16",
		"--token-auth-file="+filepath.Join(a.dir, "tokens.csv"), "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-signing-key-file="+filepath.Join(a.dir, "sa.key"), "--service-account-key-file="+filepath.Join(a.dir, "sa.key"),
		"--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none", "--v=0")
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if _, err = a.try(http.MethodGet, "/api/v1/namespaces/kube-system", nil); err == nil {
			return a
		}
		if time.Now().After(deadline) {
			t.Fatalf("kube-apiserver is not ready: %v", err)
		}
	}
}

func (a *apiServer) write(name string, content []byte) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (a *apiServer) try(method, path string, object any) ([]byte, error) {
	body, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(method, "https://127.0.0.1:"+a.port+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer admin")
	r.Header.Set("Content-Type", "application/json")
	answer, err := a.admin.Do(r)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	said, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", method, path, answer.Status, said)
	}
	return said, err
}

type object = map[string]any

func (a *apiServer) create(path string, o object) []byte {
	a.t.Helper()
	said, err := a.try(http.MethodPost, path, o)
	if err != nil {
		a.t.Fatal(err)
	}
	return said
}

const accounts = "/api/v1/namespaces/kube-system/serviceaccounts"

// account is a new service account's token.
func (a *apiServer) account(name string) string {
	a.t.Helper()
	a.create(accounts, object{"metadata": object{"name": name, "namespace": "kube-system"}})
	return a.issue(name)
}

func (a *apiServer) issue(name string) string {
	a.t.Helper()
	var issued struct{ Status struct{ Token string } }
	if err := json.Unmarshal(a.create(accounts+"/"+name+"/token", object{"spec": object{"expirationSeconds": 3600}}), &issued); err != nil || issued.Status.Token == "" {
		a.t.Fatalf("no token: %v", err)
	}
	return issued.Status.Token
}

// bind gives a service account a ClusterRole.
func (a *apiServer) bind(account, role string) {
	a.t.Helper()
	a.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", object{"metadata": object{"name": account + "-" + strings.ReplaceAll(role, ":", "-")},
		"roleRef":  object{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
		"subjects": []object{{"kind": "ServiceAccount", "name": account, "namespace": "kube-system"}}})
}

// TestAccessAPIServer: with the rules of a real cluster, as doc/diag.md has them.
func TestAccessAPIServer(t *testing.T) {
	a := startAPIServer(t)
	config := kube.Config{Server: "127.0.0.1:" + a.port, TokenFile: a.write("token", []byte(a.account("nodelocaldns"))), CAFile: filepath.Join(a.dir, "certs/apiserver.crt")}
	before := whole().cluster
	whole().cluster = func() (kube.Config, error) { return config, nil }
	t.Cleanup(func() { whole().cluster = before })
	port := freeport.Text(t)
	serve(t, "diag {\nlisten 127.0.0.1:"+port+"\naccess kubernetes\n}\ntestanswer")
	client := &http.Client{Timeout: 20 * time.Second}
	ask := func(path, token string) (int, string) {
		t.Helper()
		return body(t, client, "http://127.0.0.1:"+port+path, token)
	}
	dashboard := a.account("dashboard")

	if code, text := ask("/api/v1/summary", dashboard); code != 503 || !strings.Contains(text, "system:auth-delegator") {
		t.Fatalf("without the right to ask: %d, %s", code, text)
	}
	a.bind("nodelocaldns", "system:auth-delegator")
	eventually(t, "the token is reviewed, and lacks the role", func() bool {
		code, text := ask("/api/v1/summary", dashboard)
		return code == 403 && strings.Contains(text, "system:serviceaccount:kube-system:dashboard") && strings.Contains(text, `resources [\"aggregates\"]`)
	})
	for _, role := range []string{"aggregates", "names"} {
		a.create("/apis/rbac.authorization.k8s.io/v1/clusterroles", object{"metadata": object{"name": "localcache-" + role},
			"rules": []object{{"apiGroups": []string{"diag.localcache.dev"}, "resources": []string{role}, "verbs": []string{"get"}}}})
	}
	a.bind("dashboard", "localcache-aggregates")
	eventually(t, "the role is given", func() bool {
		code, _ := ask("/api/v1/summary", dashboard)
		return code == 200
	})
	if code, text := ask("/api/v1/queries", dashboard); code != 403 || !strings.Contains(text, `a ClusterRole with apiGroups [\"diag.localcache.dev\"], resources [\"names\"], verbs [\"get\"]`) {
		t.Errorf("queries: %d, %s", code, text)
	}
	if code, _ := ask("/api/v1/summary", "eyJhbGciOiJSUzI1NiJ9.made-up.token"); code != 401 {
		t.Errorf("an unknown token: %d", code)
	}
	// A new token of the same account, as the kubelet gives to pods again and again.
	if code, text := ask("/api/v1/summary", a.issue("dashboard")); code != 200 {
		t.Errorf("the next token: %d, %s", code, text)
	}
	a.bind("dashboard", "localcache-names")
	eventually(t, "the other role is given", func() bool {
		code, _ := ask("/api/v1/queries", dashboard)
		return code == 200
	})
	// Our own token is replaced: the next review has the new one.
	a.write("token", []byte("no longer accepted"))
	if code, text := ask("/api/v1/summary", a.issue("dashboard")); code != 503 {
		t.Errorf("with a token of our own that is not accepted: %d, %s", code, text)
	}
	a.write("token", []byte(a.issue("nodelocaldns")))
	eventually(t, "our own token is read again", func() bool {
		code, _ := ask("/api/v1/summary", a.issue("dashboard"))
		return code == 200
	})
	// An account that is gone takes its tokens along, as soon as what is remembered is too old.
	if _, err := a.try(http.MethodDelete, accounts+"/dashboard", nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token is nobody's", func() bool {
		code, _ := ask("/api/v1/summary", dashboard)
		return code == 401
	})
}

package diag

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/freeport"
	"localcache.dev/localcache/internal/kube"
	"localcache.dev/localcache/internal/kube/kubetest"
)

// authorities plays the API server's part in who may ask.
type authorities struct {
	mu      sync.Mutex
	roles   map[string]string // token → resources that it may get
	missing bool              // our right to ask
	asked   int
}

func (a *authorities) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

func (a *authorities) serve(w http.ResponseWriter, r *http.Request) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	var in struct {
		Kind string
		Spec struct {
			Token, User        string
			ResourceAttributes struct{ Verb, Group, Resource string }
		}
	}
	if json.NewDecoder(r.Body).Decode(&in) != nil {
		return false
	}
	a.asked++
	if a.missing {
		kubetest.Status(w, http.StatusForbidden, "Forbidden", "tokenreviews.authentication.k8s.io is forbidden")
		return true
	}
	w.WriteHeader(http.StatusCreated)
	_, known := a.roles[in.Spec.Token]
	attributes := in.Spec.ResourceAttributes
	fmt.Fprintf(w, `{"kind":%q,"status":{"authenticated":%v,"user":{"username":%q},"allowed":%v}}`, in.Kind, known, in.Spec.Token,
		attributes.Verb == "get" && attributes.Group == "diag.localcache.dev" && strings.Contains(a.roles[in.Spec.User], attributes.Resource))
	return true
}

// inCluster makes the Plugin of these tests believe that it runs in a pod whose API server s is.
func inCluster(t *testing.T, s *kubetest.Server) {
	t.Helper()
	token, ca, err := s.Mount(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	config := kube.Config{Server: s.Address, TokenFile: token, CAFile: ca}
	before := whole().cluster
	whole().cluster = func() (kube.Config, error) { return config, nil }
	t.Cleanup(func() { whole().cluster = before })
}

// TestAccessKubernetes: who asks over TCP gets what the API server's rules let them have.
func TestAccessKubernetes(t *testing.T) {
	api := kubetest.New(nil, "the cache's own")
	t.Cleanup(api.Close)
	inCluster(t, api)
	const reader, admin = "token-of-a-dashboard", "token-of-an-administrator"
	rules := &authorities{roles: map[string]string{reader: "aggregates", admin: "aggregates names"}, missing: true}
	api.SetFault(rules.serve)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	port := freeport.Text(t)
	inst, dns := serveOnly(t, "diag {\nlisten 127.0.0.1:"+port+"\naccess kubernetes\n}\ntestanswer")
	url := "http://127.0.0.1:" + port

	if code, text := body(t, client, url+"/api/v1/summary", reader); code != 503 || !strings.Contains(text, "system:auth-delegator") {
		t.Errorf("without the right to ask: %d, %s", code, text)
	}
	rules.set(func() { rules.missing = false })
	eventually(t, "the right is there", func() bool {
		code, _ := body(t, client, url+"/api/v1/summary", reader)
		return code == 200
	})
	for _, tt := range []struct {
		path, token string
		want        int
		text        string
	}{
		{"/api/v1/summary", admin, 200, ""}, {"/api/v1/upstreams", reader, 200, ""}, {"/api/v1/events", reader, 200, ""}, {"/statusz", reader, 200, ""}, {"/openapi.json", reader, 200, ""},
		{"/api/v1/queries", admin, 200, ""}, {"/api/v1/queries", reader, 403, `resources [\"names\"], verbs [\"get\"]`},
		{"/api/v1/pods", reader, 403, "names"}, {"/api/v1/pods/a/b", reader, 403, "names"}, {"/api/v1/pods/10.0.0.1", reader, 403, "names"}, {"/api/v1/top", reader, 403, "names"},
		{"/nothing", reader, 404, ""}, {"/nothing", "", 401, "Bearer"},
		{"/api/v1/summary", "", 401, "Bearer"}, {"/api/v1/summary", "token-that-nobody-knows", 401, "does not accept"},
	} {
		code, text := body(t, client, url+tt.path, tt.token)
		if code != tt.want || !strings.Contains(text, tt.text) {
			t.Errorf("%s by %q: %d, want %d with %q: %s", tt.path, tt.token, code, tt.want, tt.text, text)
		}
		if tt.token != "" && code == 401 && strings.Contains(text, tt.token) {
			t.Errorf("the token is in %s", text)
		}
	}
	rules.set(func() { rules.asked = 0 })
	for range 5 {
		body(t, client, url+"/api/v1/summary", admin)
	}
	rules.set(func() {
		if rules.asked != 0 {
			t.Errorf("%d reviews of what is known", rules.asked)
		}
	})
	api.Close()
	if code, text := body(t, client, url+"/api/v1/summary", "another-token-which-is-long"); code != 503 || !strings.Contains(text, "NoReview") {
		t.Errorf("without an API server: %d, %s", code, text)
	}
	if restarted, err := inst.Restart(input(dns, "diag {\nlisten 127.0.0.1:"+port+"\naccess open\n}\ntestanswer")); err != nil {
		t.Error(err)
	} else {
		inst = restarted
	}
	if code, text := body(t, client, url+"/api/v1/summary", ""); code != 200 {
		t.Errorf("opened by a reload: %d, %s", code, text)
	}
	if whole().reviews != nil {
		t.Error("nobody needs the API server any more")
	}
	stop(t, inst)
}

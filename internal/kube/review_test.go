package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
)

// reviewing makes s answer reviews: the token good belongs to a user who may read aggregates.
func reviewing(t *testing.T, s *kubetest.Server) {
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "Bearer secret" {
			return false
		}
		var in struct {
			APIVersion, Kind string
			Spec             struct {
				Token              string
				User, UID          string
				Groups             []string
				Extra              map[string][]string
				ResourceAttributes struct{ Verb, Group, Version, Resource string }
			}
		}
		body, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(body, &in) != nil || r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: %s, %v", r.Method, r.URL, body, err)
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		switch r.URL.Path {
		case "/apis/authentication.k8s.io/v1/tokenreviews":
			if in.APIVersion != "authentication.k8s.io/v1" || in.Kind != "TokenReview" {
				t.Errorf("got %s", body)
			}
			if in.Spec.Token != "good" {
				fmt.Fprint(w, `{"kind":"TokenReview","status":{"user":{},"error":"invalid bearer token"}}`)
				return true
			}
			fmt.Fprint(w, `{"kind":"TokenReview","status":{"authenticated":true,"user":{"username":"amy","uid":"7","groups":["g","system:authenticated"],"extra":{"k":["v"]}}}}`)
		case "/apis/authorization.k8s.io/v1/subjectaccessreviews":
			sp := in.Spec
			if sp.User != "amy" || sp.UID != "7" || fmt.Sprint(sp.Groups) != "[g system:authenticated]" || fmt.Sprint(sp.Extra) != "map[k:[v]]" || sp.ResourceAttributes.Group != "diag.localcache.dev" {
				t.Errorf("got %s", body)
			}
			fmt.Fprintf(w, `{"kind":"SubjectAccessReview","status":{"allowed":%v}}`, sp.ResourceAttributes.Resource == "aggregates" && sp.ResourceAttributes.Verb == "get")
		default:
			t.Errorf("asked for %s", r.URL)
		}
		return true
	})
}

// TestReview checks that the rights are asked for the user that the API server named.
func TestReview(t *testing.T) {
	s := newServer(t)
	c := clientOf(t, s)
	reviewing(t, s)
	user, known, err := c.ReviewToken(t.Context(), "good")
	if err != nil || !known || user.Name != "amy" {
		t.Fatalf("got %+v, %v, %v", user, known, err)
	}
	for resource, want := range map[string]bool{"aggregates": true, "names": false} {
		if got, err := c.ReviewAccess(t.Context(), &user, Attributes{"get", "diag.localcache.dev", "v1", resource}); err != nil || got != want {
			t.Errorf("%s: %v, %v", resource, got, err)
		}
	}
	before := len(s.Requests())
	for token, asked := range map[string]int{"bad": 1, "": 0, strings.Repeat("x", maxToken+1): 0} {
		if _, known, err := c.ReviewToken(t.Context(), token); known || err != nil {
			t.Errorf("%.9s: known %v, %v", token, known, err)
		}
		if n := len(s.Requests()) - before; n != asked {
			t.Errorf("%.9s: %d requests", token, n)
		}
		before = len(s.Requests())
	}
}

// TestReviewFaults checks that under every fault of the API server no user is known and nothing is allowed, and that
// no error contains the token.
func TestReviewFaults(t *testing.T) {
	s := newServer(t)
	c := clientOf(t, s)
	say := func(code int, body string) kubetest.Fault {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			_, _ = io.WriteString(w, body)
			return true
		}
	}
	const yes = `"status":{"allowed":true,"authenticated":true,"user":{"username":"amy"}}}`
	for name, tt := range map[string]struct {
		fault kubetest.Fault
		want  string
	}{
		"no right": {func(w http.ResponseWriter, _ *http.Request) bool {
			kubetest.Status(w, 403, "Forbidden", "cannot create resource")
			return true
		}, "ClusterRole system:auth-delegator"},
		"our token": {func(w http.ResponseWriter, _ *http.Request) bool {
			kubetest.Status(w, 401, "Unauthorized", "Unauthorized")
			return true
		}, "the token of the pod's service account"},
		"500":        {say(500, ""), "500"},
		"301":        {say(301, `{"kind":"TokenReview",`+yes), "301"},
		"202":        {say(202, `{"kind":"TokenReview",`+yes), "202"},
		"empty":      {say(201, ""), "is no"},
		"other kind": {say(201, `{"kind":"Status",`+yes), "is no"},
		"too large":  {say(201, `{"kind":"TokenReview","x":"`+strings.Repeat("x", maxReview)+`",`+yes), "more than"},
		"half":       {say(201, `{"kind":"SubjectAccessReview",`+yes[:20]), "is no"},
		"reset":      {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, "create"},
		"no answer":  {func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, "create"},
		"half a body": {func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "500")
			return say(201, `{`)(w, r)
		}, "create"},
	} {
		s.SetFault(tt.fault)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		user, known, err := c.ReviewToken(ctx, "a-bearers-token")
		if known || user.Name != "" || err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "a-bearers-token") {
			t.Errorf("%s: %+v, %v, %v; want an error with %q", name, user, known, err, tt.want)
		}
		if allowed, err := c.ReviewAccess(ctx, &User{Name: "amy"}, Attributes{}); allowed || err == nil {
			t.Errorf("%s: allowed %v, %v", name, allowed, err)
		}
		if (tt.want == "ClusterRole system:auth-delegator") != errors.Is(err, ErrNoReviews) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	s.SetFault(say(201, `{"kind":"TokenReview","status":{"authenticated":true,"user":{}}}`))
	if _, known, err := c.ReviewToken(t.Context(), "x"); known || err != nil {
		t.Errorf("somebody without a name is known: %v", err)
	}
	s.SetFault(say(201, `{"kind":"SubjectAccessReview","status":{"allowed":true,"denied":true}}`))
	if allowed, err := c.ReviewAccess(t.Context(), &User{Name: "amy"}, Attributes{}); allowed || err != nil {
		t.Errorf("what is denied is allowed: %v", err)
	}
	s.Close()
	if _, known, err := c.ReviewToken(t.Context(), "x"); known || err == nil {
		t.Errorf("without an API server: %v, %v", known, err)
	}
}

// TestReviewRotation: our own token is read anew for each review.
func TestReviewRotation(t *testing.T) {
	s := newServer(t)
	c := clientOf(t, s)
	if err := os.WriteFile(c.cfg.TokenFile, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	reviewing(t, s)
	if _, _, err := c.ReviewToken(t.Context(), "good"); err == nil {
		t.Fatal("the server accepts any token")
	}
	if err := os.WriteFile(c.cfg.TokenFile, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, known, err := c.ReviewToken(t.Context(), "good"); !known || err != nil {
		t.Errorf("%v, %v", known, err)
	}
	if err := c.cfg.Check(); err != nil {
		t.Error(err)
	}
	if err := os.Remove(c.cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	var missing *os.PathError
	if err := c.cfg.Check(); !errors.As(err, &missing) || !strings.Contains(err.Error(), "automountServiceAccountToken") {
		t.Errorf("got %v", err)
	}
	if _, _, err := c.ReviewToken(t.Context(), "good"); !errors.As(err, &missing) {
		t.Errorf("got %v", err)
	}
}

// FuzzReviews checks that only an explicit word makes a user known or a request allowed.
func FuzzReviews(f *testing.F) {
	f.Add([]byte(`{"kind":"TokenReview","status":{"authenticated":true,"user":{"username":"amy","groups":["g"],"extra":{"k":["v"]}}}}`))
	f.Add([]byte(`{"kind":"SubjectAccessReview","status":{"allowed":true,"denied":false}}`))
	f.Add([]byte(`{"kind":"TokenReview","status":null}`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		user, known, err := decodeTokenReview(data)
		allowed, accessErr := decodeAccessReview(data)
		if known && (err != nil || user.Name == "") || !known && user.Name != "" || allowed && accessErr != nil || known && allowed {
			t.Fatalf("%+v, %v, %v; %v, %v", user, known, err, allowed, accessErr)
		}
		lower := strings.ToLower(string(data))
		if (known || allowed) && !strings.Contains(lower, "true") {
			t.Fatal("nothing in it is true")
		}
	})
}

// TestReviewAPIServer has a real kube-apiserver review the tokens of its service accounts.
func TestReviewAPIServer(t *testing.T) {
	c := startCluster(t)
	eventually(t, "the namespace is there", func() error {
		_, err := c.try(http.MethodGet, "/api/v1/namespaces/kube-system", nil)
		return err
	})
	const accounts = "/api/v1/namespaces/kube-system/serviceaccounts"
	account := func(name string) (token string) {
		c.do(http.MethodPost, accounts, o{"metadata": o{"name": name, "namespace": "kube-system"}})
		return c.issue(name, o{"expirationSeconds": 3600})
	}
	c.write("token", []byte(account("localcache")))
	client := NewClient(Config{Server: "127.0.0.1:" + c.port, TokenFile: c.path("token"), CAFile: c.path("certs/apiserver.crt")})
	t.Cleanup(client.Close)
	dashboard := account("dashboard")

	_, _, err := client.ReviewToken(t.Context(), dashboard)
	if !errors.Is(err, ErrNoReviews) || !strings.Contains(err.Error(), "system:auth-delegator") || strings.Contains(err.Error(), dashboard) {
		t.Fatalf("without the right: %v", err)
	}
	c.do(http.MethodPost, rbacIn+"/clusterrolebindings", o{"metadata": o{"name": "localcache-reviews"},
		"roleRef":  o{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:auth-delegator"},
		"subjects": []o{{"kind": "ServiceAccount", "name": "localcache", "namespace": "kube-system"}}})
	var user User
	eventually(t, "the right is there", func() (err error) {
		var known bool
		if user, known, err = client.ReviewToken(t.Context(), dashboard); err == nil && !known {
			t.Fatal("the token is nobody's")
		}
		return err
	})
	if user.Name != "system:serviceaccount:kube-system:dashboard" || user.UID == "" {
		t.Errorf("got %+v", user)
	}
	for name, token := range map[string]string{
		"made up": "not-a-token", "changed": dashboard[:len(dashboard)-5] + "AAAAA",
		"other audience": c.issue("dashboard", o{"audiences": []string{"somebody-else"}}),
	} {
		if _, known, err := client.ReviewToken(t.Context(), token); known || err != nil {
			t.Errorf("%s: %v, %v", name, known, err)
		}
	}

	c.do(http.MethodPost, rbacIn+"/clusterroles", o{"metadata": o{"name": "localcache-aggregates"},
		"rules": []o{{"apiGroups": []string{"diag.localcache.dev"}, "resources": []string{"aggregates"}, "verbs": []string{"get"}}}})
	c.do(http.MethodPost, rbacIn+"/clusterrolebindings", o{"metadata": o{"name": "dashboard"},
		"roleRef":  o{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "localcache-aggregates"},
		"subjects": []o{{"kind": "ServiceAccount", "name": "dashboard", "namespace": "kube-system"}}})
	may := func(a Attributes) bool {
		t.Helper()
		ok, err := client.ReviewAccess(t.Context(), &user, a)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	eventually(t, "the role is in force", func() error {
		if !may(Attributes{"get", "diag.localcache.dev", "v1alpha1", "aggregates"}) {
			return errors.New("not yet")
		}
		return nil
	})
	for _, a := range []Attributes{{"get", "diag.localcache.dev", "v1alpha1", "names"}, {"create", "diag.localcache.dev", "v1alpha1", "actions"}, {"create", "diag.localcache.dev", "v1alpha1", "aggregates"}, {"get", "", "v1", "pods"}} {
		if may(a) {
			t.Errorf("%+v is allowed", a)
		}
	}
	// A deleted account invalidates its tokens.
	c.do(http.MethodDelete, accounts+"/dashboard", nil)
	eventually(t, "the token is nobody's", func() error {
		if _, known, err := client.ReviewToken(t.Context(), dashboard); known || err != nil {
			return fmt.Errorf("%v, %w", known, err)
		}
		return nil
	})
}

// issue creates a token of a service account.
func (c *cluster) issue(name string, spec o) string {
	c.t.Helper()
	var issued struct{ Status struct{ Token string } }
	if err := json.Unmarshal(c.do(http.MethodPost, "/api/v1/namespaces/kube-system/serviceaccounts/"+name+"/token", o{"spec": spec}), &issued); err != nil || issued.Status.Token == "" {
		c.t.Fatalf("%v: no token", err)
	}
	return issued.Status.Token
}

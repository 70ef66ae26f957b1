package api

import (
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// TestPageFiles checks that each file is served to everybody with its type, a policy that allows nothing from
// elsewhere, and a tag, and that the program contains no other file.
func TestPageFiles(t *testing.T) {
	denied := &denying{}
	h := world(t, directory()).Handler(denied)
	ask := func(path string, header ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(http.MethodGet, "http://localhost"+path, nil)
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w
	}
	served := map[string]bool{}
	total := 0
	for _, f := range pageFiles {
		path := strings.TrimSuffix(f.pattern, "{$}")
		w := ask(path)
		served[f.name] = true
		total += w.Body.Len()
		header := w.Header()
		policy := header.Get("Content-Security-Policy")
		if w.Code != 200 || header.Get("Content-Type") != f.kind || w.Body.Len() == 0 {
			t.Errorf("%s: status %d, %q, %d bytes", path, w.Code, header.Get("Content-Type"), w.Body.Len())
		}
		for _, want := range []string{
			"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:",
			"base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'",
		} {
			if !strings.Contains(policy, want) {
				t.Errorf("%s: policy %q lacks %q", path, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe") || header.Get("X-Content-Type-Options") != "nosniff" || header.Get("Referrer-Policy") != "no-referrer" || header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: headers %v", path, header)
		}
		tag := header.Get("ETag")
		for match, want := range map[string]int{tag: 304, "W/" + tag: 304, `"x", ` + tag: 304, "*": 304, `"x"`: 200, "": 200} {
			if w := ask(path, "If-None-Match", match); w.Code != want || (want == 304) != (w.Body.Len() == 0) || w.Header().Get("ETag") != tag {
				t.Errorf("%s with %q: status %d, %d bytes", path, match, w.Code, w.Body.Len())
			}
		}
		if w := ask(path, "Origin", "http://evil.example"); w.Code != 403 {
			t.Errorf("%s for another site: status %d", path, w.Code)
		}
	}
	if total > 60<<10 {
		t.Errorf("the page has %d bytes", total)
	}
	files, err := fs.ReadDir(pageFS, "page")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !served[f.Name()] {
			t.Errorf("page/%s is in the program and not served", f.Name())
		}
	}
	for path, want := range map[string]int{"/index.html": 403, "/page/app.js": 403, "/x": 403} { // unknown clients do not learn which paths exist
		if w := ask(path); w.Code != want {
			t.Errorf("%s: status %d, want %d", path, w.Code, want)
		}
	}
	if len(denied.asked[RolePublic]) == 0 {
		t.Error("the files are given without asking for RolePublic")
	}
}

// TestPageText checks that nothing in the page refers to other sites, or turns text into markup.
func TestPageText(t *testing.T) {
	elsewhere := regexp.MustCompile(`(?i)(https?:)?//[a-z0-9.-]+\.[a-z]+`)
	markup := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|srcdoc|setHTML|createContextualFragment|javascript:`)
	inline := regexp.MustCompile(`(?i)<script>|<style|\son[a-z]+=|style="`)
	for _, f := range pageFiles {
		text := string(f.body)
		for _, found := range elsewhere.FindAllString(text, -1) {
			if found != "http://www.w3.org" { // the namespace of SVG, which is never loaded
				t.Errorf("%s: %s", f.name, found)
			}
		}
		if found := markup.FindString(text); found != "" {
			t.Errorf("%s: %s", f.name, found)
		}
		if found := inline.FindString(text); found != "" && f.name == "index.html" {
			t.Errorf("%s: %s, which the policy forbids", f.name, found)
		}
	}
}

// denying is an Access that grants some roles only, and records the requested ones.
type denying struct {
	roles []Role
	asked map[Role][]string
}

func (d *denying) String() string { return "for a test" }

func (d *denying) check(r *http.Request, role Role) *Error {
	if d.asked == nil {
		d.asked = map[Role][]string{}
	}
	d.asked[role] = append(d.asked[role], r.URL.Path)
	if role == RolePublic {
		return nil
	}
	for _, has := range d.roles {
		if has == role {
			return nil
		}
	}
	return &Error{Code: http.StatusForbidden, Reason: "Forbidden", Message: "role " + role.String() + " is missing", Hint: "ask an administrator"}
}

// TestOverviewRoles checks that a client with the role for aggregates only gets these, is told what is hidden, and
// gets no name of a client or domain.
func TestOverviewRoles(t *testing.T) {
	s := world(t, directory())
	ask := func(roles ...Role) (int, string) {
		w := httptest.NewRecorder()
		s.Handler(&denying{roles: roles}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost"+overviewPath+"?window=start", nil))
		body, err := io.ReadAll(w.Body)
		if err != nil {
			t.Fatal(err)
		}
		return w.Code, string(body)
	}
	secrets := []string{"shop", "web-", "cluster.local", podAddr(1).String(), podAddr(3).String(), "Deployment"}
	code, all := ask(RoleAggregates, RoleNames)
	for _, want := range append(secrets, `"192.0.2.53:53"`, "nothing came within 2s") {
		if !strings.Contains(all, want) && want != podAddr(3).String() { // that one is the host
			t.Errorf("%q is not in %s", want, all)
		}
	}
	if code != 200 || strings.Contains(all, `"hidden"`) {
		t.Errorf("status %d: %s", code, all)
	}
	code, part := ask(RoleAggregates)
	if code != 200 || !strings.Contains(part, `"hidden":"role names is missing"`) || !strings.Contains(part, `"queries":30`) || !strings.Contains(part, "nothing came within 2s") {
		t.Errorf("status %d: %s", code, part)
	}
	for _, secret := range secrets {
		if strings.Contains(part, secret) {
			t.Errorf("%q is told to those who may not know: %s", secret, part)
		}
	}
	if code, _ := ask(RoleNames); code != 403 {
		t.Errorf("status %d without aggregates", code)
	}
	if code, _ := ask(); code != 403 {
		t.Errorf("status %d without a role", code)
	}
}

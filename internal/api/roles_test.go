package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// only is Access for those roles.
type only []Role

func (o only) check(_ *http.Request, role Role) *Error {
	if slices.Contains(o, role) {
		return nil
	}
	return &Error{Code: http.StatusForbidden, Reason: "Forbidden", Message: role.String(), Hint: "-"}
}
func (only) String() string { return "only" }

// TestRoles: which role an endpoint needs is an interface. Nothing that names a client or a name is in the reach of aggregates.
func TestRoles(t *testing.T) {
	s := world(t, directory())
	var got []string
	for _, e := range all() {
		if e.role != RoleAggregates && e.role != RoleNames {
			t.Errorf("%s needs role %v", e.path, e.role)
		}
		got = append(got, e.path+" "+e.role.String())
		path := strings.NewReplacer("{namespace}", "shop", "{name}", "web-1", "{client}", "host").Replace(e.path)
		for role, want := range map[Role]int{RoleAggregates: 403, RoleNames: 403, RoleActions: 403, RolePublic: 403} {
			if role == e.role {
				want = 200
			}
			w := httptest.NewRecorder()
			r := httptest.NewRequest(http.MethodGet, path, nil)
			r.Host = "127.0.0.1"
			s.Handler(only{role}).ServeHTTP(w, r)
			if w.Code != want {
				t.Errorf("%s with role %v: %d, want %d", path, role, w.Code, want)
			}
			body := w.Body.String()
			if role == RoleAggregates && (strings.Contains(body, "cluster.local") || strings.Contains(body, "shop") || strings.Contains(body, "10.244.0.")) {
				t.Errorf("%s tells aggregates too much: %s", path, body)
			}
		}
	}
	const want = `/api/v1/summary aggregates
/api/v1/upstreams aggregates
/api/v1/pods names
/api/v1/pods/{namespace}/{name} names
/api/v1/pods/{client} names
/api/v1/top names
/api/v1/queries names
/api/v1/events aggregates
/statusz aggregates
/openapi.json aggregates`
	if strings.Join(got, "\n") != want {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodGet, "/nothing", nil)
	r.Host = "127.0.0.1"
	if s.Handler(only{RoleNames}).ServeHTTP(w, r); w.Code != 403 {
		t.Errorf("a path that is not there: %d, want 403", w.Code)
	}
	for role := range numRoles {
		if name := Role(role).String(); name == "" || strings.Contains(name, "(") {
			t.Errorf("role %d has no name", role)
		}
	}
	if fmt.Sprint(Role(9)) != "role(9)" {
		t.Error(Role(9))
	}
}

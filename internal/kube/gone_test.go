package kube

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"localcache.dev/localcache/internal/kube/kubetest"
)

// A token that was replaced is read anew, and so is the certificate authority of a server that has another.
func TestRotation(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-a", "10.0.0.1")
	c := clientOf(t, s)
	s.SetToken("next")
	f := follow(t, c)
	eventually(t, "the old token is refused", func() error {
		if f.log.count("401 Unauthorized: Unauthorized; the token of the pod's service account") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := os.WriteFile(c.cfg.TokenFile, []byte("next"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.want("10.0.0.1")

	// A server with another certificate: httptest has one for all, so that another authority must do first.
	if err := os.WriteFile(c.cfg.CAFile, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Reset()
	eventually(t, "the file is read anew", func() error {
		if f.log.count("holds no certificate (automountServiceAccountToken: true") == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := os.WriteFile(c.cfg.CAFile, s.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	setSlice(s, "kube-dns-a", "10.0.0.2")
	f.want("10.0.0.2")

	if err := os.Remove(c.cfg.TokenFile); err != nil {
		t.Fatal(err)
	}
	s.Reset()
	eventually(t, "the missing token is named", func() error {
		if !strings.Contains(f.w.State().LastError, c.cfg.TokenFile) {
			return fmt.Errorf("state %+v", f.w.State())
		}
		return nil
	})
	f.want("10.0.0.2")
}

// A denied right needs a person: the log names it once, and the server is asked rarely.
func TestForbidden(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-a", "10.0.0.1")
	for _, verb := range []string{"list", "watch"} {
		s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			if (r.URL.Query().Get("watch") != "") != (verb == "watch") {
				return false
			}
			kubetest.Status(w, http.StatusForbidden, "Forbidden", `User "system:serviceaccount:kube-system:nodelocaldns" cannot `+verb)
			return true
		})
		f := follow(t, clientOf(t, s))
		eventually(t, "it is tried again", func() error {
			if st := f.w.State(); st.Failures < 3 {
				return fmt.Errorf("%d failures", st.Failures)
			}
			return nil
		})
		want := verb + " endpointslices.discovery.k8s.io in namespace kube-system: the API server says 403 Forbidden: User"
		rights := `a Role and a RoleBinding in namespace kube-system must allow the pod's service account verbs [list, watch] on resources [endpointslices] of apiGroups ["discovery.k8s.io"]`
		if f.log.count(want) != 1 || f.log.count(rights) != 1 {
			t.Errorf("%s: log %q", verb, f.log.all())
		}
	}
}

// A server that was killed, was away, and came back, and a server that is frozen: known records stay.
func TestGone(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-a", "10.0.0.1")
	p := newProxy(t, s.Address)
	c := clientOf(t, s)
	c.cfg.Server = p.address()
	f := follow(t, c)
	f.want("10.0.0.1")
	connected := func(want bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("connected is %t", want), func() error {
			if st := f.w.State(); st.Connected != want {
				return fmt.Errorf("state %+v", st)
			}
			return nil
		})
	}
	p.close()
	connected(false)
	setSlice(s, "kube-dns-a", "10.0.0.2")
	f.want("10.0.0.1")
	p.open()
	f.want("10.0.0.2")

	connected(true)
	p.freeze(true) // connections stay open, but no data passes
	connected(false)
	setSlice(s, "kube-dns-a", "10.0.0.3")
	f.want("10.0.0.2")
	p.freeze(false)
	f.want("10.0.0.3")
}

// A flood of changes ends in the right state.
func TestFlood(t *testing.T) {
	s := newServer(t)
	f := follow(t, clientOf(t, s))
	for i := range 500 {
		setSlice(s, fmt.Sprintf("kube-dns-%d", i%10), fmt.Sprintf("10.0.%d.%d", i%10, i/10))
	}
	f.want("10.0.0.49", "10.0.1.49", "10.0.2.49", "10.0.3.49", "10.0.4.49", "10.0.5.49", "10.0.6.49", "10.0.7.49", "10.0.8.49", "10.0.9.49")
	if len(f.w.Changed()) != 1 {
		t.Error("many changes are not one value")
	}
}

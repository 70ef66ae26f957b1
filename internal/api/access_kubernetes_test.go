package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rules is a fake of the API server, with the test's clock.
type rules struct {
	mu      sync.Mutex
	now     time.Time
	allowed map[string]string // token → roles, as "aggregates names"
	err     error
	asked   int

	hold, held chan struct{} // if set, each review reports that it is held and waits
	most       atomic.Int32
	running    atomic.Int32
}

func (r *rules) review(ctx context.Context, token string, role Role) (Verdict, string, error) {
	r.most.Store(max(r.most.Load(), r.running.Add(1)))
	defer r.running.Add(-1)
	if r.hold != nil {
		select {
		case r.held <- struct{}{}:
		case <-ctx.Done():
			return Stranger, "", ctx.Err()
		}
		select {
		case <-r.hold:
		case <-ctx.Done():
			return Stranger, "", ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked++
	roles, known := r.allowed[token]
	switch {
	case r.err != nil:
		return Stranger, "", r.err
	case !known:
		return Stranger, "", nil
	case !strings.Contains(roles, role.String()):
		return Denied, "system:serviceaccount:monitoring:" + token[:3], nil
	}
	return Allowed, token, nil
}

func (r *rules) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

func (r *rules) reviews() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

const (
	tokenOfA = "aaa.a-token-of-somebody"
	tokenOfB = "bbb.a-token-of-somebody"
)

func kubernetes(t *testing.T) (*Kubernetes, *rules) {
	t.Helper()
	r := &rules{now: time.Now(), allowed: map[string]string{tokenOfA: "aggregates", tokenOfB: "aggregates names actions"}}
	k := NewKubernetes(r.review, quiet{})
	k.now = func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.now
	}
	t.Cleanup(k.Close)
	return k, r
}

func (r *rules) later(d time.Duration) { r.set(func() { r.now = r.now.Add(d) }) }

func admitted(k *Kubernetes, token string, role Role) *Error {
	r := httptest.NewRequest(http.MethodGet, "/api/v1/summary", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	return k.check(r, role)
}

func code(e *Error) int {
	if e == nil {
		return 200
	}
	return e.Code
}

// TestKubernetesRoles checks that each role must be granted by itself, and that the refusal names the missing right.
func TestKubernetesRoles(t *testing.T) {
	k, r := kubernetes(t)
	for _, tt := range []struct {
		token string
		role  Role
		want  int
	}{
		{tokenOfA, RoleAggregates, 200}, {tokenOfA, RoleNames, 403}, {tokenOfA, RoleActions, 403},
		{tokenOfB, RoleAggregates, 200}, {tokenOfB, RoleNames, 200}, {tokenOfB, RoleActions, 200},
		{"ccc.nobody-knows-this-one", RoleAggregates, 401}, {"ccc.nobody-knows-this-one", RolePublic, 200},
	} {
		e := admitted(k, tt.token, tt.role)
		if code(e) != tt.want {
			t.Errorf("%s, %v: %d, want %d: %v", tt.token, tt.role, code(e), tt.want, e)
		}
		if tt.want == 403 {
			text := e.Message + " " + e.Hint
			for _, want := range []string{"system:serviceaccount:monitoring:aaa", `"` + tt.role.String() + `"`, `"` + RoleVerb(tt.role) + `"`, Group, "ClusterRoleBinding"} {
				if !strings.Contains(text, want) {
					t.Errorf("%v: %q is not in %q", tt.role, want, text)
				}
			}
		}
		if e != nil && strings.Contains(e.Message+e.Hint, tt.token) {
			t.Errorf("the token is in %q", e.Message+e.Hint)
		}
	}
	before := r.reviews()
	for header, want := range map[string]int{"": 401, "Bearer": 401, "Bearer short": 401, "Basic " + tokenOfB: 401, "Bearer " + tokenOfB + " x": 401, "bearer " + tokenOfB: 200, "Bearer " + strings.Repeat("x", maxBearer+1): 401} {
		request := httptest.NewRequest(http.MethodGet, "/", nil)
		request.Header.Set("Authorization", header)
		if e := k.check(request, RoleNames); code(e) != want {
			t.Errorf("%.40q: %d, want %d", header, code(e), want)
		}
	}
	two := httptest.NewRequest(http.MethodGet, "/", nil)
	two.Header.Add("Authorization", "Bearer "+tokenOfB)
	two.Header.Add("Authorization", "Bearer "+tokenOfA)
	if e := k.check(two, RoleNames); code(e) != 401 {
		t.Errorf("two headers: %d", code(e))
	}
	if n := r.reviews() - before; n != 0 {
		t.Errorf("%d reviews of what is no token, or is known", n)
	}
}

// TestKubernetesRemembers: a verdict is believed for its time, and not for a moment longer when the API server is away.
func TestKubernetesRemembers(t *testing.T) {
	k, r := kubernetes(t)
	want := func(token string, role Role, status, reviews int) {
		t.Helper()
		before := r.reviews()
		if e := admitted(k, token, role); code(e) != status {
			t.Errorf("%d, want %d", code(e), status)
		}
		if n := r.reviews() - before; n != reviews {
			t.Errorf("%d reviews, want %d", n, reviews)
		}
	}
	want(tokenOfA, RoleAggregates, 200, 1)
	r.set(func() { delete(r.allowed, tokenOfA) }) // withdrawn
	r.later(allowedFor - time.Millisecond)
	want(tokenOfA, RoleAggregates, 200, 0)
	r.later(time.Millisecond)
	want(tokenOfA, RoleAggregates, 401, 1)
	want(tokenOfA, RoleAggregates, 401, 0)
	r.set(func() { r.allowed[tokenOfA] = "aggregates" }) // and granted again
	r.later(deniedFor)
	want(tokenOfA, RoleAggregates, 200, 1)

	r.set(func() { r.err = errors.New("connection refused") })
	r.later(allowedFor - time.Millisecond)
	want(tokenOfA, RoleAggregates, 200, 0)
	r.later(time.Millisecond)
	want(tokenOfA, RoleAggregates, 503, 1)
	want(tokenOfA, RoleAggregates, 503, 0) // it is not asked again at once
	r.later(failedFor)
	want(tokenOfA, RoleAggregates, 503, 1)
	r.set(func() { r.err = nil })
	r.later(failedFor)
	want(tokenOfA, RoleAggregates, 200, 1)
	k.mu.Lock()
	defer k.mu.Unlock()
	for key := range k.entries {
		if strings.Contains(string(key[:]), tokenOfA[:8]) {
			t.Error("the token is kept as it is")
		}
	}
}

// TestKubernetesFailure checks that the log gets the reason and the client only a hint, both without the token.
func TestKubernetesFailure(t *testing.T) {
	var log told
	var failure error = &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.IPv4(10, 96, 0, 1), Port: 443}, Err: unix.ECONNREFUSED}
	now := time.Now()
	k := NewKubernetes(func(context.Context, string, Role) (Verdict, string, error) { return Allowed, "", failure }, &log)
	defer k.Close()
	k.now = func() time.Time { return now }
	e := admitted(k, tokenOfA, RoleNames)
	if code(e) != 503 || e.Hint == "" || strings.Contains(e.Message+e.Hint, "10.96.0.1") {
		t.Errorf("got %+v", e)
	}
	now = now.Add(failedFor)
	failure = fmt.Errorf("more about it: %w", &ReviewError{errors.New("403"), "the right is missing"})
	if e := admitted(k, tokenOfA, RoleNames); code(e) != 503 || e.Hint != "the right is missing" {
		t.Errorf("got %+v", e)
	}
	if log.count() != 1 || !strings.Contains(log.text[0], "10.96.0.1") || strings.Contains(log.text[0], tokenOfA) {
		t.Errorf("said %q, want the reason, and not for each request", log.text)
	}
}

// TestKubernetesTogether checks that equal requests wait for one review, that few reviews run at a time, and that
// known clients do not wait for unknown ones.
func TestKubernetesTogether(t *testing.T) {
	k, r := kubernetes(t)
	if e := admitted(k, tokenOfB, RoleNames); e != nil {
		t.Fatal(e)
	}
	r.later(allowedFor)
	r.hold, r.held = make(chan struct{}), make(chan struct{}, 100)
	var done sync.WaitGroup
	var let atomic.Int32
	for range 20 {
		done.Go(func() {
			if admitted(k, tokenOfA, RoleAggregates) == nil {
				let.Add(1)
			}
		})
	}
	for i := range 5 {
		done.Go(func() { admitted(k, fmt.Sprintf("nobody-knows-this-one-%d", i), RoleAggregates) })
	}
	for range maxReviews {
		<-r.held
	}
	done.Go(func() {
		if admitted(k, tokenOfB, RoleNames) == nil {
			let.Add(1)
		}
	})
	<-r.held // it is asked about at once
	if n := r.running.Load(); n != maxReviews+1 {
		t.Errorf("%d reviews run", n)
	}
	close(r.hold)
	done.Wait()
	if let.Load() != 21 || r.reviews() != 1+1+5+1 || r.most.Load() > 2*maxReviews {
		t.Errorf("%d let in by %d reviews, %d at a time", let.Load(), r.reviews(), r.most.Load())
	}
}

// TestKubernetesFlood: made up tokens cost the API server little, and do not push out those that are known.
func TestKubernetesFlood(t *testing.T) {
	k, r := kubernetes(t)
	if e := admitted(k, tokenOfB, RoleNames); e != nil {
		t.Fatal(e)
	}
	seconds := 60
	for i := range seconds * 50 {
		if i%50 == 0 {
			r.later(time.Second)
		}
		if e := admitted(k, fmt.Sprintf("nobody-knows-this-one-%d", i), RoleNames); code(e) != 401 && code(e) != 503 {
			t.Fatalf("got %v", e)
		}
	}
	if n := r.reviews(); n > (seconds+1)*strangersPerSecond+1 {
		t.Errorf("%d reviews in %d s", n, seconds)
	}
	k.mu.Lock()
	n := len(k.entries)
	k.mu.Unlock()
	if n != maxVerdicts {
		t.Errorf("%d verdicts are remembered", n)
	}
	if e := admitted(k, tokenOfB, RoleNames); e != nil {
		t.Errorf("who is known is kept out by those who are not: %v", e)
	}
}

// TestKubernetesAway checks that a client that leaves does not cancel the verdict for others, and that Close ends
// pending reviews.
func TestKubernetesAway(t *testing.T) {
	k, r := kubernetes(t)
	r.hold, r.held = make(chan struct{}), make(chan struct{}, 1)
	ctx, leave := context.WithCancel(context.Background())
	first, second := make(chan *Error, 1), make(chan *Error, 1)
	request := httptest.NewRequest(http.MethodGet, "/", nil).WithContext(ctx)
	request.Header.Set("Authorization", "Bearer "+tokenOfA)
	go func() { first <- k.check(request, RoleAggregates) }()
	<-r.held
	go func() { second <- admitted(k, tokenOfA, RoleAggregates) }()
	leave()
	close(r.hold)
	if a, b := <-first, <-second; a != nil || b != nil {
		t.Errorf("got %v and %v", a, b)
	}
	r.set(func() { r.hold = make(chan struct{}) })
	go func() { first <- admitted(k, tokenOfB, RoleAggregates) }()
	<-r.held
	k.Close()
	if e := <-first; code(e) != 503 {
		t.Errorf("got %v", e)
	}
}

package api

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Group is the API group of the resources by which Kubernetes' rules (RBAC) allow a role: aggregates, names, actions.
const Group = "diag.localcache.dev"

// RoleVerb returns the verb for a role's resource.
func RoleVerb(r Role) string {
	if r == RoleActions {
		return "create"
	}
	return "get"
}

// Verdict is what Kubernetes says about the bearer of a token and a role.
type Verdict uint8

// The verdicts.
const (
	Stranger Verdict = iota // the token belongs to no user
	Denied                  // the user lacks the role
	Allowed
)

// Review asks Kubernetes about a token and a role. user is the name that Kubernetes knows the bearer by.
type Review func(ctx context.Context, token string, role Role) (v Verdict, user string, err error)

// ReviewError is an error of a Review that may be shown to the client: it holds nothing that unauthenticated clients
// must not know.
type ReviewError struct {
	Err  error
	Hint string // what to do
}

func (e *ReviewError) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *ReviewError) Unwrap() error { return e.Err }

// Bounds of a Kubernetes Access. They protect the API server, which serves all nodes, and keep unauthenticated
// clients from blocking the others.
const (
	// allowedFor and deniedFor are how long a verdict is cached: a right that was withdrawn or given takes effect
	// that much later. failedFor is how long no review is made after a failure.
	allowedFor = 10 * time.Second
	deniedFor  = 5 * time.Second
	failedFor  = time.Second
	// maxVerdicts is how many pairs of token and role are remembered, some hundred bytes each.
	maxVerdicts = 256
	// maxReviews may be under way at a time for clients that were allowed something before, and as many for all
	// others, which get strangersPerSecond.
	maxReviews         = 2
	strangersPerSecond = 10
	// reviewTimeout is for both questions, and for the wait before them.
	reviewTimeout = 5 * time.Second
	// saidFor is the least time between two log lines about failures: unauthenticated clients can cause them.
	saidFor = 10 * time.Second
	// maxBearer is more than the token of a service account has, in bytes, and as much as fits in a request.
	maxBearer = maxHeader
)

// Kubernetes is an Access for users whom Kubernetes' rules allow the role that an endpoint needs: the client sends a
// token that the API server accepts. The API server is asked through a Review. Verdicts are cached for seconds, by a
// hash of the token, and no longer: if the API server cannot be asked, access is refused.
type Kubernetes struct {
	review Review
	log    Logger
	now    func() time.Time
	ctx    context.Context // of all reviews
	cancel context.CancelFunc

	known, strangers chan struct{} // reviews under way

	mu      sync.Mutex
	entries map[verdictKey]*verdict
	budget  float64 // reviews that strangers may set off now
	filled  time.Time
	said    time.Time // the last failure in the log
}

// verdictKey is the SHA-256 of role and token.
type verdictKey [sha256.Size]byte

// verdict is a cached verdict, or a pending one while done is open.
type verdict struct {
	done chan struct{}

	verdict Verdict
	user    string
	err     *Error // of a review that failed
	until   time.Time
	// trusted is set once the role has been allowed: the next review does not stand in line with strangers.
	trusted bool
}

// NewKubernetes returns an Access by a Review. Failures are logged with their reasons. Close ends pending reviews.
func NewKubernetes(review Review, logger Logger) *Kubernetes {
	k := &Kubernetes{
		review: review, log: logger, now: time.Now, known: make(chan struct{}, maxReviews), strangers: make(chan struct{}, maxReviews),
		entries: map[verdictKey]*verdict{}, budget: strangersPerSecond,
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Close ends pending reviews. From then on access is refused.
func (k *Kubernetes) Close() { k.cancel() }

// String implements Access.
func (*Kubernetes) String() string { return "kubernetes" }

// check implements Access.
func (k *Kubernetes) check(r *http.Request, role Role) *Error {
	if role == RolePublic {
		return nil
	}
	token, ok := bearer(r)
	if !ok {
		return &Error{Code: http.StatusUnauthorized, Reason: "Unauthorized", Message: "a token of the cluster is needed",
			Hint: "send the header 'Authorization: Bearer TOKEN' with the token of a service account, such as 'kubectl create token NAME' prints"}
	}
	v, e := k.verdict(r.Context(), token, role)
	if e != nil {
		return e
	}
	switch v.verdict {
	case Allowed:
		return nil
	case Denied:
		return &Error{Code: http.StatusForbidden, Reason: "Forbidden",
			Message: fmt.Sprintf("user %q cannot %s resource %q in API group %q at the cluster scope", v.user, RoleVerb(role), role, Group),
			Hint:    fmt.Sprintf("a ClusterRole with apiGroups [%q], resources [%q], verbs [%q] and a ClusterRoleBinding to that user allow it", Group, role, RoleVerb(role))}
	}
	return &Error{Code: http.StatusUnauthorized, Reason: "Unauthorized", Message: "the API server does not accept the token",
		Hint: "it may be too old, of another cluster, or for another audience than the API server: 'kubectl create token NAME' prints a new one"}
}

// maxUser is how much of a user name is shown: that of a service account has at most 353 characters.
const maxUser = 384

func cutTo(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// bearer returns the token of a request (RFC 6750, section 2.1). ok is false for text that cannot be a token.
func bearer(r *http.Request) (string, bool) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return "", false
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	token = strings.TrimSpace(token)
	if !strings.EqualFold(scheme, "Bearer") || len(token) < minToken || len(token) > maxBearer {
		return "", false
	}
	for _, c := range []byte(token) {
		if c <= ' ' || c >= 0x7f {
			return "", false
		}
	}
	return token, true
}

// verdict returns the cached verdict, or makes a review. Simultaneous requests for the same verdict wait for one
// review.
func (k *Kubernetes) verdict(ctx context.Context, token string, role Role) (*verdict, *Error) {
	key := verdictKey(sha256.Sum256(append([]byte{byte(role)}, token...)))
	k.mu.Lock()
	v := k.entries[key]
	now := k.now()
	switch {
	case v == nil:
	case !v.ready():
		k.mu.Unlock()
		wait := time.NewTimer(reviewTimeout)
		defer wait.Stop()
		select {
		case <-v.done:
			return v, v.err
		case <-wait.C:
		case <-ctx.Done():
		}
		return nil, errReviewsBusy
	case now.Before(v.until):
		k.mu.Unlock()
		return v, v.err
	}
	trusted := v != nil && v.trusted
	if !trusted && !k.spend(now) || v == nil && !k.makeRoom(now) {
		k.mu.Unlock()
		return nil, errReviewsBusy
	}
	v = &verdict{done: make(chan struct{}), trusted: trusted}
	k.entries[key] = v
	k.mu.Unlock()
	k.ask(v, token, role)
	return v, v.err
}

var errReviewsBusy = &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: "access is refused for now: too many tokens are being reviewed", Hint: "ask again in a second"}

func (v *verdict) ready() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// spend takes one of the reviews for unauthenticated clients. k.mu is held.
func (k *Kubernetes) spend(now time.Time) bool {
	k.budget = min(k.budget+max(now.Sub(k.filled).Seconds(), 0)*strangersPerSecond, strangersPerSecond)
	k.filled = now
	if k.budget < 1 {
		return false
	}
	k.budget--
	return true
}

// makeRoom makes room for one more verdict: it removes the oldest one, preferably one that does not allow. k.mu is
// held.
func (k *Kubernetes) makeRoom(now time.Time) bool {
	if len(k.entries) < maxVerdicts {
		return true
	}
	var oldest *verdict
	var at verdictKey
	for key, v := range k.entries {
		if !v.ready() {
			continue
		}
		if oldest == nil || !v.trusted && oldest.trusted || v.trusted == oldest.trusted && v.until.Before(oldest.until) {
			oldest, at = v, key
		}
	}
	if oldest == nil {
		return false
	}
	delete(k.entries, at)
	return true
}

// ask makes v's review in the goroutine of the first request. It continues if that client leaves, because other
// requests wait for it.
func (k *Kubernetes) ask(v *verdict, token string, role Role) {
	defer close(v.done)
	ctx, cancel := context.WithTimeout(k.ctx, reviewTimeout)
	defer cancel()
	queue := k.strangers
	if v.trusted {
		queue = k.known
	}
	begun := k.now() // a right that is withdrawn while the reply is on its way is not cached for longer
	var err error
	select {
	case queue <- struct{}{}:
		begun = k.now()
		v.verdict, v.user, err = func() (Verdict, string, error) {
			defer func() { <-queue }()
			return k.review(ctx, token, role)
		}()
		v.user = cutTo(v.user, maxUser)
	case <-ctx.Done():
		err = &ReviewError{errors.New("the reviews before took too long"), "ask again in a second"}
	}
	if err != nil {
		v.verdict, v.err, v.until = Stranger, k.failure(err), k.now().Add(failedFor)
		return
	}
	v.until = begun.Add(deniedFor)
	if v.trusted = v.verdict == Allowed; v.trusted {
		v.until = begun.Add(allowedFor)
	}
}

// failure handles an error of a review: all of it goes to the log, at most now and then; an unauthenticated client
// only learns what to do.
func (k *Kubernetes) failure(err error) *Error {
	hint := "the log of the cache on this node says more; ask again in a second"
	if known, ok := errors.AsType[*ReviewError](err); ok && known.Hint != "" {
		hint = known.Hint
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.now(); k.said.IsZero() || now.Sub(k.said) >= saidFor {
		k.said = now
		k.log.Warningf("access kubernetes: access is refused: %v", err)
	}
	return &Error{Code: http.StatusServiceUnavailable, Reason: "NoReview", Message: "access is refused: the Kubernetes API server cannot be asked about the token", Hint: hint}
}

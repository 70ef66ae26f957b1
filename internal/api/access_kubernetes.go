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

// RoleVerb is the verb that goes with a role's resource.
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
	Stranger Verdict = iota // the token is nobody's
	Denied                  // it is somebody's who lacks the role
	Allowed
)

// Review asks Kubernetes about a token and a role. user is the name that Kubernetes knows the bearer by.
type Review func(ctx context.Context, token string, role Role) (v Verdict, user string, err error)

// ReviewError is the error of a Review that those who ask can be told about: without anything that strangers should not
// know.
type ReviewError struct {
	Err  error
	Hint string // what to do
}

func (e *ReviewError) Error() string { return e.Err.Error() }

// Unwrap is the error itself.
func (e *ReviewError) Unwrap() error { return e.Err }

// The bounds of a Kubernetes. They are there for the API server's sake, of which each node has only a part, and so that
// those whom nobody knows do not keep out those who are known.
const (
	// allowedFor and deniedFor are how long a verdict is believed: so much later a right that was taken away
	// is gone, or one that was given is there. failedFor is for how long nobody is asked after a failure.
	allowedFor = 10 * time.Second
	deniedFor  = 5 * time.Second
	failedFor  = time.Second
	// maxVerdicts is how many pairs of token and role are remembered, some hundred bytes each.
	maxVerdicts = 256
	// maxReviews are under way at a time for those who have been allowed something before, and as many for all
	// others, who get strangersPerSecond.
	maxReviews         = 2
	strangersPerSecond = 10
	// reviewTimeout is for both questions, and for the wait before them.
	reviewTimeout = 5 * time.Second
	// saidFor is how often at most a failure is logged: strangers can cause it.
	saidFor = 10 * time.Second
	// maxBearer is more than the token of a service account has, in bytes, and as much as fits in a request.
	maxBearer = maxHeader
)

// Kubernetes is Access for those whom Kubernetes' rules allow the role that an endpoint needs: who asks shows a token
// that the API server accepts. The API server is asked through a Review; verdicts are remembered for seconds, by a hash
// of the token, and none longer than that: where the API server cannot be asked, nobody is let in.
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

// verdict is one that is known, or on its way as long as done is open.
type verdict struct {
	done chan struct{}

	verdict Verdict
	user    string
	err     *Error // of a review that failed
	until   time.Time
	// trusted is set once the role has been allowed: the next review does not stand in line with strangers.
	trusted bool
}

// NewKubernetes returns the Access by a Review. Failures go to the log, with their reasons. Close ends what is under way.
func NewKubernetes(review Review, logger Logger) *Kubernetes {
	k := &Kubernetes{
		review: review, log: logger, now: time.Now, known: make(chan struct{}, maxReviews), strangers: make(chan struct{}, maxReviews),
		entries: map[verdictKey]*verdict{}, budget: strangersPerSecond,
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	return k
}

// Close ends reviews that are under way. Nobody is let in from then on.
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

// maxUser is how much is shown of a name: that of a service account has at most 353 characters.
const maxUser = 384

func cutTo(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// bearer is the token of a request (RFC 6750, section 2.1). What cannot be one is not asked about.
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

// verdict is what is known, or what comes of asking. Those who ask the same at the same time wait for one review.
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

var errReviewsBusy = &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: "nobody new can be let in: too many tokens are being reviewed", Hint: "ask again in a second"}

func (v *verdict) ready() bool {
	select {
	case <-v.done:
		return true
	default:
		return false
	}
}

// spend takes one of the reviews that strangers have. It runs with k.mu held.
func (k *Kubernetes) spend(now time.Time) bool {
	k.budget = min(k.budget+max(now.Sub(k.filled).Seconds(), 0)*strangersPerSecond, strangersPerSecond)
	k.filled = now
	if k.budget < 1 {
		return false
	}
	k.budget--
	return true
}

// makeRoom makes sure that one more verdict fits in: the oldest one goes, before others one that was not an allowed one.
// It runs with k.mu held.
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

// ask makes v's review, in the goroutine of the request that came first. It goes on when that one's client goes away, for
// the sake of those who wait.
func (k *Kubernetes) ask(v *verdict, token string, role Role) {
	defer close(v.done)
	ctx, cancel := context.WithTimeout(k.ctx, reviewTimeout)
	defer cancel()
	queue := k.strangers
	if v.trusted {
		queue = k.known
	}
	begun := k.now() // a right that is taken away while the answer is on its way is not believed for longer
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

// failure says what came in the way: to the log all of it, now and then, to whom nobody knows not more than what to do.
func (k *Kubernetes) failure(err error) *Error {
	hint := "the log of the cache on this node says more; ask again in a second"
	if known, ok := errors.AsType[*ReviewError](err); ok && known.Hint != "" {
		hint = known.Hint
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := k.now(); k.said.IsZero() || now.Sub(k.said) >= saidFor {
		k.said = now
		k.log.Warningf("access kubernetes: nobody is let in: %v", err)
	}
	return &Error{Code: http.StatusServiceUnavailable, Reason: "NoReview", Message: "nobody can be let in: the Kubernetes API server cannot be asked who that is", Hint: hint}
}

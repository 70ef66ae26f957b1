package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
)

// User is the identity of the bearer of a token according to the API server (authentication.k8s.io/v1 UserInfo). It
// is sent back to the API server unchanged.
type User struct {
	Name   string
	UID    string
	Groups []string
	Extra  map[string][]string
}

// Attributes describe an action on a resource of a cluster (authorization.k8s.io/v1 ResourceAttributes). The resource
// need not exist: RBAC compares words.
type Attributes struct{ Verb, Group, Version, Resource string }

const (
	// maxToken bounds a token that is reviewed, in octets. Those of service accounts have about 1,000.
	maxToken = 16 << 10
	// maxReview bounds an answer, in octets: a user in a thousand groups has fewer.
	maxReview = 256 << 10
)

var (
	tokenReviews  = resource{group: "authentication.k8s.io", version: "v1", name: "tokenreviews"}
	accessReviews = resource{group: "authorization.k8s.io", version: "v1", name: "subjectaccessreviews"}
)

// ErrNoReviews says that this process may not ask the API server about others.
var ErrNoReviews = errors.New("a ClusterRoleBinding must give the pod's service account the ClusterRole system:auth-delegator")

// reviewError is a StatusError of a review, which needs other rights than a watch.
type reviewError struct{ *StatusError }

func (e reviewError) Error() string {
	if e.Code != http.StatusForbidden {
		return e.StatusError.Error()
	}
	s := fmt.Sprintf("%s %s: the API server says 403 Forbidden", e.Verb, e.res)
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s + "; " + ErrNoReviews.Error()
}

// Unwrap lets errors.As find the StatusError, and errors.Is ErrNoReviews.
func (e reviewError) Unwrap() []error {
	if e.Code == http.StatusForbidden {
		return []error{e.StatusError, ErrNoReviews}
	}
	return []error{e.StatusError}
}

// ReviewToken asks the API server for the user of a token; known is false if the token belongs to no user, or has
// expired. No audience is requested, so the token must be one for the API server itself. Errors contain neither the
// token nor what the server says about it.
func (c *Client) ReviewToken(ctx context.Context, token string) (user User, known bool, err error) {
	if token == "" || len(token) > maxToken {
		return User{}, false, nil
	}
	body, err := c.review(ctx, tokenReviews, map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": map[string]string{"token": token},
	})
	if err != nil {
		return User{}, false, err
	}
	return decodeTokenReview(body)
}

// ReviewAccess asks the API server whether a user may do something.
func (c *Client) ReviewAccess(ctx context.Context, user *User, a Attributes) (allowed bool, err error) {
	body, err := c.review(ctx, accessReviews, map[string]any{
		"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
		"spec": map[string]any{
			"user": user.Name, "uid": user.UID, "groups": user.Groups, "extra": user.Extra,
			"resourceAttributes": map[string]string{"verb": a.Verb, "group": a.Group, "version": a.Version, "resource": a.Resource},
		},
	})
	if err != nil {
		return false, err
	}
	return decodeAccessReview(body)
}

func decodeTokenReview(body []byte) (User, bool, error) {
	var r struct {
		Kind   string `json:"kind"`
		Status struct {
			Authenticated bool `json:"authenticated"`
			User          struct {
				Username string              `json:"username"`
				UID      string              `json:"uid"`
				Groups   []string            `json:"groups"`
				Extra    map[string][]string `json:"extra"`
			} `json:"user"`
		} `json:"status"`
	}
	if err := json.Unmarshal(body, &r); err != nil || r.Kind != "TokenReview" {
		return User{}, false, fmt.Errorf("create %s: the API server's answer is no TokenReview", tokenReviews)
	}
	u := r.Status.User
	// A user without a name is not accepted: authorization would be asked about an empty word.
	if !r.Status.Authenticated || u.Username == "" {
		return User{}, false, nil
	}
	return User{u.Username, u.UID, u.Groups, u.Extra}, true, nil
}

func decodeAccessReview(body []byte) (bool, error) {
	var r struct {
		Kind   string `json:"kind"`
		Status struct {
			Allowed bool `json:"allowed"`
			Denied  bool `json:"denied"`
		} `json:"status"`
	}
	if err := json.Unmarshal(body, &r); err != nil || r.Kind != "SubjectAccessReview" {
		return false, fmt.Errorf("create %s: the API server's answer is no SubjectAccessReview", accessReviews)
	}
	return r.Status.Allowed && !r.Status.Denied, nil
}

// review creates an object that the API server answers and does not keep.
func (c *Client) review(ctx context.Context, res resource, object any) ([]byte, error) {
	said, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	resp, err := c.send(ctx, http.MethodPost, "create", res, nil, said)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK {
		return nil, reviewError{readStatus(resp, "create", res)}
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxReview+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("create %s at %s: %w", res, c.cfg.Server, err)
	case len(body) > maxReview:
		return nil, fmt.Errorf("create %s at %s: the answer has more than %d bytes", res, c.cfg.Server, maxReview)
	}
	return body, nil
}

// Check returns an error unless the files that authenticate this process can be read now.
func (c Config) Check() error {
	for _, path := range []string{c.TokenFile, c.CAFile} {
		if _, err := readSecret(path); err != nil {
			return &credentialsError{err}
		}
	}
	return nil
}

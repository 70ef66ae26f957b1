package kube

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// resource names the requested resource.
type resource struct {
	group, version, name string
	namespace            string // "" for all of the cluster
	labels, fields       string // selectors
}

func (r resource) path() string {
	p := "/apis/" + r.group + "/" + r.version
	if r.group == "" {
		p = "/api/" + r.version
	}
	if r.namespace != "" {
		p += "/namespaces/" + r.namespace
	}
	return p + "/" + r.name
}

// String returns r in the form of RBAC and kubectl, such as "endpointslices.discovery.k8s.io in namespace
// kube-system".
func (r resource) String() string {
	s := r.name
	if r.group != "" {
		s += "." + r.group
	}
	if r.namespace != "" {
		s += " in namespace " + r.namespace
	}
	return s
}

// rights describes the right that allows list and watch of r.
func (r resource) rights() string {
	kind := "a Role and a RoleBinding in namespace " + r.namespace
	if r.namespace == "" {
		kind = "a ClusterRole and a ClusterRoleBinding"
	}
	return fmt.Sprintf("%s must allow the pod's service account verbs [list, watch] on resources [%s] of apiGroups [%q]", kind, r.name, r.group)
}

// StatusError is a response of the API server that says why it refuses a request.
type StatusError struct {
	Verb string // list or watch
	Code int    // HTTP status
	// Reason and Message are the server's own words (meta/v1 Status); either may be empty.
	Reason, Message string
	RetryAfter      time.Duration // 0 where the server does not say

	res      resource
	tooLarge bool // the server does not know the resourceVersion yet
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: the API server says %d %s", e.Verb, e.res, e.Code, http.StatusText(e.Code))
	if e.Message != "" {
		s += ": " + e.Message
	}
	switch e.Code {
	case http.StatusForbidden:
		s += "; " + e.res.rights()
	case http.StatusUnauthorized:
		s += "; the token of the pod's service account is not, or no longer, accepted"
	}
	return s
}

// stale reports that the server cannot list or watch from the requested version: it is too old (410), or not known
// yet, as after a restore of etcd.
func (e *StatusError) stale() bool { return e.Code == http.StatusGone || e.tooLarge }

// apiStatus is meta/v1 Status, as far as it is read.
type apiStatus struct {
	Code    int    `json:"code"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Details struct {
		RetryAfterSeconds int `json:"retryAfterSeconds"`
		Causes            []struct {
			Reason string `json:"reason"`
		} `json:"causes"`
	} `json:"details"`
}

const (
	// maxStatus bounds how much of an error's body is read, in octets.
	maxStatus = 64 << 10
	// maxMessage bounds how much of it is shown.
	maxMessage = 512
	// maxRetryAfter bounds the pause that a server may ask for: a mistake there must not switch the watch off.
	maxRetryAfter = 5 * time.Minute
)

func (s apiStatus) err(verb string, res resource) *StatusError {
	e := &StatusError{Verb: verb, Code: s.Code, Reason: printable(s.Reason), Message: printable(s.Message), res: res}
	e.RetryAfter = seconds(s.Details.RetryAfterSeconds)
	for _, c := range s.Details.Causes {
		// meta/v1 CauseTypeResourceVersionTooLarge.
		if c.Reason == "ResourceVersionTooLarge" {
			e.tooLarge = true
		}
	}
	return e
}

// readStatus returns the error of a response that is not 200. A body that is no Status, as from a proxy, is ignored.
func readStatus(resp *http.Response, verb string, res resource) *StatusError {
	var s apiStatus
	if body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus)); err == nil {
		if json.Unmarshal(body, &s) != nil {
			s = apiStatus{}
		}
	}
	s.Code = resp.StatusCode
	e := s.err(verb, res)
	// Only the form in seconds: the API server sends no dates, and a date would trust the clock.
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = seconds(n)
	}
	return e
}

func seconds(n int) time.Duration {
	return time.Duration(max(0, min(n, int(maxRetryAfter/time.Second)))) * time.Second
}

// printable makes text of the server fit for one line of a log.
func printable(s string) string {
	if len(s) > maxMessage {
		s = s[:maxMessage] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	clientTimeout = 20 * time.Second
	maxAnswer     = 64 << 20
)

// Remote asks a Server. The zero value is not usable; see NewRemote.
type Remote struct {
	base   *url.URL
	where  string
	token  func() (string, error)
	client *http.Client
}

// RemoteOptions say where the Server is: at URL if that is not empty, else at Socket.
type RemoteOptions struct {
	Socket    string // path of the unix socket
	URL       string // such as http://10.0.0.1:9257
	TokenFile string // for URL; empty for none
}

// Unreachable is the error of a Server that cannot be asked.
type Unreachable struct {
	Where string
	Err   error
}

// Error implements error.
func (e *Unreachable) Error() string { return fmt.Sprintf("no answer from %s: %v", e.Where, e.Err) }

// Unwrap implements errors.
func (e *Unreachable) Unwrap() error { return e.Err }

// NewRemote returns a Remote. It connects when it is asked for something.
func NewRemote(o RemoteOptions) (*Remote, error) {
	transport := &http.Transport{DisableCompression: true, ResponseHeaderTimeout: clientTimeout}
	c := &Remote{client: &http.Client{
		Transport: transport, Timeout: clientTimeout,
		// localcache never redirects; a server that does must not get the token.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	if o.URL == "" {
		c.where = "the socket " + o.Socket
		c.base = &url.URL{Scheme: "http", Host: "localhost"}
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", o.Socket)
		}
		return c, nil
	}
	base, err := url.Parse(o.URL)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" || base.RawQuery != "" {
		return nil, fmt.Errorf("the URL %q cannot be used: accepted is one such as http://10.0.0.1:9257", o.URL)
	}
	c.base, c.where = base, o.URL
	if o.TokenFile != "" {
		c.token = func() (string, error) { return ReadToken(o.TokenFile) }
	}
	return c, nil
}

// Get requests a path, such as /api/v1/top, and decodes the answer into v. The error is an *Error if the Server
// refuses, an *Unreachable if there is none.
func (c *Remote) Get(ctx context.Context, path string, query url.Values, v any) error {
	u := c.base.JoinPath(path)
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return err
	}
	if c.token != nil {
		token, err := c.token()
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := c.client.Do(r)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return &Unreachable{c.where, err}
	}
	defer answer.Body.Close()
	body := io.LimitReader(answer.Body, maxAnswer)
	if answer.StatusCode != http.StatusOK {
		var e ErrorBody
		if err := json.NewDecoder(body).Decode(&e); err != nil || e.Kind != "Error" || !strings.HasPrefix(e.APIVersion, "diag.localcache.dev/") {
			return fmt.Errorf("%s answers %s, and not as localcache does", c.where, answer.Status)
		}
		return &e.Error
	}
	if err := json.NewDecoder(body).Decode(v); err != nil {
		return fmt.Errorf("%s sends an answer that does not come from localcache: %w", c.where, err)
	}
	return nil
}

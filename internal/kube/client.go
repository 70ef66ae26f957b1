package kube

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"time"
)

// Config says where the API server is and how this process authenticates.
type Config struct {
	Server    string // HOST:PORT, TLS
	TokenFile string // bearer token of a service account; the kubelet replaces it long before it expires
	CAFile    string // certificates in PEM that the server's must be signed by
}

// serviceAccountDir is where the kubelet mounts a pod's token and the cluster's certificate authority
// (https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/).
const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount/"

// ErrNotInCluster says that nothing in the environment names an API server.
var ErrNotInCluster = errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in a pod")

// InCluster returns the Config of a process in a pod. The kubelet sets KUBERNETES_SERVICE_HOST and
// KUBERNETES_SERVICE_PORT. If the Service cannot be reached from the node's network, as in clusters without
// kube-proxy, the pod's manifest sets them to the address of the API server itself.
func InCluster(getenv func(string) string) (Config, error) {
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Config{}, ErrNotInCluster
	}
	return Config{
		Server:    net.JoinHostPort(host, port),
		TokenFile: serviceAccountDir + "token",
		CAFile:    serviceAccountDir + "ca.crt",
	}, nil
}

// timing holds the bounds of a request. They are constants but for tests.
type timing struct {
	dial   time.Duration // connect, and then again for TLS
	header time.Duration // until the answer begins
	list   time.Duration // a whole list
	// idle is the time without traffic after which a connection is tested, and ping how long that may take. A server
	// or proxy that vanished is noticed after the sum of both.
	idle, ping time.Duration
	watch      time.Duration // the least time that a watch is asked for; the most is twice as long
	watchGrace time.Duration // how much longer than requested a watch may last
	backoff
}

func defaultTiming() timing {
	return timing{
		dial:       5 * time.Second,
		header:     15 * time.Second,
		list:       30 * time.Second,
		idle:       15 * time.Second,
		ping:       10 * time.Second,
		watch:      5 * time.Minute,
		watchGrace: 30 * time.Second,
		backoff:    defaultBackoff(),
	}
}

// Client carries requests to the API server. It is safe for concurrent use.
type Client struct {
	cfg  Config
	time timing

	mu        sync.Mutex
	ca        []byte // that transport trusts
	transport *http.Transport
}

// NewClient returns a Client, which has asked and read nothing yet.
func NewClient(cfg Config) *Client { return &Client{cfg: cfg, time: defaultTiming()} }

// Close closes connections that are not in use.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
}

// maxSecret is more than a token or a bundle of certificates has, in octets.
const maxSecret = 1 << 20

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s has more than %d bytes", path, maxSecret)
	}
	return b, err
}

// credentialsError reports that a file of the service account could not be used.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string {
	return fmt.Sprintf("the pod's service account: %v (automountServiceAccountToken: true in the pod mounts it)", e.err)
}

func (e *credentialsError) Unwrap() error { return e.err }

// trusting returns the transport for the certificate authority as the file has it now.
func (c *Client) trusting() (*http.Transport, error) {
	ca, err := readSecret(c.cfg.CAFile)
	if err != nil {
		return nil, &credentialsError{err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transport != nil && bytes.Equal(ca, c.ca) {
		return c.transport, nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, &credentialsError{fmt.Errorf("%s holds no certificate", c.cfg.CAFile)}
	}
	if c.transport != nil {
		c.transport.CloseIdleConnections()
	}
	c.ca = ca
	c.transport = &http.Transport{
		// No proxy: the API server is near, and the token must not reach a third party.
		DialContext: (&net.Dialer{
			Timeout:         c.time.dial,
			KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: c.time.idle, Interval: c.time.ping / 2, Count: 2},
		}).DialContext,
		TLSClientConfig:        &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:    c.time.dial,
		ResponseHeaderTimeout:  c.time.header,
		MaxResponseHeaderBytes: 64 << 10,
		MaxConnsPerHost:        4,
		IdleConnTimeout:        time.Minute,
		ForceAttemptHTTP2:      true,
		// A frozen server keeps its TCP alive; over HTTP/2 it must also answer a PING.
		HTTP2: &http.HTTP2Config{SendPingTimeout: c.time.idle, PingTimeout: c.time.ping},
		// Compression would cost the server time and this process memory, for objects that are few.
		DisableCompression: true,
	}
	return c.transport, nil
}

// get asks for a resource. The answer has status 200, and the caller closes its body; ctx must last until
// then. Any other status is a *StatusError.
func (c *Client) get(ctx context.Context, verb string, res resource, query url.Values) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, verb, res, query, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		return nil, readStatus(resp, verb, res)
	}
	return resp.Body, nil
}

// send sends one request as this pod, whose token and certificate authority are read again, with a JSON body if there
// is one. verb is Kubernetes' word for the request, for errors. The caller closes the body of the response.
func (c *Client) send(ctx context.Context, method, verb string, res resource, query url.Values, body []byte) (*http.Response, error) {
	transport, err := c.trusting()
	if err != nil {
		return nil, err
	}
	token, err := readSecret(c.cfg.TokenFile)
	if err != nil {
		return nil, &credentialsError{err}
	}
	u := url.URL{Scheme: "https", Host: c.cfg.Server, Path: res.path(), RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+string(bytes.TrimSpace(token)))
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "localcache")
	if len(body) > 0 {
		req.Header.Set("Content-Type", "application/json")
	}
	// RoundTrip, because it follows no redirection: tokens are for this server alone.
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s at %s: %w", verb, res, c.cfg.Server, err)
	}
	return resp, nil
}

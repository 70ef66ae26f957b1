package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"
)

// client reads from the API server, as the administrator. It is for what is asked often: a kubectl costs a
// sixth of a second of the processor.
type client struct{ http *http.Client }

func newClient(s *Space) *client {
	return &client{&http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{
			DialContext:     s.DialContext,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the server signs its own certificate
		},
	}}
}

// get reads a path of the API.
func (c *client) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+WorldAddress+":6443"+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer admin")
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %.300s", path, resp.Status, body)
	}
	return body, err
}

// Get reads an object or a list of objects of the API into v.
func (c *Cluster) Get(ctx context.Context, path string, v any) error {
	body, err := c.api.get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

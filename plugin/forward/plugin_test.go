package forward

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"localcache.dev/localcache/internal/observe"
)

// newTestPlugin knows no host name.
func newTestPlugin(t *testing.T) *Plugin {
	t.Helper()
	p := New(Options{Statistics: observe.NewUpstreams(0)})
	t.Cleanup(p.Close)
	p.systemLookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return p
}

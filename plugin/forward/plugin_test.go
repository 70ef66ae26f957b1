package forward

import (
	"context"
	"net"
	"net/netip"
	"testing"

	"localcache.dev/localcache/internal/observe"
)

// TestOpenConnections: who reads the statistics learns what is open, for as long as it is.
func TestOpenConnections(t *testing.T) {
	s := serve(t, answerA("192.0.2.1"))
	statistics := observe.NewUpstreams(0)
	p := New(Options{Statistics: statistics})
	connections := func() (list []observe.Connection) {
		for _, u := range statistics.Snapshot() {
			if u.OpenConnections != len(u.Connections) {
				t.Errorf("%s/%s: %d connections are open, %d listed", u.Upstream, u.Proto, u.OpenConnections, len(u.Connections))
			}
			list = append(list, u.Connections...)
		}
		return list
	}
	h := chainOf(t, p, "forward . "+s.addr+" {\nforce_tcp\n}")
	if _, _, err := ask(t, h, question("example.org.")); err != nil {
		t.Fatal(err)
	}
	if list := connections(); len(list) != 1 || list[0].Upstream != s.addr || list[0].Proto != observe.TCP || list[0].RTT <= 0 {
		t.Errorf("got %+v, want the connection to %s, with a round-trip time", list, s.addr)
	}
	p.Close()
	if list := connections(); len(list) != 0 {
		t.Errorf("%+v are listed after the end", list)
	}
}

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

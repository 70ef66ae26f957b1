package kube

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
)

// Service names a Service of the cluster.
type Service struct{ Namespace, Name string }

// String is NAMESPACE/NAME.
func (s Service) String() string { return s.Namespace + "/" + s.Name }

// ParseService reads NAMESPACE/NAME. Both are DNS labels (RFC 1123), as the API server wants them.
func ParseService(s string) (Service, error) {
	namespace, name, ok := strings.Cut(s, "/")
	if !ok || !isLabel(namespace) || !isLabel(name) {
		return Service{}, fmt.Errorf("%q is not NAMESPACE/SERVICE, each of 1 to 63 small letters, digits and hyphens", s)
	}
	return Service{namespace, name}, nil
}

func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// MaxEndpoints is how many endpoints of each address family and transport are used. Each needs a packet rule, and a
// node needs only some live ones, not the hundreds of a large cluster.
const MaxEndpoints = 16

const (
	// maxSlices bounds the EndpointSlices kept: the controller fills each with up to 100 endpoints.
	maxSlices = 256
	// maxSliceEndpoints is the API's own bound for one (discovery/v1 EndpointSlice).
	maxSliceEndpoints = 1000
)

// Endpoints are the DNS servers behind a Service, sorted.
type Endpoints struct {
	UDP, TCP []netip.AddrPort
	// Kept is true if the Service has no serving endpoint of some address family, so that the last ones that did
	// serve are still included.
	Kept bool
}

func (e Endpoints) equal(o Endpoints) bool {
	return slices.Equal(e.UDP, o.UDP) && slices.Equal(e.TCP, o.TCP) && e.Kept == o.Kept
}

// EndpointWatch follows the EndpointSlices of one Service.
//
// Ready endpoints are used. If an address family has none, endpoints that still serve while they terminate are used,
// as kube-proxy does. If there are none of these either, the last ones stay: readiness is often lost only for
// moments, for all replicas at once when the API server is slow, and the servers still answer. Without any endpoint a
// query is lost anyway; keeping dead ones costs nothing, and they may come back. The same holds for a Service that is
// deleted or scaled to zero.
type EndpointWatch struct {
	service Service
	seed    string
	reflect *reflector[slice]
	changed chan struct{}

	mu    sync.Mutex
	known bool
	now   Endpoints
}

// WatchEndpoints returns a watch of the endpoints of s, which has not asked anything yet. If there are more than
// MaxEndpoints, seed, the name of the node, decides which are used, so that nodes spread over all.
func (c *Client) WatchEndpoints(s Service, seed string, log Logger) *EndpointWatch {
	w := &EndpointWatch{service: s, seed: seed, changed: make(chan struct{}, 1)}
	w.reflect = &reflector[slice]{
		client: c,
		log:    log,
		res: resource{group: "discovery.k8s.io", version: "v1", name: "endpointslices",
			namespace: s.Namespace, labels: "kubernetes.io/service-name=" + s.Name},
		most:    maxSlices,
		decode:  decodeSlice,
		changed: w.take,
	}
	return w
}

// Run watches until ctx ends. Call it once.
func (w *EndpointWatch) Run(ctx context.Context) { w.reflect.run(ctx) }

// Service returns the watched Service.
func (w *EndpointWatch) Service() Service { return w.service }

// Changed returns a channel that has a value when Endpoints changed since the last value was taken. Several changes
// can be one value.
func (w *EndpointWatch) Changed() <-chan struct{} { return w.changed }

// Endpoints are those known now; known is false until the API server has answered, and has named at least one
// that serves.
func (w *EndpointWatch) Endpoints() (e Endpoints, known bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Endpoints{slices.Clone(w.now.UDP), slices.Clone(w.now.TCP), w.now.Kept}, w.known
}

// State returns the state of the watch.
func (w *EndpointWatch) State() State { return w.reflect.State() }

func (w *EndpointWatch) take(all map[string]slice) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := resolve(all, w.now, w.seed)
	if e.equal(w.now) {
		return
	}
	w.now = e
	w.known = len(e.UDP)+len(e.TCP) > 0
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// slice is the kept part of an EndpointSlice.
type slice struct {
	udp, tcp  uint16 // ports; 0 for none
	endpoints []endpoint
}

type endpoint struct {
	addr  netip.Addr
	ready bool
	// ending: it terminates, and serves while it does.
	ending bool
}

// apiSlice is discovery/v1 EndpointSlice, as far as it is read.
type apiSlice struct {
	Metadata    objectMeta `json:"metadata"`
	AddressType string     `json:"addressType"`
	Endpoints   []struct {
		Addresses  []string `json:"addresses"`
		Conditions struct {
			Ready       *bool `json:"ready"`
			Serving     *bool `json:"serving"`
			Terminating *bool `json:"terminating"`
		} `json:"conditions"`
	} `json:"endpoints"`
	Ports []slicePort `json:"ports"`
}

// slicePort is discovery/v1 EndpointPort. A protocol that is left out is TCP.
type slicePort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"`
	Port     *int32 `json:"port"`
}

// decodeSlice is decode of a reflector.
func decodeSlice(raw []byte) (objectMeta, slice, error) {
	var a apiSlice
	if err := json.Unmarshal(raw, &a); err != nil {
		return objectMeta{}, slice{}, err
	}
	var s slice
	s.udp, s.tcp = dnsPorts(a.Ports)
	if s.udp == 0 && s.tcp == 0 {
		return a.Metadata, s, nil
	}
	for _, ep := range a.Endpoints[:min(len(a.Endpoints), maxSliceEndpoints)] {
		if len(ep.Addresses) == 0 {
			continue
		}
		// "Consumers should use the first": all of one endpoint lead to the same place. The address of a
		// slice of type FQDN is a name, and does not parse.
		addr, err := netip.ParseAddr(ep.Addresses[0])
		if err != nil || !usable(addr) {
			continue
		}
		// discovery/v1 EndpointConditions: a missing ready means true, a missing serving means the value of ready, a
		// missing terminating means false.
		c := ep.Conditions
		ready := c.Ready == nil || *c.Ready
		serving := ready
		if c.Serving != nil {
			serving = *c.Serving
		}
		ending := serving && !ready && c.Terminating != nil && *c.Terminating
		if ready || ending {
			s.endpoints = append(s.endpoints, endpoint{addr: addr, ready: ready, ending: ending})
		}
	}
	return a.Metadata, s, nil
}

// usable reports whether packets from pods can be forwarded to a.
func usable(a netip.Addr) bool {
	return !a.Is4In6() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// dnsPorts returns the ports of DNS: those named dns (UDP) and dns-tcp (TCP), as in every manifest of kube-dns, else
// the only one of the transport, else the TCP port with the number of the UDP port. Charts use other names, and have
// TCP ports for metrics.
func dnsPorts(ports []slicePort) (udp, tcp uint16) {
	find := func(protocol, name string, number uint16) uint16 {
		var all []uint16
		for _, p := range ports {
			if cmp.Or(p.Protocol, "TCP") != protocol || p.Port == nil || *p.Port < 1 || *p.Port > 65535 {
				continue
			}
			if p.Name == name {
				return uint16(*p.Port)
			}
			all = append(all, uint16(*p.Port))
		}
		if len(all) == 1 {
			return all[0]
		}
		if slices.Contains(all, number) && number != 0 {
			return number
		}
		return 0
	}
	udp = find("UDP", "dns", 0)
	return udp, find("TCP", "dns-tcp", udp)
}

// resolve picks the endpoints to use from all slices; last are those in use.
func resolve(all map[string]slice, last Endpoints, seed string) Endpoints {
	var e Endpoints
	pick := func(last []netip.AddrPort, port func(slice) uint16) []netip.AddrPort {
		var picked []netip.AddrPort
		for _, is6 := range []bool{false, true} {
			var ready, ending []netip.AddrPort
			for _, s := range all {
				p := port(s)
				if p == 0 {
					continue
				}
				for _, ep := range s.endpoints {
					if ep.addr.Is6() != is6 {
						continue
					}
					if ap := netip.AddrPortFrom(ep.addr, p); ep.ready {
						ready = append(ready, ap)
					} else {
						ending = append(ending, ap)
					}
				}
			}
			use := ready
			if len(use) == 0 {
				use = ending
			}
			if len(use) == 0 {
				for _, ap := range last {
					if ap.Addr().Is6() == is6 {
						use = append(use, ap)
						e.Kept = true
					}
				}
			}
			picked = append(picked, selectEndpoints(use, seed)...)
		}
		return picked
	}
	e.UDP = pick(last.UDP, func(s slice) uint16 { return s.udp })
	e.TCP = pick(last.TCP, func(s slice) uint16 { return s.tcp })
	return e
}

// selectEndpoints sorts and deduplicates servers, and returns at most MaxEndpoints of them: those with the smallest hash of node
// and address, so that nodes spread, and a change of one endpoint changes at most one here.
func selectEndpoints(servers []netip.AddrPort, seed string) []netip.AddrPort {
	slices.SortFunc(servers, netip.AddrPort.Compare)
	servers = slices.Compact(servers)
	if len(servers) <= MaxEndpoints {
		return servers
	}
	rank := func(ap netip.AddrPort) uint64 {
		sum := sha256.Sum256([]byte(seed + " " + ap.String()))
		return binary.BigEndian.Uint64(sum[:])
	}
	slices.SortFunc(servers, func(a, b netip.AddrPort) int { return cmp.Compare(rank(a), rank(b)) })
	servers = servers[:MaxEndpoints]
	slices.SortFunc(servers, netip.AddrPort.Compare)
	return servers
}

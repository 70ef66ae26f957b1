package fastpath

import (
	"errors"
	"fmt"
	"net"
	"reflect"
	"unsafe"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/miekg/dns"
)

// What is read here has no exported way to it. Each read names the field and the type that it expects, and
// fails where a newer CoreDNS or caddy has another; its caller then leaves the queries to CoreDNS.
// TestUnexportedFields fails at build time of such a version.

// field returns a pointer to the unexported field of the struct that v points to.
func field[T any](v any, name string) (*T, error) {
	p := reflect.ValueOf(v)
	if p.Kind() != reflect.Pointer || p.IsNil() || p.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("%T is no pointer to a struct", v)
	}
	f := p.Elem().FieldByName(name)
	if !f.IsValid() {
		return nil, fmt.Errorf("%s has no field %q", p.Elem().Type(), name)
	}
	if want := reflect.TypeFor[T](); f.Type() != want {
		return nil, fmt.Errorf("field %q of %s is a %s, not a %s", name, p.Elem().Type(), f.Type(), want)
	}
	return (*T)(unsafe.Pointer(f.UnsafeAddr())), nil
}

var errNoSocket = errors.New("the instance has no UDP socket for it")

// socketOf finds the UDP socket that in has for s: caddy keeps it beside the server, in a ServerListener. All
// of them are there before the first server is served.
func socketOf(in *caddy.Instance, s *dnsserver.Server) (*net.UDPConn, error) {
	if in == nil {
		return nil, errNoSocket
	}
	listeners := in.Servers()
	for i := range listeners {
		server, err := field[caddy.Server](&listeners[i], "server")
		if err != nil {
			return nil, err
		}
		if *server != caddy.Server(s) {
			continue
		}
		packet, err := field[net.PacketConn](&listeners[i], "packet")
		if err != nil {
			return nil, err
		}
		udp, ok := (*packet).(*net.UDPConn)
		if !ok {
			return nil, fmt.Errorf("its socket is a %T", *packet)
		}
		return udp, nil
	}
	return nil, errNoSocket
}

// stockOf is where s keeps what it serves its UDP socket with. It is there before the socket is read, and stays.
func stockOf(s *dnsserver.Server) (**dns.Server, error) {
	servers, err := field[[2]*dns.Server](s, "server") // of TCP and UDP
	if err != nil {
		return nil, err
	}
	return &servers[1], nil
}

// sitesOf returns all that s serves: the blocks of the Corefile by their zones.
func sitesOf(s *dnsserver.Server) ([]*dnsserver.Config, error) {
	zones, err := field[map[string][]*dnsserver.Config](s, "zones")
	if err != nil {
		return nil, err
	}
	var sites []*dnsserver.Config
	for _, z := range *zones {
		sites = append(sites, z...)
	}
	return sites, nil
}

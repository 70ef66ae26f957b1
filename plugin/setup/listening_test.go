package setup

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
)

func read(t *testing.T, corefile string) (listening, error) {
	t.Helper()
	return readListening(caddy.CaddyfileInput{Filepath: "Corefile", Contents: []byte(corefile), ServerTypeName: "dns"}, 53)
}

func TestReadListening(t *testing.T) {
	dnsserver.Port = "53"
	for name, tt := range map[string]struct {
		corefile string
		want     listening
	}{
		"the seed's form": {`
cluster.local:53 {
    bind 169.254.25.10
    health 169.254.25.10:9254
}
.:53 {
    bind 169.254.25.10
}`, listening{bound: []netip.Addr{ip("169.254.25.10")}, health: []netip.AddrPort{ap("169.254.25.10:9254")}}},
		"several addresses, both families": {". {\n bind 169.254.25.10 fd00::10\n bind 10.0.0.1 {\n except 10.0.0.2\n }\n}",
			listening{bound: []netip.Addr{ip("169.254.25.10"), ip("fd00::10"), ip("10.0.0.1")}}},
		"no bind":              {".:53 {\n whoami\n}", listening{wildcard: true}},
		"bind to everything":   {".:53 {\n bind ::\n}", listening{wildcard: true}},
		"an interface":         {".:53 {\n bind lo\n}", listening{bound: addressesOfLoopback(t)}},
		"another port":         {".:5353 {\n whoami\n}", listening{}},
		"another transport":    {"tls://.:53 {\n whoami\n}", listening{}},
		"the port by default":  {"example.org {\n bind 169.254.25.10\n}", listening{bound: []netip.Addr{ip("169.254.25.10")}}},
		"two keys, one of DNS": {"tls://example.org dns://example.com {\n bind 169.254.25.10\n}", listening{bound: []netip.Addr{ip("169.254.25.10")}}},
		"health by default":    {".:5353 {\n health\n}", listening{health: []netip.AddrPort{ap("0.0.0.0:8080")}}},
		"health with lameduck": {".:5353 {\n health :9254 {\n lameduck 5s\n }\n}", listening{health: []netip.AddrPort{ap("0.0.0.0:9254")}}},
		"snippets":             {"(s) {\n bind 169.254.25.10\n}\n.:53 {\n import s\n}", listening{bound: []netip.Addr{ip("169.254.25.10")}}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(t, tt.corefile)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
	if _, err := read(t, ". {\n health 169.254.25.10:http\n}"); err == nil || !strings.Contains(err.Error(), "Corefile:2: health 169.254.25.10:http: port") {
		t.Errorf("a health port that is no number: %v", err)
	}
}

func addressesOfLoopback(t *testing.T) []netip.Addr {
	t.Helper()
	var l listening
	l.addBind("lo")
	if len(l.bound) == 0 {
		t.Skip("lo has no address here")
	}
	return l.bound
}

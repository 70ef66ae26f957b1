package forward

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/upstream"
)

func parseOne(t *testing.T, p *Plugin, stanza string) (*Config, error) {
	t.Helper()
	configs, err := p.parse(caddy.NewTestController("dns", stanza))
	if err != nil {
		return nil, err
	}
	if len(configs) != 1 {
		t.Fatalf("%d stanzas, want 1", len(configs))
	}
	return configs[0], nil
}

// TestProperties sets each property and looks at the one field it is for: the rest stay defaults.
func TestProperties(t *testing.T) {
	ptr := func(d time.Duration) *time.Duration { return &d }
	n32 := func(n uint32) *uint32 { return &n }
	tests := []struct {
		property string
		want     func(*Config)
	}{
		{"", func(*Config) {}},
		{"except example.org EXAMPLE.net. 10.0.0.0/23", func(c *Config) {
			c.Except = []string{"example.org.", "example.net.", "0.0.10.in-addr.arpa.", "1.0.10.in-addr.arpa."}
		}},
		{"except a\nexcept b", func(c *Config) { c.Except = []string{"a.", "b."} }},
		{"force_tcp", func(c *Config) { c.ForceTCP = true }},
		{"prefer_udp", func(c *Config) { c.PreferUDP = true }},
		{"expire 0s", func(c *Config) { c.Expire = 0 }},
		{"expire 1m", func(c *Config) { c.Expire = time.Minute }},
		{"max_age 0", func(c *Config) { c.MaxAge = ptr(0) }},
		{"max_age 10s", func(c *Config) { c.MaxAge = ptr(10 * time.Second) }},
		{"max_idle_conns 4", func(c *Config) { c.MaxIdleConns = 4 }},
		{"read_timeout 250ms", func(c *Config) { c.ReadTimeout = 250 * time.Millisecond }},
		{"max_fails 0", func(c *Config) { c.MaxFails = 0 }},
		{"max_connect_attempts 0", func(c *Config) { c.MaxConnectAttempts = n32(0) }},
		{"max_connect_attempts 7", func(c *Config) { c.MaxConnectAttempts = n32(7) }},
		{"doh_method GET", func(*Config) {}},
		{"doh_method POST", func(*Config) {}},
		{"tls_servername dns.example", func(c *Config) { c.TLSServerName = "dns.example" }},
		{"policy random", func(*Config) {}},
		{"policy round_robin", func(c *Config) { c.Policy = PolicyRoundRobin }},
		{"policy sequential", func(c *Config) { c.Policy = PolicySequential }},
		{"health_check 5s", func(c *Config) { c.HealthCheck = 5 * time.Second }},
		{"health_check 5s domain Example.org no_rec", func(c *Config) {
			c.HealthCheck, c.ProbeName, c.NoRecursion = 5*time.Second, "example.org.", true
		}},
		{"max_concurrent 1000", func(c *Config) { c.MaxConcurrent = 1000 }},
		{"next nxdomain SERVFAIL", func(c *Config) { c.Next = []int{dns.RcodeNameError, dns.RcodeServerFailure} }},
		{"next NXDOMAIN\nnext REFUSED", func(c *Config) { c.Next = []int{dns.RcodeNameError, dns.RcodeRefused} }},
		{"next_on_nodata", func(c *Config) { c.NextOnNodata = true }},
		{"failover Servfail REFUSED", func(c *Config) { c.Failover = []int{dns.RcodeServerFailure, dns.RcodeRefused} }},
		{"failfast_all_unhealthy_upstreams", func(c *Config) { c.FailFast = true }},
		{"source_address ::ffff:192.0.2.7", func(c *Config) { c.Source = netip.MustParseAddr("192.0.2.7") }},
		{"resolver 192.0.2.1 [2001:db8::1]:5353 2001:db8::2", func(c *Config) {
			c.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:5353"), netip.MustParseAddrPort("[2001:db8::2]:53")}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.property, func(t *testing.T) {
			got, err := parseOne(t, newTestPlugin(t), "forward . 192.0.2.53 {\n"+tt.property+"\n}")
			if err != nil {
				t.Fatal(err)
			}
			want := newConfig("Testfile:1")
			want.To = []string{"192.0.2.53"}
			want.Upstreams = []Upstream{{Addr: netip.MustParseAddrPort("192.0.2.53:53"), Transport: TransportDNS}}
			tt.want(want)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			group := got.group()
			for _, s := range group.Servers {
				if err := s.Validate(); err != nil {
					t.Errorf("the engine refuses what was parsed: %v", err)
				}
			}
		})
	}
}

// TestPropertiesAreTold holds the list of properties in the error against what parses.
func TestPropertiesAreTold(t *testing.T) {
	for name := range strings.SplitSeq(properties, ", ") {
		_, err := parseOne(t, newTestPlugin(t), "forward . 192.0.2.53 {\n"+name+" ? ? ? ?\n}")
		if err != nil && strings.Contains(err.Error(), "unknown property") {
			t.Errorf("%s is said to be accepted: %v", name, err)
		}
	}
}

// TestErrors wants the file and line of the mistake, and words that tell what to do.
func TestErrors(t *testing.T) {
	block := func(property string) string { return "forward . 192.0.2.53 {\n\n" + property + "\n}" }
	tests := []struct {
		stanza string
		want   string
	}{
		{"forward", "Testfile:1 - Error during parsing: Wrong argument count"},
		{"forward .", "Testfile:1 - Error during parsing: Wrong argument count"},
		{"forward " + strings.Repeat("x", 64) + " 192.0.2.53", "Testfile:1 - Error during parsing: unable to normalize 'xxx"},
		{block("blah"), "Testfile:3 - Error during parsing: unknown property 'blah' of forward: accepted are except,"},
		{block("except"), "Testfile:3 - Error during parsing: Wrong argument count or unexpected line ending after 'except'"},
		{block("force_tcp yes"), "Testfile:3 - Error during parsing: Wrong argument count or unexpected line ending after 'force_tcp'"},
		{block("prefer_udp yes"), "after 'prefer_udp'"},
		{block("expire"), "Testfile:3 - Error during parsing: Wrong argument count or unexpected line ending after 'expire'"},
		{block("expire 10"), "Testfile:3 - Error during parsing: expire: time: missing unit"},
		{block("expire -1s"), "Testfile:3 - Error during parsing: expire can't be negative: -1s"},
		{block("max_age -1s"), "max_age can't be negative"},
		{block("max_age 1s"), "Testfile:1 - Error during parsing: max_age (1s) must not be less than expire (10s)"},
		{block("max_idle_conns x"), `max_idle_conns: invalid number "x": invalid syntax`},
		{block("max_idle_conns -1"), "max_idle_conns can't be negative: -1"},
		{block("read_timeout 0s"), "read_timeout must be positive: 0s"},
		{block("max_fails -1"), `max_fails: invalid number "-1"`},
		{block("max_fails 4294967296"), "value out of range"},
		{block("max_connect_attempts"), "after 'max_connect_attempts'"},
		{block("doh_method PUT"), "unknown doh_method 'PUT': accepted are POST, GET"},
		{block("tls a b c d"), "after 'tls'"},
		{block("tls /does/not/exist"), "Testfile:3 - Error during parsing: tls /does/not/exist: "},
		{block("tls_servername"), "after 'tls_servername'"},
		{block("policy"), "after 'policy'"},
		{block("policy fastest"), "unknown policy 'fastest': accepted are random, round_robin, sequential"},
		{block("health_check"), "after 'health_check'"},
		{block("health_check no_rec"), "health_check: time: invalid duration"},
		{block("health_check -1s"), "health_check can't be negative"},
		{block("health_check 1s domain"), "after 'domain'"},
		{block("health_check 1s domain a..b"), "health_check: invalid domain name a..b"},
		{block("health_check 1s rec"), "health_check: unknown option rec: accepted are no_rec and domain FQDN"},
		{block("max_concurrent -1"), "max_concurrent can't be negative: -1"},
		{block("next"), "after 'next'"},
		{block("next OOPS"), "next: OOPS is not a valid rcode"},
		{block("next_on_nodata yes"), "after 'next_on_nodata'"},
		{block("failover"), "after 'failover'"},
		{block("failover NOERROR"), "NoError cannot be used in failover"},
		{block("failfast_all_unhealthy_upstreams false"), "Wrong argument count"},
		{block("source_address x"), "Testfile:3 - Error during parsing: invalid IP address: x"},
		{block("resolver"), "after 'resolver'"},
		{block("resolver dns.example"), `resolver must be an IP address or IP:port: "dns.example"`},
		{"\nforward . tls://192.0.2.53%a.example {\ntls_servername b.example\n}",
			"Testfile:2 - Error during parsing: both forward ('b.example') and proxy level ('a.example') TLS servernames are set"},
		{"forward . https://192.0.2.53", "Testfile:1 - Error during parsing: 'https' is CoreDNS's but not built into localcache's forward"},
		{"forward . quic://192.0.2.53", "'quic' is CoreDNS's but not built into localcache's forward"},
		{"forward . grpc://192.0.2.53", "'grpc' is not supported as a destination protocol in forward: grpc://192.0.2.53"},
		{"forward . unix:///run/dns", "'unix' is not supported as a destination protocol"},
		{"forward . tls://", `invalid address: "tls://"`},
		{"forward . 192.0.2.53:0", `invalid port "0"`},
		{"forward . 192.0.2.53:65536", `invalid port "65536"`},
		{"forward . /does/not/exist", `not an IP address or file "/does/not/exist"`},
		{"forward . a..b", `not an IP address, file, or valid domain: "a..b"`},
		{"forward . nowhere.example", `Testfile:1 - Error during parsing: failed to resolve "nowhere.example": lookup nowhere.example.: no such host`},
		{"forward ." + strings.Repeat(" 192.0.2.53", 16), "more than 15 TOs configured: 16"},
	}
	for _, tt := range tests {
		t.Run(tt.want, func(t *testing.T) {
			_, err := parseOne(t, newTestPlugin(t), tt.stanza)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%q:\ngot  %v\nwant %s", tt.stanza, err, tt.want)
			}
		})
	}
}

// TestTo covers every form of TO, and that an upstream which is named twice is asked once.
func TestTo(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	resolv := write("resolv.conf", "# nameserver 192.0.2.9\nsearch example\nnameserver 192.0.2.1\nnameserver 2001:db8::1%eth0\nnameserver fe80::1%eth0\n")
	empty := write("empty.conf", "# nothing\n")
	broken := write("broken.conf", "nameserver dns.example\n")

	p := newTestPlugin(t)
	p.systemLookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		if name != "dns.example." {
			return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
		}
		return []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("2001:db8::10")}, nil
	}
	tests := []struct{ to, want string }{
		{"192.0.2.1", "dns 192.0.2.1:53"},
		{"dns://192.0.2.1:5353", "dns 192.0.2.1:5353"},
		{"2001:db8::1", "dns [2001:db8::1]:53"},
		{"[2001:db8::1]", "dns [2001:db8::1]:53"},
		{"[2001:db8::1]:54", "dns [2001:db8::1]:54"},
		{"::ffff:192.0.2.1", "dns 192.0.2.1:53"},
		{"0.0.0.0", "dns 127.0.0.1:53"},
		{"[::]:54", "dns [::1]:54"},
		{"fe80::1%eth0", "dns [fe80::1%eth0]:53"},
		{"[fe80::1%eth0]:54", "dns [fe80::1%eth0]:54"},
		{"2001:db8::1%eth0", "dns [2001:db8::1]:53"},
		{"tls://192.0.2.1", "tls 192.0.2.1:853"},
		{"tls://192.0.2.1%dns.example", "tls 192.0.2.1:853 dns.example"},
		{"tls://192.0.2.1%dns.example:10853", "tls 192.0.2.1:10853 dns.example"},
		{"tls://[2001:db8::1%dns.example]:10853", "tls [2001:db8::1]:10853 dns.example"},
		{"tls://fe80::1%dns.example", "tls [fe80::1]:853 dns.example"},
		{"dns.example", "dns 192.0.2.10:53, dns [2001:db8::10]:53"},
		{"dns.example.:54", "dns 192.0.2.10:54, dns [2001:db8::10]:54"},
		{"tls://dns.example%sni.example:54", "tls 192.0.2.10:54 sni.example, tls [2001:db8::10]:54 sni.example"},
		{resolv, "dns 192.0.2.1:53, dns [2001:db8::1]:53, dns [fe80::1%eth0]:53"},
		{resolv + " 192.0.2.1 192.0.2.2", "dns 192.0.2.1:53, dns [2001:db8::1]:53, dns [fe80::1%eth0]:53, dns 192.0.2.2:53"},
		{empty + " 192.0.2.1", "dns 192.0.2.1:53"},
		{"192.0.2.1 192.0.2.1:53 tls://192.0.2.1:53", "dns 192.0.2.1:53, tls 192.0.2.1:53"},
		{"tls://192.0.2.1%a tls://192.0.2.1%A tls://192.0.2.1%b", "tls 192.0.2.1:853 a, tls 192.0.2.1:853 b"},
		{"tls://192.0.2.1 tls://192.0.2.1%192.0.2.1 tls://[::ffff:192.0.2.1]:853", "tls 192.0.2.1:853"},
		{"tls://[2001:db8::A%2001:db8::a]:853 tls://2001:db8::a", "tls [2001:db8::a]:853 2001:db8::a"},
		{empty, "error: no valid upstream addresses found"},
		{broken, `error: nameserver "dns.example" is not an IP address`},
		{dir, "error: not an IP address or file"},
		{"tls://" + resolv, "error: a file lists plain DNS servers"},
	}
	for _, tt := range tests {
		t.Run(tt.to, func(t *testing.T) {
			cfg, err := parseOne(t, p, "forward . "+tt.to)
			if words, wrong := strings.CutPrefix(tt.want, "error: "); wrong {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("got %v, want %s", err, words)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, u := range cfg.Upstreams {
				got = append(got, strings.TrimSpace(string(u.Transport)+" "+u.String()+" "+u.ServerName))
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

// TestDuplicates: a stanza that names an upstream twice starts, as in CoreDNS.
func TestDuplicates(t *testing.T) {
	for _, to := range []string{
		"192.0.2.53 192.0.2.53", "dns://192.0.2.53 192.0.2.53:53", "tls://1.1.1.1 tls://1.1.1.1",
		"tls://1.1.1.1 tls://1.1.1.1%1.1.1.1", "tls://1.1.1.1%a.example tls://1.1.1.1%A.example",
	} {
		h := chainOf(t, newTestPlugin(t), "forward . "+to).(*handler)
		if n := len(h.config.group().Servers); n != 1 {
			t.Errorf("%q: %d upstreams", to, n)
		}
	}
}

// TestResolver looks a host name up at the resolvers of the stanza, of which the first is dead.
func TestResolver(t *testing.T) {
	server := serve(t, func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg).SetReply(r)
		rr := map[uint16]string{dns.TypeA: "dns.example. 1 IN A 192.0.2.10", dns.TypeAAAA: "dns.example. 1 IN AAAA 2001:db8::10"}[r.Question[0].Qtype]
		m.Answer = []dns.RR{mustRR(t, rr)}
		w.WriteMsg(m)
	})
	cfg, err := parseOne(t, newTestPlugin(t), "forward . dns.example:54 {\nresolver "+deadAddr(t)+" "+server.addr+"\n}")
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.Upstreams) != 2 || cfg.Upstreams[0].String() != "192.0.2.10:54" || cfg.Upstreams[1].String() != "[2001:db8::10]:54" {
		t.Errorf("got %v", cfg.Upstreams)
	}
	dead := deadAddr(t)
	_, err = parseOne(t, newTestPlugin(t), "forward . dns.example {\nresolver "+dead+"\n}")
	if err == nil || !strings.Contains(err.Error(), "resolver "+dead) {
		t.Errorf("the error does not name the resolver %s: %v", dead, err)
	}
}

// TestFromNetwork reads a network in CIDR notation; of several zones only the first counts, as in CoreDNS.
func TestFromNetwork(t *testing.T) {
	for from, want := range map[string]string{"10.9.0.0/16": "9.10.in-addr.arpa.", "10.9.3.0/18": "0.9.10.in-addr.arpa.", "Example.ORG:53": "example.org."} {
		cfg, err := parseOne(t, newTestPlugin(t), "forward "+from+" 192.0.2.53")
		if err != nil {
			t.Fatal(err)
		}
		if cfg.From != want {
			t.Errorf("%s: got %s, want %s", from, cfg.From, want)
		}
	}
}

// TestGroup covers what a stanza means to the engine where the two count differently.
func TestGroup(t *testing.T) {
	tests := []struct {
		property string
		check    func(upstream.GroupConfig) any
		want     any
	}{
		{"expire 0s", func(g upstream.GroupConfig) any { return g.Servers[0].Expire }, time.Millisecond},
		{"", func(g upstream.GroupConfig) any { return g.Servers[0].MaxAge }, upstream.DefaultMaxAge},
		{"expire 2m", func(g upstream.GroupConfig) any { return g.Servers[0].MaxAge }, 2 * time.Minute},
		{"max_age 0", func(g upstream.GroupConfig) any { return g.Servers[0].MaxAge > 24*time.Hour }, true},
		{"", func(g upstream.GroupConfig) any { return g.MaxAttempts }, 0},
		{"max_connect_attempts 0", func(g upstream.GroupConfig) any { return g.MaxAttempts }, 16},
		{"max_connect_attempts 1", func(g upstream.GroupConfig) any { return g.MaxAttempts }, 1},
		{"max_connect_attempts 4000000000", func(g upstream.GroupConfig) any { return g.MaxAttempts }, 16},
		{"", func(g upstream.GroupConfig) any { return g.Budget }, upstream.DefaultBudget},
		{"read_timeout 4s", func(g upstream.GroupConfig) any { return g.Budget }, 4 * time.Second},
		{"source_address 2001:db8::1", func(g upstream.GroupConfig) any { return g.Servers[0].Source.IsValid() }, false},
		{"source_address 192.0.2.1", func(g upstream.GroupConfig) any { return g.Servers[0].Source.String() }, "192.0.2.1"},
		{"max_fails 0", func(g upstream.GroupConfig) any { return g.Servers[0].Health.MaxFails }, 0},
	}
	for _, tt := range tests {
		cfg, err := parseOne(t, newTestPlugin(t), "forward . 192.0.2.53 {\n"+tt.property+"\n}")
		if err != nil {
			t.Fatal(err)
		}
		if got := tt.check(cfg.group()); got != tt.want {
			t.Errorf("%q: got %v, want %v", tt.property, got, tt.want)
		}
	}
}

// TestTLS covers the name that a certificate has to have, and that the files' content tells one
// configuration from another: a certificate that is renewed in place needs new connections.
func TestTLS(t *testing.T) {
	ca := filepath.Join(t.TempDir(), "ca.pem")
	writeCA := func() {
		t.Helper()
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour), IsCA: true}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	server := func(stanza string) upstream.ServerConfig {
		t.Helper()
		cfg, err := parseOne(t, newTestPlugin(t), stanza)
		if err != nil {
			t.Fatal(err)
		}
		return cfg.group().Servers[0]
	}
	writeCA()
	for stanza, want := range map[string]string{
		"forward . tls://192.0.2.1":                                     "192.0.2.1",
		"forward . tls://192.0.2.1%a.example":                           "a.example",
		"forward . tls://192.0.2.1 {\ntls_servername b.example\n}":      "b.example",
		"forward . tls://192.0.2.1%c.example {\ntls " + ca + "\n}":      "c.example",
		"forward . tls://[2001:db8::1]:853 {\ntls\n}":                   "2001:db8::1",
		"forward . tls://192.0.2.1 192.0.2.2 {\ntls_servername d.ex\n}": "d.ex",
	} {
		if got := server(stanza).TLS.ServerName; got != want {
			t.Errorf("%q: got the name %s, want %s", stanza, got, want)
		}
	}
	if s := server("forward . 192.0.2.1 {\ntls\ntls_servername a.example\n}"); s.TLS != nil {
		t.Error("dns:// speaks TLS where the stanza has a tls property")
	}
	with := "forward . tls://192.0.2.1 {\ntls " + ca + "\n}"
	first := server(with)
	if again := server(with); again.TLSName != first.TLSName {
		t.Errorf("the same files have the names %q and %q", first.TLSName, again.TLSName)
	}
	// Of the same length, so that it is the content that tells.
	size := func() int64 {
		info, err := os.Stat(ca)
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := size()
	for writeCA(); size() != before; {
		writeCA()
	}
	if renewed := server(with); renewed.TLSName == first.TLSName {
		t.Errorf("a renewed file has the name of the old one: %q", first.TLSName)
	}
	if other := server("forward . tls://192.0.2.1%x {\ntls " + ca + "\n}"); other.TLSName == server(with).TLSName {
		t.Errorf("two server names make one TLSName: %q", other.TLSName)
	}
}

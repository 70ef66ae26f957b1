package corefile

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func TestKubeDNSErrors(t *testing.T) {
	const stubs, ups = "/cm/stubDomains", "/cm/upstreamNameservers"
	long := strings.Repeat("a", 64)
	for _, tc := range []struct{ name, stubs, upstreams, want string }{
		{"syntax", "{\n\"a\": [\"1.1.1.1\"],\n}", "", stubs + ":3: not valid JSON: invalid character '}' looking for beginning of object key string"},
		{"cut off", `{"a": [`, "", stubs + ":1: not valid JSON: unexpected end of JSON input"},
		{"more behind", `{} x`, "", stubs + ":1: not valid JSON: invalid character 'x' after top-level value"},
		{"list of stubs", `["1.1.1.1"]`, "", stubs + `: want an object like {"example.com": ["10.0.0.1"]}, found ["1.1.1.1"]`},
		{"string for a list", "{\"a.b\":\n \"1.1.1.1\"}", "", stubs + `: "a.b": want a list of servers like ["10.0.0.1"], found "1.1.1.1"`},
		{"no servers", `{"a.b": []}`, "", stubs + `: "a.b": no servers`},
		{"null for a list", `{"a.b": null}`, "", stubs + `: "a.b": no servers`},
		{"null for a server", `{"a.b": [null]}`, "", stubs + `: "a.b": server "" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"name for a server", `{"a.b": ["ns.a.b"]}`, "", stubs + `: "a.b": server "ns.a.b" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"transport", `{"a.b": ["tls://1.1.1.1"]}`, "", stubs + `: "a.b": server "tls://1.1.1.1" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"injected directive", `{"a.b": ["1.1.1.1\n} .:53 {"]}`, "", stubs + `: "a.b": server "1.1.1.1\n} .:53 {" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"zone", `{"a.b": ["fe80::1%eth0"]}`, "", stubs + `: "a.b": server "fe80::1%eth0" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"port 0", `{"a.b": ["1.1.1.1:0"]}`, "", stubs + `: "a.b": server "1.1.1.1:0" has port 0`},
		{"port too large", `{"a.b": ["1.1.1.1:65536"]}`, "", stubs + `: "a.b": server "1.1.1.1:65536" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"unspecified", `{"a.b": ["0.0.0.0"]}`, "", stubs + `: "a.b": server "0.0.0.0" is not the address of a server`},
		{"loop", `{"a.b": ["10.0.0.10"]}`, "", stubs + `: "a.b": server "10.0.0.10" is this cache itself (-localip 10.0.0.10): its queries would go round in a loop`},
		{"root", `{".": ["1.1.1.1"]}`, "", stubs + `: ".": the root is not a stub domain; servers for all other names belong into upstreamNameservers`},
		{"empty domain", `{"": ["1.1.1.1"]}`, "", stubs + `: "": the domain is empty`},
		{"empty label", `{"a..b": ["1.1.1.1"]}`, "", stubs + `: "a..b": the domain has an empty label`},
		{"long label", `{"` + long + `.b": ["1.1.1.1"]}`, "", stubs + `: "` + long + `.b": label "` + long + `" has 64 octets, at most 63 are allowed`},
		{"long domain", `{"` + strings.Repeat("a.", 126) + `ab": ["1.1.1.1"]}`, "", stubs + `: "` + strings.Repeat("a.", 126) + `ab": the domain has 254 octets, at most 253 are allowed`},
		{"hyphen", `{"-a.b": ["1.1.1.1"]}`, "", stubs + `: "-a.b": label "-a" begins or ends with a hyphen`},
		{"injected block", `{"a {\n}": ["1.1.1.1"]}`, "", stubs + `: "a {\n}": label "a {\n}" has " "; letters, digits, "-" and "_" are allowed`},
		{"not ASCII", `{"bücher.example": ["1.1.1.1"]}`, "", stubs + `: "bücher.example": label "bücher" has "ü"; letters, digits, "-" and "_" are allowed`},
		{"address for a domain", `{"10.0.0.1": ["1.1.1.1"]}`, "", stubs + `: "10.0.0.1": is an IP address, not a domain`},
		{"twice", `{"a.b": ["1.1.1.1"], "A.b.": ["2.2.2.2"]}`, "", stubs + `: "A.b.": the domain is given twice, before as "a.b"`},
		{"16 servers", `{"a.b": [` + strings.Repeat(`"1.1.1.1",`, 15) + `"1.1.1.1"]}`, "", stubs + `: "a.b": 16 servers, at most 15 are allowed`},

		{"upstream syntax", "", `["8.8.8.8"`, ups + ":1: not valid JSON: unexpected end of JSON input"},
		{"upstream object", "", `{"a": ["a long value of more than forty octets"]}`, ups + `: want a list of servers like ["10.0.0.1"], found {"a":["a long value of more than forty o…`},
		{"four upstreams", "", `["1.1.1.1","1.1.1.2","1.1.1.3","1.1.1.4"]`, ups + ": 4 servers, at most 3 are allowed"},
		{"upstream name", "", `["dns.google"]`, ups + `: server "dns.google" is not an IP address or IP:port ([IP]:port for IPv6)`},
		{"upstream loop", "", `["169.254.20.10:53"]`, ups + `: server "169.254.20.10:53" is this cache itself (-localip 169.254.20.10): its queries would go round in a loop`},

		{"all at once", `{"a.b": [], "c..d": ["1.1.1.1"]}`, `["x", "y"]`, stubs + `: "a.b": no servers` + "\n" +
			stubs + `: "c..d": the domain has an empty label` + "\n" +
			ups + `: server "x" is not an IP address or IP:port ([IP]:port for IPv6)` + "\n" + ups + `: server "y" is not an IP address or IP:port ([IP]:port for IPv6)`},
	} {
		_, err := node().parseKubeDNS("/cm", []byte(tc.stubs), []byte(tc.upstreams))
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s:\n got %v\nwant %s", tc.name, err, tc.want)
		}
	}
}

func TestKubeDNSAccepts(t *testing.T) {
	for _, tc := range []struct {
		name, stubs, upstreams string
		want                   kubeDNS
	}{
		{"no keys", "", "", kubeDNS{}},
		{"blank", " \n", "\n", kubeDNS{}},
		{"null", "null", "null", kubeDNS{}},
		{"empty", "{}", "[]", kubeDNS{stubs: map[string][]string{}}},
		{"forms", `{"A.b.": ["1.1.1.1", "1.1.1.1:53", "1.1.1.1:5353", "2001:DB8::1", "[2001:db8::1]:53", "[2001:db8::1]:54"]}`, `["8.8.8.8:53"]`,
			kubeDNS{
				stubs:     map[string][]string{"a.b": {"1.1.1.1", "1.1.1.1", "1.1.1.1:5353", "2001:db8::1", "2001:db8::1", "[2001:db8::1]:54"}},
				upstreams: []string{"8.8.8.8"},
			}},
		{"another port of this host", `{"a.b": ["10.0.0.10:5353"]}`, "", kubeDNS{stubs: map[string][]string{"a.b": {"10.0.0.10:5353"}}}},
	} {
		got, err := node().parseKubeDNS("/cm", []byte(tc.stubs), []byte(tc.upstreams))
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		tc.want.dir = "/cm"
		if !reflect.DeepEqual(*got, tc.want) {
			t.Errorf("%s:\n got %+v\nwant %+v", tc.name, *got, tc.want)
		}
	}
}

func TestStubsBesideTheTemplate(t *testing.T) {
	const at = " of /cm/stubDomains"
	taken := func(line string) string {
		return `stub domain "a.b"` + at + " has a server block of its own at Corefile.base:" + line + ": remove one of the two"
	}
	for _, tc := range []struct{ name, template, want string }{
		{"taken", ". {\n}\na.b:53 {\n}\n", taken("3")},
		{"taken without a port", "A.B. {\n}\n", taken("1")},
		{"taken among others", "x, a.b {\n}\n", taken("1")},
		{"taken with a scheme", "\ndns://a.b:53 {\n}\n", taken("2")},
		{"taken twice is said once", "a.b {\n bind 169.254.20.10\n}\na.b {\n bind 10.0.0.10\n}\n", taken("1")},
		{"another port", "a.b:5353 {\n}\n", ""},
		{"another transport", "tls://a.b {\n}\n", ""},
		{"another address", "a.b {\n bind 127.0.0.1\n}\n", ""},
		{"a parent", "b {\n}\n", ""},
		{"in a comment", "# a.b:53 {\n. {\n}\n", ""},
		{"a snippet", "(a.b) {\n errors\n}\n. {\n import a.b\n}\n", ""},
		{"no braces", ".:53\nerrors\n", "Corefile.base:1: the server block has no braces: put them round its directives, so that the stub domains" + at + " can follow"},
		{"open block", "\n. {\n errors\n", "Corefile.base:2: the server block is not closed: the stub domains" + at + " cannot follow"},
		{"open quote", ". {\n}\n\"", "Corefile.base:3: the quote that begins here is not closed: the stub domains" + at + " cannot follow"},
	} {
		got, err := node().render(inputs{file: "Corefile.base", template: []byte(tc.template), dir: "/cm", stubs: []byte(`{"a.b": ["1.1.1.1"]}`)})
		switch {
		case tc.want == "" && err != nil:
			t.Errorf("%s: %v", tc.name, err)
		case tc.want == "" && !strings.HasSuffix(string(got), "a.b:53 {\n    errors\n    cache 30\n    bind 169.254.20.10 10.0.0.10\n    forward . 1.1.1.1\n}\n"):
			t.Errorf("%s: the stub domain is missing in %q", tc.name, got)
		case tc.want != "" && (err == nil || err.Error() != tc.want):
			t.Errorf("%s:\n got %v\nwant %s", tc.name, err, tc.want)
		}
	}
}

func TestStubsWithoutLocalIP(t *testing.T) {
	o := &Options{Port: 1053, Getenv: env{}.get}
	in := inputs{file: "Corefile", template: []byte(".:1053 {\n}"), dir: "/cm", stubs: []byte(`{"a.b": ["1.1.1.1"]}`)}
	got, err := o.render(in)
	want := ".:1053 {\n}\n\n# Stub domains of the kube-dns ConfigMap.\na.b:1053 {\n    errors\n    cache 30\n    forward . 1.1.1.1\n}\n"
	if err != nil || string(got) != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	// A stub block on all addresses would never be asked at the address that the other block binds.
	in.template = []byte(".:1053 {\n  bind 127.0.0.1\n}")
	wantErr := "Corefile:2: bind listens on chosen addresses, and the stub domains of /cm/stubDomains need the same: give them with -localip"
	if got, err := o.render(in); err == nil || err.Error() != wantErr {
		t.Errorf("got %q, %v, want %s", got, err, wantErr)
	}
}

func FuzzKubeDNS(f *testing.F) {
	f.Add([]byte(`{"widget.local": ["2.2.2.2:10053", "[2001:db8::1]:53"], "A.b.": ["1.1.1.1"]}`), []byte(`["8.8.8.8", "2001:db8::1"]`))
	f.Add([]byte(`null`), []byte(" "))
	f.Add([]byte(`{"a {\n}": ["1.1.1.1"], "b": "c"}`), []byte(`{"a": 1e400}`))
	f.Fuzz(func(t *testing.T, stubs, upstreams []byte) {
		o := node()
		k, err := o.parseKubeDNS("/cm", stubs, upstreams)
		if err != nil {
			return
		}
		if len(k.upstreams) > maxUpstreams {
			t.Fatalf("%d upstreams", len(k.upstreams))
		}
		for _, list := range append([][]string{k.upstreams}, valuesOf(k.stubs)...) {
			for _, s := range list {
				if _, err := netip.ParseAddr(s); err == nil {
					continue
				}
				if _, err := netip.ParseAddrPort(s); err != nil {
					t.Fatalf("server %q: %v", s, err)
				}
			}
		}
		if len(k.stubs) > 0 && !json.Valid(stubs) {
			t.Fatalf("stub domains from what is not JSON: %q", stubs)
		}
		// An accepted value makes exactly one server block for a domain: nothing can be smuggled in.
		content, err := o.appendStubs("f", []byte(". {\n}\n"), k)
		if err != nil {
			t.Fatal(err)
		}
		tokens, unclosed := scan(content)
		blocks := serverBlocks(tokens)
		if len(blocks) != 1+len(k.stubs) || unclosed != 0 {
			t.Fatalf("%d stub domains make %d blocks:\n%s", len(k.stubs), len(blocks)-1, content)
		}
		for _, b := range blocks[1:] {
			zone, port, ok := splitKey(b.keys[0].text, o.Port)
			if len(b.keys) != 1 || !ok || port != o.Port || k.stubs[zone] == nil || !b.closed || len(b.binds) != len(o.LocalIPs) {
				t.Fatalf("block %q of\n%s", texts(b.keys), content)
			}
		}
	})
}

func valuesOf(m map[string][]string) [][]string {
	var lists [][]string
	for _, l := range m {
		lists = append(lists, l)
	}
	return lists
}

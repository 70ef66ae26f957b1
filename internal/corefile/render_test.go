package corefile

import (
	"bytes"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// env is the environment of a test.
type env map[string]string

func (e env) get(name string) string { return e[name] }

// node gives the options of a node of service-IP mode, complete.
func node() *Options {
	return &Options{
		LocalIPs:       []netip.Addr{netip.MustParseAddr("169.254.20.10"), netip.MustParseAddr("10.0.0.10")},
		Port:           53,
		UpstreamSvc:    "kube-dns-upstream",
		PrometheusAddr: ":9253",
		Getenv: env{
			"KUBE_DNS_UPSTREAM_SERVICE_HOST": "10.0.171.5",
			"CLUSTER_DOMAIN":                 "cluster.local",
		}.get,
	}
}

// node6 is node with IPv6 addresses alone.
func node6() *Options {
	o := node()
	o.LocalIPs = []netip.Addr{netip.MustParseAddr("fd00::10"), netip.MustParseAddr("fd00::a")}
	o.Getenv = env{"KUBE_DNS_UPSTREAM_SERVICE_HOST": "fd00:1::5", "CLUSTER_DOMAIN": "example.org."}.get
	return o
}

// kubespray gives the options of "-localip 169.254.25.10 -upstreamsvc coredns", in a pod that knows no
// such Service.
func kubespray() *Options {
	return &Options{LocalIPs: []netip.Addr{netip.MustParseAddr("169.254.25.10")}, Port: 53, UpstreamSvc: "coredns", Getenv: env{}.get}
}

func TestRenderGolden(t *testing.T) {
	const stubs = `{"widget.local": ["2.2.2.2:10053", "2001:db8::1", "[2001:db8::2]:5353"],
		"Acme.Local.": ["1.1.1.1:53"], "_msdcs.ad.example": ["10.9.9.9"]}`
	for _, tc := range []struct {
		name, template   string
		opt              *Options
		stubs, upstreams string
	}{
		{name: "addon", template: "addon.base", opt: node()},
		{name: "addon-ipv6", template: "addon.base", opt: node6()},
		{name: "addon-kubedns", template: "addon.base", opt: node(), stubs: stubs, upstreams: `["2.2.2.2:10053", "3.3.3.3"]`},
		{name: "kubespray", template: "kubespray.corefile", opt: kubespray()},
		{name: "kubespray-kubedns", template: "kubespray.corefile", opt: kubespray(), stubs: stubs, upstreams: `["3.3.3.3"]`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			template, err := os.ReadFile(filepath.Join("testdata", tc.template))
			if err != nil {
				t.Fatal(err)
			}
			in := inputs{file: tc.template, template: template, dir: "/etc/kube-dns", stubs: []byte(tc.stubs), upstreams: []byte(tc.upstreams)}
			got, err := tc.opt.render(in)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", tc.name+".golden")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("rendered %s differs from %s:\n%s", tc.template, golden, got)
			}
			if tc.template == "kubespray.corefile" && !bytes.HasPrefix(got, template) {
				t.Error("a template without placeholders was changed")
			}
		})
	}
}

// render1 renders template alone.
func render1(o *Options, template string) (string, error) {
	b, err := o.render(inputs{file: "Corefile.base", template: []byte(template)})
	return string(b), err
}

func TestRenderText(t *testing.T) {
	for _, tc := range []struct{ name, template, want string }{
		{"empty", "", ""},
		{"no final newline", "bind __PILLAR__LOCAL__DNS__", "bind 169.254.20.10 10.0.0.10"},
		{"carriage returns", ".:53 {\r\n bind __PILLAR__LOCAL__DNS__\r\n}\r\n", ".:53 {\r\n bind 169.254.20.10 10.0.0.10\r\n}\r\n"},
		{"byte order mark", "\ufeff__PILLAR__DNS__DOMAIN__:53 {\n}\n", "\ufeffcluster.local:53 {\n}\n"},
		{"inside a word", "x.__PILLAR__DNS__DOMAIN__:53", "x.cluster.local:53"},
		{"first address inside a word", "health __PILLAR__LOCAL__DNS__:8080", "health 169.254.20.10:8080"},
		{"quoted", `bind "__PILLAR__LOCAL__DNS__"`, `bind "169.254.20.10 10.0.0.10"`},
		{"nothing for the server", "bind 1.2.3.4 __PILLAR__DNS__SERVER__\n", "bind 1.2.3.4 \n"},
		{"comment line", "# __PILLAR__NOT__KNOWN__\n", "# __PILLAR__NOT__KNOWN__\n"},
		{"comment behind a word", "errors # __PILLAR__LOCAL__DNS__", "errors # __PILLAR__LOCAL__DNS__"},
		{"comment glued to a word", "errors#__PILLAR__NOT__KNOWN__", "errors#__PILLAR__NOT__KNOWN__"},
		{"hash in quotes", `log "# __PILLAR__DNS__DOMAIN__"`, `log "# cluster.local"`},
		{"two in one word", "__PILLAR__DNS__DOMAIN__/__PILLAR__CLUSTER__DNS__", "cluster.local/10.0.171.5"},
		{"the node's resolvers keep force_tcp", "forward . __PILLAR__UPSTREAM__SERVERS__ {\n force_tcp\n}", "forward . /etc/resolv.conf {\n force_tcp\n}"},
	} {
		got, err := render1(node(), tc.template)
		if err != nil || got != tc.want {
			t.Errorf("%s: render(%q) = %q, %v, want %q", tc.name, tc.template, got, err, tc.want)
		}
	}
}

func TestRenderPlaceholderErrors(t *testing.T) {
	const known = "known are __PILLAR__DNS__DOMAIN__, __PILLAR__LOCAL__DNS__, __PILLAR__DNS__SERVER__, __PILLAR__CLUSTER__DNS__, " +
		"__PILLAR__UPSTREAM__SERVERS__, __PROMETHEUS__ENDPOINT__"
	bare := &Options{Port: 53, UpstreamSvc: "coredns", Getenv: env{}.get}
	with := func(name, value string) *Options {
		o := node()
		o.Getenv = env{name: value}.get
		return o
	}
	metrics := func(addr string) *Options {
		o := node()
		o.PrometheusAddr = addr
		return o
	}
	for _, tc := range []struct {
		name     string
		opt      *Options
		template string
		want     string
	}{
		{"domain", bare, "\n\n__PILLAR__DNS__DOMAIN__:53 {\n}", "Corefile.base:3: __PILLAR__DNS__DOMAIN__ needs the environment variable CLUSTER_DOMAIN, for example cluster.local"},
		{"bad domain", with("CLUSTER_DOMAIN", "a b"), "__PILLAR__DNS__DOMAIN__", `Corefile.base:1: __PILLAR__DNS__DOMAIN__: environment variable CLUSTER_DOMAIN="a b": label "a b" has " "; letters, digits, "-" and "_" are allowed`},
		{"root domain", with("CLUSTER_DOMAIN", "."), "__PILLAR__DNS__DOMAIN__", `Corefile.base:1: __PILLAR__DNS__DOMAIN__: environment variable CLUSTER_DOMAIN=".": the domain is the root`},
		{"local", bare, "bind __PILLAR__LOCAL__DNS__", "Corefile.base:1: __PILLAR__LOCAL__DNS__ needs -localip"},
		{"server", bare, "bind __PILLAR__DNS__SERVER__", "Corefile.base:1: __PILLAR__DNS__SERVER__ needs -localip"},
		{"cluster", bare, "forward . __PILLAR__CLUSTER__DNS__", `Corefile.base:1: __PILLAR__CLUSTER__DNS__ needs the environment variable COREDNS_SERVICE_HOST, which the kubelet sets in pods of the namespace of Service "coredns" if that is older than the pod: create the Service, or name another with -upstreamsvc`},
		{"headless", with("KUBE_DNS_UPSTREAM_SERVICE_HOST", "None"), "forward . __PILLAR__CLUSTER__DNS__", `Corefile.base:1: __PILLAR__CLUSTER__DNS__: environment variable KUBE_DNS_UPSTREAM_SERVICE_HOST="None" is not an IP address: Service "kube-dns-upstream" must have a cluster IP, or name another with -upstreamsvc`},
		{"metrics", bare, "prometheus __PROMETHEUS__ENDPOINT__", "Corefile.base:1: __PROMETHEUS__ENDPOINT__ needs -prometheus-listen-address, for example :9253"},
		{"bad metrics", metrics("9253"), "prometheus __PROMETHEUS__ENDPOINT__", `Corefile.base:1: __PROMETHEUS__ENDPOINT__: -prometheus-listen-address "9253" is not HOST:PORT`},
		{"two words of metrics", metrics("a b:1"), "prometheus __PROMETHEUS__ENDPOINT__", `Corefile.base:1: __PROMETHEUS__ENDPOINT__: -prometheus-listen-address "a b:1" is not HOST:PORT`},
		{"unknown", node(), "errors\nbind __PILLAR__LOCAL_DNS__", "Corefile.base:2: unknown placeholder __PILLAR__LOCAL_DNS__; " + known},
		{"unfinished", node(), "bind __PILLAR__LOCAL__DNS", "Corefile.base:1: unknown placeholder __PILLAR__LOCAL__DNS; " + known},
		{"unknown of prometheus", node(), "prometheus __PROMETHEUS__PORT__", "Corefile.base:1: unknown placeholder __PROMETHEUS__PORT__; " + known},
		{"line within quotes", node(), "log \"a\n\n__PILLAR__X__\"", "Corefile.base:3: unknown placeholder __PILLAR__X__; " + known},
		{"all at once", bare, "__PILLAR__X__\nbind __PILLAR__LOCAL__DNS__\nerrors\nbind __PILLAR__LOCAL__DNS__ __PILLAR__LOCAL__DNS__\nbind __PILLAR__LOCAL__DNS__\nforward . __PILLAR__UPSTREAM__SERVERS__\nprometheus __PROMETHEUS__ENDPOINT__",
			"Corefile.base:1: unknown placeholder __PILLAR__X__; " + known + "\n" +
				"Corefile.base:2: __PILLAR__LOCAL__DNS__ needs -localip (also on lines 4, 5)\n" +
				"Corefile.base:7: __PROMETHEUS__ENDPOINT__ needs -prometheus-listen-address, for example :9253"},
		{"two lines", bare, strings.Repeat("__PILLAR__LOCAL__DNS__\n", 2), "Corefile.base:1: __PILLAR__LOCAL__DNS__ needs -localip (also on line 2)"},
		{"many lines", bare, strings.Repeat("__PILLAR__LOCAL__DNS__\n", 14), "Corefile.base:1: __PILLAR__LOCAL__DNS__ needs -localip (also on lines 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 3 more)"},
	} {
		got, err := render1(tc.opt, tc.template)
		if err == nil || err.Error() != tc.want {
			t.Errorf("%s: render(%q) = %q\n%v\nwant\n%s", tc.name, tc.template, got, err, tc.want)
		}
	}
}

func TestCustomUpstreamsDropForceTCP(t *testing.T) {
	for _, tc := range []struct{ name, template, want string }{
		{"only option",
			".:53 {\n\tforward . __PILLAR__UPSTREAM__SERVERS__ {\n\t\tforce_tcp\n\t}\n}\n",
			".:53 {\n\tforward . 8.8.8.8 {\n\t\t\n\t}\n}\n"},
		{"among others",
			"forward  .   __PILLAR__UPSTREAM__SERVERS__   {\r\n  max_fails 2\r\n  force_tcp # over TCP\r\n  policy random\r\n}\r\n",
			"forward  .   8.8.8.8   {\r\n  max_fails 2\r\n   # over TCP\r\n  policy random\r\n}\r\n"},
		{"on one line", "forward . __PILLAR__UPSTREAM__SERVERS__ { force_tcp }", "forward . 8.8.8.8 {  }"},
		{"beside other servers", "forward . 1.1.1.1 __PILLAR__UPSTREAM__SERVERS__ {\nforce_tcp\n}", "forward . 1.1.1.1 8.8.8.8 {\n\n}"},
		{"not of another forward",
			"forward a __PILLAR__CLUSTER__DNS__ {\n force_tcp\n}\nforward . __PILLAR__UPSTREAM__SERVERS__\n",
			"forward a 10.0.171.5 {\n force_tcp\n}\nforward . 8.8.8.8\n"},
		{"two in a row",
			"forward . __PILLAR__UPSTREAM__SERVERS__\nforward . __PILLAR__UPSTREAM__SERVERS__ {\n force_tcp\n}\nforward . 9.9.9.9 {\n force_tcp\n}\n",
			"forward . 8.8.8.8\nforward . 8.8.8.8 {\n \n}\nforward . 9.9.9.9 {\n force_tcp\n}\n"},
		{"not an argument",
			"forward . __PILLAR__UPSTREAM__SERVERS__ {\n except force_tcp\n}\n",
			"forward . 8.8.8.8 {\n except force_tcp\n}\n"},
		{"not in a comment",
			"forward . __PILLAR__UPSTREAM__SERVERS__ {\n # force_tcp\n}\n",
			"forward . 8.8.8.8 {\n # force_tcp\n}\n"},
		{"not of another directive",
			"other __PILLAR__UPSTREAM__SERVERS__ {\n force_tcp\n}\n",
			"other 8.8.8.8 {\n force_tcp\n}\n"},
		{"forward as an argument",
			"log forward __PILLAR__UPSTREAM__SERVERS__ {\n force_tcp\n}\n",
			"log forward 8.8.8.8 {\n force_tcp\n}\n"},
		{"never closed", "forward . __PILLAR__UPSTREAM__SERVERS__ {\n force_tcp", "forward . 8.8.8.8 {\n "},
	} {
		got, err := node().render(inputs{file: "f", template: []byte(tc.template), upstreams: []byte(`["8.8.8.8"]`)})
		if err != nil || string(got) != tc.want {
			t.Errorf("%s:\n got %q, %v\nwant %q", tc.name, got, err, tc.want)
		}
	}
}

func FuzzRender(f *testing.F) {
	for _, name := range []string{"addon.base", "kubespray.corefile"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Add([]byte("\ufeff\"a\\\"__PILLAR__LOCAL__DNS__\n\" #__PILLAR__X__\r\nx#y __PROMETHEUS__ENDPOINT__ {"), false)
	f.Add([]byte("forward . __PILLAR__UPSTREAM__SERVERS__ { force_tcp"), true)
	f.Fuzz(func(t *testing.T, template []byte, custom bool) {
		in := inputs{file: "f", template: template}
		if custom {
			in.upstreams = []byte(`["8.8.8.8", "9.9.9.9:5353"]`)
		}
		got, err := node().render(in)
		if err != nil {
			return
		}
		if g, w := bytes.Count(got, []byte("\n")), bytes.Count(template, []byte("\n")); g != w {
			t.Fatalf("%d line breaks became %d: %q", w, g, got)
		}
		if !bytes.Contains(template, []byte("__P")) && !bytes.Equal(got, template) {
			t.Fatalf("without placeholders %q became %q", template, got)
		}
		tokens, _ := scan(got)
		if left := findPlaces(got, tokens); len(left) > 0 {
			t.Fatalf("placeholders are left over: %v in %q", left, got)
		}
	})
}
